"""Objectives: what a config is worth. Measured on the GPU, estimated without it, recorded in tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..cache.rows import Label, TrialRow, TrialState
from ..kernels_triton.spec import KernelSpec
from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.model.estimate import MODEL_VERSION, estimate_us
from ..search_spaces.model.facts import CompileFacts
from ..search_spaces.problem import Problem
from ..search_spaces.space import columns_of_config
from .precompile import Compiled, Precompiler


@dataclass(frozen=True)
class Evaluation:
    """What came of trying a config. `value` is what the search minimises, None for a failure.

    Estimated: `value` is the model's relative score. Measured: `value` is the median in microseconds and `samples_us`
    holds the raw times, `conditions` the state of the cache and how many copies of the inputs were in rotation.
    """

    config: Config
    state: TrialState
    value: float | None
    facts: CompileFacts | None = None
    samples_us: tuple[float, ...] = ()
    error: str = ""
    conditions: str = ""


class Objective(Protocol):
    """Evaluates configs of a problem; `label` says what its values may be called."""

    label: Label
    model_version: str

    def evaluate(self, spec: KernelSpec, problem: Problem, configs: Sequence[Config]) -> list[Evaluation]:
        """One evaluation per config, in order."""

    def recall(self, problem: Problem, row: TrialRow) -> Evaluation | None:
        """The evaluation that a stored trial stands for, None where it has to be done again."""

    def confirm(self, problem: Problem, ranked: Sequence[Evaluation], default: Config) -> list[Evaluation]:
        """A second look at the best of a cell, before one of them becomes the answer."""


class EstimateObjective:
    """Compile for the absent device, then rank by the static model on the compiler's own facts."""

    label = Label.ESTIMATED
    model_version = MODEL_VERSION

    def __init__(self, device: Device, precompiler: Precompiler) -> None:
        self._device = device
        self._precompiler = precompiler

    def evaluate(self, spec: KernelSpec, problem: Problem, configs: Sequence[Config]) -> list[Evaluation]:
        """Compile what is not known yet and score what compiled."""
        return [self._scored(problem, compiled) for compiled in self._precompiler.compile(spec, problem, configs)]

    def recall(self, problem: Problem, row: TrialRow) -> Evaluation | None:
        """Stored facts are scored again, by today's model, which may take what another version refused; a failure to
        compile stands."""
        config = Config.from_json(row.params_json)
        if row.facts_json is not None and row.state in (TrialState.OK, TrialState.ILLEGAL):
            return self._scored(problem, Compiled(config, TrialState.OK, CompileFacts.from_json(row.facts_json)))
        if row.state is TrialState.OK:
            return None
        return Evaluation(config, row.state, None, error=row.error)

    def confirm(self, problem: Problem, ranked: Sequence[Evaluation], default: Config) -> list[Evaluation]:
        """An estimate has no noise: the ranking stands."""
        return list(ranked)

    def _scored(self, problem: Problem, compiled: Compiled) -> Evaluation:
        if compiled.facts is None:
            return Evaluation(compiled.config, compiled.state, None, error=compiled.error)
        columns = columns_of_config(compiled.config)
        score = float(estimate_us(problem, self._device, columns, [compiled.facts])[0])
        if not np.isfinite(score):
            return Evaluation(
                compiled.config, TrialState.ILLEGAL, None, compiled.facts,
                error=f"no program of this config can be resident on {self._device.name}",
            )  # fmt: skip
        return Evaluation(compiled.config, TrialState.OK, score, compiled.facts)
