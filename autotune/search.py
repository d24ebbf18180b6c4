"""Search: Optuna's TPE by ask and tell over an enumerated feasible set, as a deterministic proposer of rows.

Why so (60 runs of 100 trials on a synthetic GEMM landscape, and replays of recorded spaces): ordinals are told as ranks
(`suggest_int` indices), since as categoricals they cost twice the trials; proposals are snapped to configs that are
legal and not yet tried; failures are told as a penalty of 1.5 x the worst valid value, since TPE ignores failed trials.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from ..search_spaces.space import FeasibleSet

PENALTY = 1.5
ROUND = 8
"""Configs proposed together. Fixed, so that the answer does not depend on the number of workers."""
MAX_REPEATS = 4
"""Asks in a row that may name a known or illegal config before the nearest untried one is taken. With 16 a search cost
up to ten times the CPU time (3.1 s against 0.3 s for 32 trials of moe_gate_up) and found the same, within noise."""

logging.getLogger("optuna").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Told:
    """A finished evaluation: the row, and its value or None where the config failed."""

    row: int
    value: float | None


class CellSearch:
    """Proposes rows of a feasible set, at most `ROUND` at a time: first the seeds, then TPE.

    The same feasible set, seeds, seed and answers give the same proposals.
    """

    def __init__(self, feasible: FeasibleSet, *, seeds: Iterable[int], seed: int) -> None:
        self._feasible = feasible
        self._distributions = _distributions(feasible)
        self._rows = {tuple(ranks): row for row, ranks in enumerate(feasible.ranks.tolist())}
        self._tried = np.zeros(len(feasible), np.bool_)
        self._values: dict[int, float | None] = {}
        self._seeds = list(dict.fromkeys(seeds))
        # After the seeds a share of uniform exploration, then TPE. With 16 trials a cell, TPE right after the first
        # round was no better (Qwen3-30B-A3B on MI300X, 138 cells: 3 better, 2 worse, one of them by 19 %).
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(10, len(self._seeds)))
        self._study = optuna.create_study(sampler=sampler)
        self._running: dict[int, optuna.trial.Trial] = {}

    @property
    def tried(self) -> int:
        """Rows proposed so far."""
        return int(self._tried.sum())

    def propose(self, count: int = ROUND) -> list[int]:
        """Up to `count` rows never proposed before; fewer, or none, when the feasible set runs out."""
        rows: list[int] = []
        while len(rows) < count and not self._tried.all():
            row = self._next_seed()
            if row is None:
                row = self._ask()
            self._tried[row] = True
            rows.append(row)
        return rows

    def tell(self, answers: Sequence[Told]) -> None:
        """Take the results of proposed rows, in the order given."""
        for answer in answers:
            self._values[answer.row] = answer.value
        for answer in answers:
            value = self._told_value(answer.value)
            trial = self._running.pop(answer.row, None)
            if trial is not None:
                self._study.tell(trial, value)
            else:
                self._study.add_trial(
                    create_trial(
                        params=self._params(answer.row), distributions=self._distributions, value=value,
                        state=OptunaState.COMPLETE,
                    )
                )  # fmt: skip

    def best(self) -> Told | None:
        """The lowest value told, the lowest row of equals; None before any success."""
        valid = [Told(row, value) for row, value in self._values.items() if value is not None]
        return min(valid, key=lambda told: (told.value, told.row), default=None)

    def penalty(self) -> float:
        """What a failure is told now."""
        return penalty_over(self._values.values())

    def _told_value(self, value: float | None) -> float:
        return self.penalty() if value is None else value

    def _next_seed(self) -> int | None:
        while self._seeds:
            row = self._seeds.pop(0)
            if not self._tried[row]:
                return row
        return None

    def _ask(self) -> int:
        """A row from TPE; a known or illegal proposal is told at once, free of charge, and asked again."""
        ranks: tuple[int, ...] = ()
        for _ in range(MAX_REPEATS):
            trial = self._study.ask(self._distributions)
            ranks = self._ranks(trial.params)
            row = self._rows.get(ranks)
            if row is not None and not self._tried[row]:
                self._running[row] = trial
                return row
            known = self._values.get(row) if row is not None else None
            if row is not None and row not in self._values:
                self._study.tell(trial, state=OptunaState.FAIL)  # proposed twice in one round: no value yet
            else:
                self._study.tell(trial, self._told_value(known))
        nearest = self._feasible.nearest(ranks, excluded=self._tried)
        assert nearest is not None
        return nearest

    def _params(self, row: int) -> dict[str, int | str]:
        params: dict[str, int | str] = {}
        for name, rank in zip(self._feasible.names, self._feasible.ranks[row], strict=True):
            is_word = isinstance(self._distributions[name], CategoricalDistribution)
            params[name] = str(self._feasible.choices[name][rank]) if is_word else int(rank)
        return params

    def _ranks(self, params: dict[str, int | str]) -> tuple[int, ...]:
        ranks = []
        for name in self._feasible.names:
            value = params[name]
            ranks.append(value if isinstance(value, int) else self._feasible.choices[name].index(value))
        return tuple(ranks)


def penalty_over(values: Iterable[float | None]) -> float:
    """What a failure is told: 1.5 x the worst valid value so far, 1 before any."""
    return PENALTY * max((value for value in values if value is not None), default=1 / PENALTY)


def _distributions(feasible: FeasibleSet) -> dict[str, BaseDistribution]:
    """Ranks of ordered values as integers; words without an order as categories."""
    distributions: dict[str, BaseDistribution] = {}
    for name, values in feasible.choices.items():
        if all(isinstance(value, int) for value in values):
            distributions[name] = IntDistribution(0, len(values) - 1)
        else:
            distributions[name] = CategoricalDistribution([str(value) for value in values])
    return distributions


def diverse(feasible: FeasibleSet, scores: np.ndarray, count: int) -> list[int]:
    """The best row of each of the `count` best tiles: configs that differ in a block size, split or form."""
    order = np.lexsort((np.arange(len(scores)), scores))
    tile_names = [name for name in feasible.names if name.isupper() and name != "XCD_REMAP"]
    positions = [feasible.names.index(name) for name in tile_names]
    seen: set[tuple[int, ...]] = set()
    chosen: list[int] = []
    for row in order:
        if not np.isfinite(scores[row]) or len(chosen) == count:
            break
        tile = tuple(int(feasible.ranks[row, position]) for position in positions)
        if tile not in seen:
            seen.add(tile)
            chosen.append(int(row))
    return chosen
