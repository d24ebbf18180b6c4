"""The search space of moe_grouped: sizes, defaults, and that every rule rejects something."""

from __future__ import annotations

import pytest

from paiton.search_spaces.arch import Device, known_devices, resolve
from paiton.search_spaces.moe import MoeProblem
from paiton.search_spaces.moe_grouped import CONSTRAINTS, MOE_GROUPED
from paiton.search_spaces.space import FITS_SHARED_MEMORY

QWEN3_30B = {"experts": 128, "top_k": 8, "hidden": 2048, "inter": 768}
QWEN3_235B = {"experts": 128, "top_k": 8, "hidden": 4096, "inter": 1536}
SHARD_OF_8 = {"experts": 128, "top_k": 8, "hidden": 2048, "inter": 96}
BATCHES = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 1024, 4096, 32768)


def problem_of(batch: int, dims: dict[str, int], dtype: str = "bf16") -> MoeProblem:
    return MoeProblem(kernel="moe_grouped", dtype=dtype, batch=batch, **dims)


@pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)
def test_the_default_is_legal(device: Device) -> None:
    for dims in (QWEN3_30B, QWEN3_235B, SHARD_OF_8):
        for dtype in ("bf16", "fp32"):
            for batch in BATCHES:
                problem = problem_of(batch, dims, dtype)
                assert MOE_GROUPED.faults(MOE_GROUPED.default(problem, device), problem, device) == []


@pytest.mark.parametrize(
    ("arch", "least", "most"), [("gfx942", 200, 15000), ("gfx950", 200, 9000), ("sm_90", 80, 1500)]
)
def test_feasible_sets_are_bounded(arch: str, least: int, most: int) -> None:
    for dims in (QWEN3_30B, QWEN3_235B):
        for batch in (1, 64, 256, 4096, 32768):
            feasible = MOE_GROUPED.enumerate(problem_of(batch, dims), resolve(arch))
            assert least <= len(feasible) <= most
            assert feasible.raw_count <= 150_000


def test_every_rule_rejects_something_and_says_why() -> None:
    seen: set[str] = set()
    for arch, batch, dims, dtype in (
        ("gfx942", 32, SHARD_OF_8, "bf16"), ("gfx942", 4096, QWEN3_30B, "bf16"), ("sm_90", 256, QWEN3_30B, "fp32"),
    ):  # fmt: skip
        seen |= {reason for reason, _ in MOE_GROUPED.enumerate(problem_of(batch, dims, dtype), resolve(arch)).rejected}
    assert seen >= {constraint.reason for constraint in (*CONSTRAINTS, FITS_SHARED_MEMORY)}


def test_a_fault_is_a_sentence() -> None:
    device = resolve("gfx942")
    problem = problem_of(1, QWEN3_30B)
    config = MOE_GROUPED.default(problem, device).replace(BLOCK_M=128)
    assert MOE_GROUPED.faults(config, problem, device) == [
        "BLOCK_M must not be mostly padding at the mean number of rows per expert"
    ]


def test_knobs_by_vendor() -> None:
    problem = problem_of(64, QWEN3_30B)
    assert {"kpack", "waves_per_eu", "matrix_instr_nonkdim", "XCD_REMAP"} <= set(
        MOE_GROUPED.choices(problem, resolve("gfx942"))
    )
    assert "kpack" not in MOE_GROUPED.choices(problem, resolve("gfx950"))
    assert not {"kpack", "waves_per_eu", "XCD_REMAP"} & set(MOE_GROUPED.choices(problem, resolve("sm_90")))


def test_work_is_the_minimum() -> None:
    one = MOE_GROUPED.work(problem_of(1, QWEN3_30B))
    assert one.flops == 6 * 8 * 2048 * 768
    assert one.bytes == pytest.approx(2 * (8 * 3 * 2048 * 768 + 2 * 2048) + (8 + 2) * 8)
    many = MOE_GROUPED.work(problem_of(4096, QWEN3_30B))
    assert many.bytes == pytest.approx(2 * (128 * 3 * 2048 * 768 + 2 * 4096 * 2048) + (8 + 2) * 8 * 4096)
