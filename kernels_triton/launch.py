"""Launch and Plan: what a launcher is about to run, as data: the same plan can be run or compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..search_spaces.config import Config

Grid = tuple[int, ...]
Argument = torch.Tensor | int | float | None

OPTION_NAMES = (
    "num_warps", "num_stages", "num_ctas", "maxnreg", "waves_per_eu", "matrix_instr_nonkdim", "kpack",
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the jitted function, its grid, run-time arguments, constexprs and compiler options."""

    fn: Any
    grid: Grid
    args: Mapping[str, Argument]
    constexprs: Mapping[str, int | str | bool]
    options: Mapping[str, int]

    def run(self) -> None:
        """Launch on the current device; in Triton's interpreter the compiler options are ignored."""
        self.fn[self.grid](**self.args, **self.constexprs, **self.options)


@dataclass(frozen=True)
class Plan:
    """The launches of one call, in order, and the tensors they fill."""

    launches: tuple[Launch, ...]
    outputs: tuple[torch.Tensor, ...]

    def run(self) -> tuple[torch.Tensor, ...]:
        """Run every launch in order and return the outputs."""
        for launch in self.launches:
            launch.run()
        return self.outputs


def compile_options(config: Config) -> dict[str, int]:
    """The compiler options inside a config; a maxnreg of 0 means no limit and is left out."""
    options = {name: config.integer(name) for name in OPTION_NAMES if name in config}
    if options.get("maxnreg") == 0:
        del options["maxnreg"]
    return options
