"""What selection answers: a config for each kernel of one way to run a call, and what there is to report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from ..cache.answer import Tier
from ..cache.hint import run_line
from ..cache.key import Cell
from ..cache.rows import Label, TunedRow
from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.model.estimate import estimate_us
from ..search_spaces.problem import Problem
from ..search_spaces.space import columns_of_config


@dataclass(frozen=True)
class Choice:
    """The config of one kernel on one device and why; `row` is the stored row behind it, None for the default."""

    problem: Problem
    config: Config
    device: Device
    tier: Tier
    reason: str
    row: TunedRow | None = None
    plan: Callable[..., Any] = field(kw_only=True, repr=False, compare=False)
    """The kernel's plan. Held here so that no operator imports a kernel, or Triton, before one is chosen."""

    def run(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """Launch the kernel and return its outputs."""
        outputs: tuple[torch.Tensor, ...] = self.plan(*inputs, config=self.config, device=self.device).run()
        return outputs

    @property
    def is_tuned(self) -> bool:
        """Whether a row of the database answers; a row may say that the default is best."""
        return self.tier is not Tier.DEFAULT

    @property
    def measured_us(self) -> float | None:
        """The time measured for the row's own batch; None where nothing was measured."""
        row = self.row
        return row.us_median if row is not None and row.label is Label.MEASURED else None

    @property
    def estimated_us(self) -> float:
        """The static model's time for the problem that was asked for, infinite where it knows no launch."""
        return float(estimate_us(self.problem, self.device, columns_of_config(self.config))[0])


Way = tuple[Choice, ...]
"""One way to run a call: a choice for every kernel that takes part, in their order."""


def time_us(ways: tuple[Way, ...]) -> tuple[float, ...]:
    """A time for each way, comparable with the others: measured where all are, else all modelled."""
    measured = [[choice.measured_us for choice in way] for way in ways]
    if all(us is not None for way in measured for us in way):
        return tuple(sum(us for us in way if us is not None) for way in measured)
    return tuple(sum(choice.estimated_us for choice in way) for way in ways)


class Outcome(str, Enum):
    """What became of a call that asked."""

    EXACT = "exact"
    OTHER_BATCH = "other batch"
    OTHER_DEVICE = "other device"
    DEFAULT = "default"
    TORCH = "torch"
    """Left to torch: no kernel can compute it, or none is tuned and torch's own is the better guess."""
    FAILED = "failed"
    """Chosen, but the launch failed and torch computed it."""


@dataclass(frozen=True)
class Miss:
    """A problem without a stored config; `batches` are those asked for so far."""

    cell: Cell
    reason: str
    batches: tuple[int, ...]

    def command(self, model: str = "MODEL") -> str:
        """The `autotune run ...` line that would fill the gap."""
        return run_line(self.cell, model=model, batches=self.batches)
