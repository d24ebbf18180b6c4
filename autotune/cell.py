"""Tune one cell: one problem on one device, from seeds to the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..kernels_triton.spec import KernelSpec
from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.model.estimate import estimate_us
from ..search_spaces.problem import Problem
from ..search_spaces.space import FeasibleSet
from .adapters.registry import modelled
from .objective import Evaluation, Objective
from .search import ROUND, CellSearch, Told, diverse, penalty_over

MODEL_SEEDS = 8
"""Tiles the static model puts first; with the default and the neighbours' winners they start every search."""


@dataclass(frozen=True)
class CellTask:
    """What to tune: the kernel, the problem, the device, the configs worth a first look, trials and seed."""

    spec: KernelSpec
    problem: Problem
    device: Device
    neighbours: tuple[Config, ...]
    trials: int
    seed: int


@dataclass(frozen=True)
class CellResult:
    """What was found: every evaluation in the order tried, the confirmed best, and the size of the space."""

    default: Config
    evaluations: tuple[Evaluation, ...]
    confirmed: tuple[Evaluation, ...]
    feasible_count: int

    def ranked(self) -> list[Evaluation]:
        """The confirmed, best first."""
        return _ranked(self.confirmed, self.default)

    def evaluation_of(self, config: Config) -> Evaluation | None:
        """The confirmed evaluation of a config, else its first; None if it was not tried."""
        return next((each for each in (*self.confirmed, *self.evaluations) if each.config == config), None)


def _ranked(evaluations: Sequence[Evaluation], default: Config) -> list[Evaluation]:
    """The successes, best first; the default goes first among equals, then the order tried."""
    valid = [each for each in evaluations if each.value is not None]
    return sorted(valid, key=lambda each: (each.value, each.config != default))


def tune_cell(
    task: CellTask,
    objective: Objective,
    *,
    history: Mapping[Config, Evaluation],
    on_round: Callable[[Sequence[Evaluation], float], None],
    is_over: Callable[[], bool],
) -> CellResult:
    """Search a cell. `history` answers for configs tried before, so that a resumed search takes the same path again.

    `on_round` gets the new evaluations of each round as soon as they are known, and what failures are told; `is_over`
    is asked between rounds, never before the first. Raises EmptySpace when no config of the problem is legal.
    """
    spec, problem, device = task.spec, task.problem, task.device
    feasible = spec.space.enumerate(problem, device)
    default = spec.space.default_config(problem, device)
    search = CellSearch(feasible, seeds=_seed_rows(task, feasible, default), seed=_cell_seed(task))
    evaluations: list[Evaluation] = []
    while len(evaluations) < task.trials and not (evaluations and is_over()):
        rows = search.propose(min(ROUND, task.trials - len(evaluations)))
        if not rows:
            break
        configs = [feasible.config(row) for row in rows]
        unknown = [config for config in configs if config not in history]
        fresh = dict(zip(unknown, objective.evaluate(spec, problem, unknown), strict=True)) if unknown else {}
        answers = [fresh.get(config) or history[config] for config in configs]
        if fresh:
            on_round(list(fresh.values()), penalty_over(each.value for each in (*evaluations, *answers)))
        search.tell([Told(row, answer.value) for row, answer in zip(rows, answers, strict=True)])
        evaluations += answers
    confirmed = objective.confirm(problem, _ranked(evaluations, default), default)
    return CellResult(default, tuple(evaluations), tuple(confirmed), len(feasible))


def _seed_rows(task: CellTask, feasible: FeasibleSet, default: Config) -> list[int]:
    """The default, what won at neighbouring batch sizes, and the best of the model's best tiles."""
    rows = [feasible.index(default)]
    rows += [feasible.nearest_to(config) for config in task.neighbours]
    rows += diverse(feasible, model_scores(task.problem, task.device, feasible), MODEL_SEEDS)
    return [row for row in rows if row is not None]


def model_scores(problem: Problem, device: Device, feasible: FeasibleSet) -> npt.NDArray[np.float64]:
    """The static model's relative time of every feasible config, before anything is compiled."""
    known, columns = modelled(problem, feasible.columns(), device)
    return np.asarray(estimate_us(known, device, columns), np.float64)


def _cell_seed(task: CellTask) -> int:
    """A seed of the cell's own, so that neighbouring cells do not draw the same numbers."""
    text = f"{task.seed}|{task.device.name}|{task.problem}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
