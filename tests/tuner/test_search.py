"""The proposer of configs: no row twice, seeds first, deterministic, better than chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paiton.autotune.search import PENALTY, ROUND, CellSearch, Told, diverse
from paiton.search_spaces.arch import Device
from paiton.search_spaces.linear import LINEAR
from paiton.search_spaces.space import FeasibleSet

Value = Callable[[int], "float | None"]


def _product(*sizes: int, words: tuple[str, ...] = ()) -> FeasibleSet:
    """A full product of powers of two, and one parameter of words if given."""
    choices: dict[str, Any] = {f"BLOCK_{n}": tuple(2**rank for rank in range(size)) for n, size in enumerate(sizes)}
    if words:
        choices["FORM"] = words
    counts = [len(values) for values in choices.values()]
    ranks = np.indices(counts, np.int16).reshape(len(counts), -1).T
    return FeasibleSet(choices, np.ascontiguousarray(ranks), len(ranks), ())


def _search(
    feasible: FeasibleSet, value: Value, trials: int, *, seeds: tuple[int, ...] = (), seed: int = 0
) -> list[int]:
    """The rows proposed, in order."""
    search = CellSearch(feasible, seeds=seeds, seed=seed)
    order: list[int] = []
    while len(order) < trials:
        rows = search.propose(min(ROUND, trials - len(order)))
        if not rows:
            break
        search.tell([Told(row, value(row)) for row in rows])
        order += rows
    assert search.tried == len(order)
    return order


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 5), st.sampled_from([(), ("pair", "expert")])
)
def test_small_spaces_are_exhausted_without_a_repeat(sizes: list[int], seed: int, words: tuple[str, ...]) -> None:
    feasible = _product(*sizes, words=words)
    order = _search(feasible, lambda row: None if row % 3 == 2 else float(row), 1000, seed=seed)
    assert sorted(order) == list(range(len(feasible)))


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_spaces_end(count: int) -> None:
    feasible = _product(count)
    search = CellSearch(feasible, seeds=[0], seed=0)
    assert search.propose()[0] == 0
    search = CellSearch(feasible, seeds=[], seed=0)
    assert sorted(search.propose()) == list(range(count))
    search.tell([Told(row, 1.0) for row in range(count)])
    assert search.propose() == []


def test_seeds_come_first_in_their_order_and_once() -> None:
    feasible = _product(4, 4)
    assert _search(feasible, float, 12, seeds=(7, 3, 7, 0, 3))[:3] == [7, 3, 0]


def test_only_feasible_rows_of_a_holed_space(linear: Any, device: Device) -> None:
    """Most of the product of choices is illegal here, so most of TPE's proposals have to be snapped."""
    feasible = LINEAR.enumerate(linear(2), device)
    order = _search(feasible, lambda row: 1.0 + abs(row - 200), 16)
    assert len(set(order)) == 16 and all(0 <= row < len(feasible) for row in order)


def test_same_seed_same_path_other_seed_other_path() -> None:
    feasible = _product(5, 5, 4, words=("pair", "expert"))
    paths = [_search(feasible, lambda row: float((row * 37) % 101), 40, seeds=(5,), seed=seed) for seed in (3, 3, 4)]
    assert paths[0] == paths[1]
    assert paths[0] != paths[2]


def test_the_path_does_not_depend_on_values_of_the_future() -> None:
    feasible = _product(6, 6)
    short = _search(feasible, lambda row: float(row), 16)
    assert _search(feasible, lambda row: float(row), 32)[:16] == short


def test_all_failures_are_survived() -> None:
    feasible = _product(4, 5)
    order = _search(feasible, lambda row: None, 20)
    assert sorted(order) == list(range(20))
    search = CellSearch(feasible, seeds=[0], seed=0)
    search.tell([Told(row, None) for row in search.propose(4)])
    assert search.best() is None and search.penalty() == 1.0


def test_the_penalty_is_one_and_a_half_times_the_worst_valid_value() -> None:
    feasible = _product(4, 5)
    search = CellSearch(feasible, seeds=[0, 1, 2, 3], seed=0)
    rows = search.propose(4)
    search.tell([Told(rows[0], 4.0), Told(rows[1], None), Told(rows[2], 10.0), Told(rows[3], 2.0)])
    assert search.penalty() == PENALTY * 10.0 == 15.0
    assert [trial.value for trial in search._study.trials] == [4.0, 15.0, 10.0, 2.0]
    assert search.best() == Told(rows[3], 2.0)


def test_of_equals_the_lowest_row_is_best() -> None:
    search = CellSearch(_product(4), seeds=[3, 1, 2], seed=0)
    search.tell([Told(row, 1.0) for row in search.propose(3)])
    assert search.best() == Told(1, 1.0)


def test_beats_chance_on_a_recorded_landscape() -> None:
    """A tile landscape with one valley: 48 of 1000 rows by TPE against 48 by chance, median of seven seeds."""
    feasible = _product(10, 10, 10)
    centre = np.array([7, 3, 5])

    def value(row: int) -> float | None:
        distance = float((np.abs(feasible.ranks[row] - centre) * [1.0, 0.7, 0.4]).sum())
        return None if row % 11 == 0 else 1.0 + distance

    def best(rows: list[int]) -> float:
        return min(each for each in map(value, rows) if each is not None)

    searched = [best(_search(feasible, value, 48, seed=seed)) for seed in range(7)]
    random = [best(np.random.default_rng(seed).choice(len(feasible), 48, replace=False).tolist()) for seed in range(7)]
    assert np.median(searched) < 0.8 * np.median(random)


def test_diverse_gives_distinct_tiles_by_score() -> None:
    choices: dict[str, Any] = {"BLOCK_M": (16, 32), "SPLIT_K": (1, 2), "XCD_REMAP": (0, 1), "num_warps": (1, 2, 4)}
    ranks = np.indices((2, 2, 2, 3), np.int16).reshape(4, -1).T
    feasible = FeasibleSet(choices, np.ascontiguousarray(ranks), 24, ())
    scores = np.random.default_rng(0).permutation(24).astype(float)
    scores[int(scores.argmin())] = np.inf
    chosen = diverse(feasible, scores, 3)
    tiles = [(feasible.config(row)["BLOCK_M"], feasible.config(row)["SPLIT_K"]) for row in chosen]
    assert len(set(tiles)) == 3 and list(scores[chosen]) == sorted(scores[chosen])
    for row, tile in zip(chosen, tiles, strict=True):
        same = [r for r in range(24) if (feasible.config(r)["BLOCK_M"], feasible.config(r)["SPLIT_K"]) == tile]
        assert scores[row] == min(scores[same]), "each is the best of its tile"
    assert len(diverse(feasible, scores, 100)) == 4, "there are four tiles"
    assert diverse(feasible, np.full(24, np.nan), 8) == diverse(feasible, np.full(24, np.inf), 8) == []


def test_equal_scores_are_taken_in_row_order() -> None:
    assert diverse(_product(6), np.ones(6), 3) == [0, 1, 2]
