"""Compile facts survive JSON, and several launches merge into the demand of one call."""

import dataclasses
import json

import pytest

from paiton.search_spaces.model.facts import CompileFacts, merged

SMALL = CompileFacts(shared_bytes=1024, registers=64, waves_per_simd=8, code_bytes=100, global_load_bytes=16)
LARGE = CompileFacts(
    shared_bytes=512, registers=128, spills=3, waves_per_simd=4, code_bytes=900, valu=50,
    mfma=(("v_mfma_f32_16x16x16_bf16", 32),), lds_read_bytes=256,
)  # fmt: skip


def test_json_round_trip_is_canonical() -> None:
    text = LARGE.json()
    assert CompileFacts.from_json(text) == LARGE
    assert CompileFacts.from_json(text).json() == text
    assert " " not in text
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_a_newer_row_with_more_fields_stays_readable() -> None:
    fields = json.loads(SMALL.json()) | {"barrier_kind": "named"}
    assert CompileFacts.from_json(json.dumps(fields)) == SMALL


def test_merging_takes_the_largest_demand_and_the_loop_with_matrix_work() -> None:
    other = dataclasses.replace(LARGE, shared_bytes=2048, registers=96, waves_per_simd=5, mfma=LARGE.mfma * 2)
    both = merged([LARGE, other])
    assert (both.shared_bytes, both.registers, both.spills, both.waves_per_simd) == (2048, 128, 3, 4)
    assert both.mfma == other.mfma


def test_a_helper_launch_does_not_set_the_resources_of_the_matrix_launches() -> None:
    both = merged([SMALL, LARGE])
    assert (both.shared_bytes, both.registers, both.spills, both.waves_per_simd) == (512, 128, 3, 4)
    assert (both.launches, both.code_bytes) == (2, 1000)
    assert (both.mfma, both.valu, both.lds_read_bytes, both.global_load_bytes) == (LARGE.mfma, 50, 256, 0)
    assert merged([SMALL]) == SMALL


def test_merging_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a launch"):
        merged([])
