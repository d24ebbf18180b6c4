"""Configs, search spaces and feasible sets, against brute force."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import MAX_JSON_CHARS, Config, InvalidConfig
from paiton.search_spaces.norm import RMS_NORM
from paiton.search_spaces.problem import InvalidProblem, Problem, parse_signature
from paiton.search_spaces.router import ROUTER
from paiton.search_spaces.space import Constraint, EmptySpace, FeasibleSet, IllegalConfig, vendor_knobs

NAMES = st.sampled_from(["BLOCK_M", "BLOCK_N", "num_warps", "FORM", "ORDER"])
VALUES = st.integers(-(2**31), 2**31) | st.text(max_size=8)


@given(st.dictionaries(NAMES, VALUES))
def test_config_json_round_trip(values: dict[str, Any]) -> None:
    config = Config(values)
    text = config.json()
    assert Config.from_json(text) == config
    assert Config.from_json(text).json() == text
    assert json.loads(text) == values
    assert text.isascii() and text.startswith("{") and list(json.loads(text)) == sorted(values)
    assert pickle.loads(pickle.dumps(config)) == config


@given(st.dictionaries(NAMES, VALUES), st.randoms(use_true_random=False))
def test_equal_configs_are_one_key_whatever_the_order(values: dict[str, Any], random: Any) -> None:
    pairs = list(values.items())
    random.shuffle(pairs)
    one, other = Config(values), Config(dict(pairs))
    assert one == other and hash(one) == hash(other) and {one: 1}[other] == 1
    assert one.json() == other.json()
    assert one != dict(values)


def test_config_replace_and_typed_reads() -> None:
    config = Config.of(num_warps=4, FORM="pair")
    assert config.replace(num_warps=8) == Config.of(FORM="pair", num_warps=8)
    assert config == Config.of(num_warps=4, FORM="pair"), "replace makes a copy"
    assert config.integer("num_warps") == 4 and config.integer("SPLIT_K", 1) == 1
    with pytest.raises(KeyError, match="SPLIT_K"):
        config.integer("SPLIT_K")
    with pytest.raises(InvalidConfig, match="FORM='pair' is not an integer"):
        config.integer("FORM")
    with pytest.raises(TypeError):
        config["num_warps"] = 1  # type: ignore[index]


@pytest.mark.parametrize("value", [True, 1.0, None, [1], {"a": 1}])
def test_config_refuses_what_is_neither_integer_nor_word(value: Any) -> None:
    with pytest.raises(InvalidConfig, match="neither an integer nor a word"):
        Config({"BLOCK_M": value})


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"a":1.5}', '{"a":[1]}', "[" * 4000, "NaN"])
def test_config_refuses_other_json(text: str) -> None:
    with pytest.raises(InvalidConfig):
        Config.from_json(text)


def test_config_refuses_a_long_text() -> None:
    with pytest.raises(InvalidConfig, match=f"at most {MAX_JSON_CHARS}"):
        Config.from_json('{"a":' + "1" * MAX_JSON_CHARS + "}")


def test_enumerate_is_the_product_without_the_faulty(router: Any, device: Device) -> None:
    problem = router(8)
    feasible = ROUTER.enumerate(problem, device)
    choices = ROUTER.choices(problem, device)
    every = [Config(dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]
    legal = [config for config in every if not ROUTER.faults(config, problem, device)]
    assert list(feasible) == legal, "same configs, in the order of the product"
    assert feasible.raw_count == len(every)
    assert all(count > 0 for _, count in feasible.rejected)
    assert sum(count for _, count in feasible.rejected) >= len(every) - len(legal)


def test_columns_and_index_agree_with_configs(linear: Any, device: Device) -> None:
    from paiton.search_spaces.linear import LINEAR

    feasible = LINEAR.enumerate(linear(2), device)
    columns = feasible.columns()
    for row in (0, 17, len(feasible) - 1):
        config = feasible.config(row)
        assert {name: values[row].item() for name, values in columns.items()} == dict(config)
        assert feasible.index(config) == row
    assert feasible.index(feasible.config(0).replace(num_warps=3)) is None
    assert feasible.index(Config.of(num_warps=1)) is None


def test_faults_name_every_reason(router: Any, device: Device) -> None:
    problem = router(1)
    assert ROUTER.faults(Config.of(BLOCK_T=1, num_warps=1), problem, device) == []
    assert ROUTER.faults(Config.of(BLOCK_T=1, WIDTH=3), problem, device) == [
        "WIDTH is no parameter of router",
        "num_warps is missing",
    ]
    assert ROUTER.faults(Config.of(BLOCK_T=3, num_warps=1), problem, device) == [
        "BLOCK_T=3 is not one of 1, 2, 4, 8, 16, 32"
    ]
    both = ROUTER.faults(Config.of(BLOCK_T=32, num_warps=1), problem, device)
    assert both == [
        "BLOCK_T must not pass the tokens by a power of two or more",
        "a thread must not hold more than 32 logits",
    ]
    with pytest.raises(IllegalConfig, match=r"BLOCK_T=32 num_warps=1 of router.* on MI300X: BLOCK_T must not pass"):
        ROUTER.check(Config.of(BLOCK_T=32, num_warps=1), problem, device)
    ROUTER.check(Config.of(BLOCK_T=1, num_warps=1), problem, device)


def _set_of(ranks: list[tuple[int, ...]], sizes: tuple[int, ...]) -> FeasibleSet:
    choices = {f"P{position}": tuple(2**rank for rank in range(size)) for position, size in enumerate(sizes)}
    return FeasibleSet(choices, np.array(ranks, np.int16), int(np.prod(sizes)), ())


@st.composite
def feasible_sets(draw: st.DrawFn) -> FeasibleSet:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    every = list(itertools.product(*(range(size) for size in sizes)))
    kept = draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    return _set_of(sorted(kept), sizes)


@settings(max_examples=60)
@given(feasible_sets(), st.data())
def test_neighbours_and_nearest_against_brute_force(feasible: FeasibleSet, data: st.DataObject) -> None:
    rows = [tuple(int(rank) for rank in row) for row in feasible.ranks]
    start = data.draw(st.integers(0, len(rows) - 1))
    hamming = [sum(a != b for a, b in zip(row, rows[start], strict=True)) for row in rows]
    assert feasible.neighbours(start) == [row for row, distance in enumerate(hamming) if distance == 1]
    wanted = data.draw(st.tuples(*(st.integers(0, len(values) - 1) for values in feasible.choices.values())))
    distance = [sum(abs(a - b) for a, b in zip(row, wanted, strict=True)) for row in rows]
    assert feasible.nearest(wanted) == distance.index(min(distance))
    excluded = np.array([data.draw(st.booleans()) for _ in rows])
    open_rows = [row for row in range(len(rows)) if not excluded[row]]
    expected = min(open_rows, key=lambda row: (distance[row], row)) if open_rows else None
    assert feasible.nearest(wanted, excluded=excluded) == expected
    assert feasible.config(start) == list(feasible)[start] and feasible.index(feasible.config(start)) == start


def test_nearest_to_knows_values_of_other_problems() -> None:
    feasible = _set_of([(0, 0), (1, 2), (3, 1)], (4, 3))
    assert feasible.nearest_to(Config.of(P0=8, P1=2)) == 2
    assert feasible.nearest_to(Config.of(P0=1024)) == 2, "a value past the choices is nearest to the largest"
    assert feasible.nearest_to(Config.of(other="word")) == 0
    words = FeasibleSet({"FORM": ("pair", "expert")}, np.array([[0], [1]], np.int16), 2, ())
    assert words.nearest_to(Config.of(FORM="expert")) == 1
    assert words.nearest_to(Config.of(FORM="unknown")) == 0
    assert _set_of([], (2,)).nearest_to(Config.of(P0=1)) is None


def test_default_is_moved_to_a_legal_config(router: Any, device: Device) -> None:
    problem = router(2)
    assert not ROUTER.faults(ROUTER.default_config(problem, device), problem, device)
    far = dataclasses.replace(ROUTER, default=lambda problem, device: Config.of(BLOCK_T=32, num_warps=8))
    moved = far.default_config(problem, device)
    feasible = far.enumerate(problem, device)
    assert moved in list(feasible) and moved == feasible.config(feasible.nearest_to(Config.of(BLOCK_T=32, num_warps=8)))
    assert moved["BLOCK_T"] == 2


def test_extended_choices_join_the_space_and_its_rules(router: Any, device: Device) -> None:
    problem = router(1)
    wider = ROUTER.extended({"num_warps": (16, 3, 2)})
    assert wider.choices(problem, device)["num_warps"] == (1, 2, 3, 4, 8, 16)
    assert all(config["num_warps"] != 3 for config in wider.enumerate(problem, device)), "3 is no power of two"
    big = problem.with_batch(64)
    assert Config.of(BLOCK_T=32, num_warps=16) in list(wider.enumerate(big, device))
    assert Config.of(BLOCK_T=32, num_warps=16) not in list(ROUTER.enumerate(big, device))
    with pytest.raises(IllegalConfig, match="BLOCK_X is no parameter of router on MI300X: BLOCK_T, num_warps"):
        ROUTER.extended({"BLOCK_X": (1,)}).enumerate(problem, device)


def test_empty_and_oversized_spaces_say_so(router: Any, device: Device) -> None:
    never = Constraint("nothing is allowed", lambda columns, problem, device: np.zeros(len(columns["num_warps"]), bool))
    empty = dataclasses.replace(ROUTER, constraints=(never,))
    with pytest.raises(EmptySpace, match=r"no config of router is legal for router\[.*\] bf16 batch 1 on MI300X"):
        empty.enumerate(router(1), device)
    huge = dataclasses.replace(
        ROUTER, choices=lambda problem, device: {f"P{i}": tuple(range(2000)) for i in range(2)} | {"num_warps": (1, 2)}
    )
    with pytest.raises(EmptySpace, match="8000000 raw configs, at most 4000000"):
        huge.enumerate(router(1), device)


def test_knobs_of_the_vendors() -> None:
    def knobs(arch: str, has_dot: bool) -> set[str]:
        return set(vendor_knobs(resolve(arch), has_dot=has_dot))

    assert knobs("gfx942", True) == {"waves_per_eu", "matrix_instr_nonkdim", "kpack"}
    assert knobs("gfx950", True) == {"waves_per_eu", "matrix_instr_nonkdim"}, "gfx950 forces kpack 1"
    assert knobs("gfx942", False) == {"waves_per_eu"}
    assert knobs("sm_90", True) == {"maxnreg"} and knobs("sm_90", False) == set()


def test_problems_are_checked_and_read_back() -> None:
    problem = RMS_NORM.problem(dtype="bf16", batch=3, hidden=2048)
    assert problem.signature == "hidden=2048" and str(problem) == "rms_norm[hidden=2048] bf16 batch 3"
    assert RMS_NORM.problem_from("hidden=2048", "bf16", 3) == problem
    for wrong in ({"dtype": "int8"}, {"batch": 0}, {"hidden": -1}, {"hidden": 1 << 31}):
        with pytest.raises(InvalidProblem):
            RMS_NORM.problem(**{"dtype": "bf16", "batch": 3, "hidden": 2048, **wrong})
    for text in ("hidden", "hidden=", "hidden=-1", "1x=2", "a=12345678901", "a=1,"):
        with pytest.raises(InvalidProblem, match="expected name=integer"):
            parse_signature(text)


@given(st.integers(1, 4096), st.integers(1, 1 << 20))
def test_signatures_round_trip(hidden: int, batch: int) -> None:
    problem: Problem = RMS_NORM.problem(dtype="fp16", batch=batch, hidden=hidden)
    assert RMS_NORM.problem_from(problem.signature, problem.dtype, problem.batch) == problem


def test_space_digest_follows_the_meaning() -> None:
    assert RMS_NORM.digest(("BLOCK_H", "num_warps")) == RMS_NORM.digest(("num_warps", "BLOCK_H"))
    assert RMS_NORM.digest(("BLOCK_H",)) != RMS_NORM.digest(("BLOCK_H", "num_warps"))
