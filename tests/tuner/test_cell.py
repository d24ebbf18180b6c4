"""Tuning one cell: what is tried, in which order, and what a history spares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from paiton.autotune.cell import MODEL_SEEDS, CellResult, CellTask, model_scores, tune_cell
from paiton.autotune.objective import Evaluation
from paiton.autotune.search import ROUND, diverse
from paiton.cache.rows import TrialState
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import Device
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.space import EmptySpace


def _tune(
    problem: Problem, device: Device, objective: Any, *, trials: int = 16, seed: int = 0,
    neighbours: tuple[Config, ...] = (), history: dict[Config, Evaluation] | None = None,
    is_over: Any = lambda: False, told: list[list[Evaluation]] | None = None,
) -> CellResult:  # fmt: skip
    def on_round(fresh: Sequence[Evaluation], penalty: float) -> None:
        if told is not None:
            told.append(list(fresh))

    task = CellTask(spec_of(problem.kernel), problem, device, neighbours, trials, seed)
    return tune_cell(task, objective, history=history or {}, on_round=on_round, is_over=is_over)


def test_the_default_is_tried_first_and_the_best_is_found(norm: Any, device: Device, recorded: Any) -> None:
    objective, problem = recorded(), norm(4)
    result = _tune(problem, device, objective)
    spec = spec_of("rms_norm")
    assert result.evaluations[0].config == result.default == spec.space.default_config(problem, device)
    every = list(spec.space.enumerate(problem, device))
    assert result.feasible_count == len(every) == len(result.evaluations), "a small space is tried out"
    assert result.ranked()[0].config == min(every, key=lambda config: objective.landscape(problem, config))
    assert [each.value for each in result.ranked()] == sorted(each.value for each in result.evaluations if each.value)


def test_the_neighbour_and_the_models_best_tiles_follow(linear: Any, device: Device, recorded: Any) -> None:
    problem, objective = linear(2), recorded()
    feasible = spec_of("linear").space.enumerate(problem, device)
    neighbour = feasible.config(123)
    result = _tune(problem, device, objective, trials=10, neighbours=(neighbour,))
    tried = [each.config for each in result.evaluations]
    assert tried[:2] == [result.default, neighbour]
    seeds = [feasible.config(row) for row in diverse(feasible, model_scores(problem, device, feasible), MODEL_SEEDS)]
    seeds = [config for config in seeds if config not in tried[:2]]
    assert len(seeds) >= 6 and tried[2:][: len(seeds)] == seeds
    scores = model_scores(problem, device, feasible)
    assert scores.shape == (len(feasible),) and (scores[np.isfinite(scores)] > 0).all()


def test_a_neighbour_that_is_illegal_here_becomes_the_nearest_legal(router: Any, device: Device, recorded: Any) -> None:
    problem = router(1)
    result = _tune(problem, device, recorded(), neighbours=(Config.of(BLOCK_T=32, num_warps=8),))
    legal = set(spec_of("router").space.enumerate(problem, device))
    assert {each.config for each in result.evaluations} == legal and len(legal) == 2


def test_rounds_have_a_fixed_size_and_report_at_once(linear: Any, device: Device, recorded: Any) -> None:
    objective, told = recorded(), []
    _tune(linear(1), device, objective, trials=12, told=told)
    assert [len(configs) for configs in objective.rounds] == [ROUND, 4]
    assert [[each.config for each in fresh] for fresh in told] == objective.rounds


def test_a_history_answers_for_the_objective(linear: Any, device: Device, recorded: Any) -> None:
    problem, whole = linear(2), recorded()
    full = _tune(problem, device, whole, trials=16)
    known = {each.config: each for each in full.evaluations[:ROUND]}
    resumed, told = recorded(), []
    again = _tune(problem, device, resumed, trials=16, history=known, told=told)
    assert again.evaluations == full.evaluations
    assert resumed.rounds == whole.rounds[1:] and len(told) == 1
    partial = dict(list(known.items())[:3])
    assert _tune(problem, device, recorded(), trials=16, history=partial).evaluations == full.evaluations


def test_same_seed_same_path_and_cells_differ(linear: Any, device: Device, recorded: Any) -> None:
    """Twelve trials: the seeds and the first proposals of the sampler."""
    flat = lambda problem, config: 1.0
    paths = {
        key: [each.config for each in _tune(linear(batch), device, recorded(flat), trials=14, seed=seed).evaluations]
        for key, batch, seed in (("a", 1, 0), ("b", 1, 0), ("other seed", 1, 1), ("other batch", 2, 0))
    }
    assert paths["a"] == paths["b"]
    assert paths["a"] != paths["other seed"]
    assert paths["a"] != paths["other batch"]


def test_is_over_is_asked_between_rounds_only(linear: Any, device: Device, recorded: Any) -> None:
    objective = recorded()
    result = _tune(linear(1), device, objective, trials=24, is_over=lambda: True)
    assert len(objective.rounds) == 1 and len(result.evaluations) == ROUND, "the first round is always done"


def test_failures_are_kept_but_never_the_answer(norm: Any, device: Device, recorded: Any) -> None:
    problem = norm(2)
    default = spec_of("rms_norm").space.default_config(problem, device)
    result = _tune(problem, device, recorded(lambda p, config: None if config == default else 5.0))
    assert result.evaluation_of(default) is not None
    assert result.evaluation_of(default).state is TrialState.TIMEOUT
    assert default not in [each.config for each in result.ranked()]
    nothing = _tune(problem, device, recorded(lambda p, config: None))
    assert nothing.ranked() == [] and len(nothing.evaluations) == 6


def test_the_default_goes_first_among_equals(norm: Any, device: Device, recorded: Any) -> None:
    result = _tune(norm(2), device, recorded(lambda p, config: 3.0))
    assert result.ranked()[0].config == result.default


def test_confirm_decides_the_order(norm: Any, device: Device, recorded: Any) -> None:
    problem = norm(2)
    first = _tune(problem, device, recorded())
    second_best = first.ranked()[1].config
    result = _tune(problem, device, recorded(confirmed={second_best: 0.5}))
    assert result.ranked()[0].config == second_best and result.evaluation_of(second_best).value == 0.5


def test_an_empty_space_says_so(norm: Any, device: Device, recorded: Any) -> None:
    import dataclasses

    problem = norm(2)
    spec = spec_of("rms_norm")
    none = dataclasses.replace(spec.space, choices=lambda problem, device: {"BLOCK_H": (3,), "num_warps": (1,)})
    task = CellTask(spec.with_space(none), problem, device, (), 4, 0)
    with pytest.raises(EmptySpace, match="no config of rms_norm is legal"):
        tune_cell(task, recorded(), history={}, on_round=lambda fresh, penalty: None, is_over=lambda: False)
