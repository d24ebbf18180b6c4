"""The spaces of moe_gate_up and moe_down: defaults, sizes, reasons and the stated work."""

from __future__ import annotations

import dataclasses

import pytest

from paiton.search_spaces.arch import known_devices, resolve
from paiton.search_spaces.chip import Device
from paiton.search_spaces.moe import MOE_DOWN, MOE_GATE_UP, MoeProblem
from paiton.search_spaces.problem import InvalidProblem
from paiton.search_spaces.space import SearchSpace

SPACES = [MOE_GATE_UP, MOE_DOWN]
QWEN3_30B = {"experts": 128, "top_k": 8, "hidden": 2048, "inter": 768}
QWEN3_235B = {"experts": 128, "top_k": 8, "hidden": 4096, "inter": 1536}
MIXTRAL = {"experts": 8, "top_k": 2, "hidden": 4096, "inter": 14336}
BATCHES = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256)
EACH_SPACE = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.kernel)
EACH_DEVICE = pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)


def problem_of(space: SearchSpace, batch: int, dims: dict[str, int], dtype: str = "bf16") -> MoeProblem:
    return MoeProblem(kernel=space.kernel, dtype=dtype, batch=batch, **dims)


@EACH_SPACE
@EACH_DEVICE
@pytest.mark.parametrize("dims", [QWEN3_30B, QWEN3_235B], ids=["30B", "235B"])
def test_default_is_legal(space: SearchSpace, device: Device, dims: dict[str, int]) -> None:
    for batch in BATCHES:
        problem = problem_of(space, batch, dims)
        assert space.faults(space.default(problem, device), problem, device) == []


@EACH_SPACE
@EACH_DEVICE
def test_every_problem_has_a_default(space: SearchSpace, device: Device) -> None:
    """Tensor-parallel shards, other families, fp32 and toy sizes: the default moves to a legal neighbour."""
    shards = [{**QWEN3_30B, "inter": 768 // tp} for tp in (2, 4, 8)]
    toy = {"experts": 4, "top_k": 2, "hidden": 24, "inter": 8}
    for dims in (*shards, MIXTRAL, toy):
        for dtype in ("bf16", "fp32"):
            for batch in (1, 5, 256):
                problem = problem_of(space, batch, dims, dtype)
                config = space.default_config(problem, device)
                assert space.faults(config, problem, device) == []


@EACH_SPACE
@EACH_DEVICE
def test_size(space: SearchSpace, device: Device) -> None:
    for dims in (QWEN3_30B, QWEN3_235B):
        for batch in (1, 64, 256):
            feasible = space.enumerate(problem_of(space, batch, dims), device)
            assert feasible.raw_count <= 150_000
            assert 200 <= len(feasible) <= 15_000


@EACH_SPACE
def test_every_reason_rejects_something(space: SearchSpace) -> None:
    wide = space.extended(
        {"BLOCK_M": (8, 512), "BLOCK_N": (8192,), "BLOCK_K": (8, 8192), "num_stages": (1,), "num_warps": (16,)}
    )
    seen = set()
    for device in (resolve("gfx942"), resolve("sm_90")):
        for batch in (1, 64):
            seen |= {reason for reason, _ in wide.enumerate(problem_of(space, batch, QWEN3_30B), device).rejected}
    assert seen >= {constraint.reason for constraint in space.constraints}


@EACH_SPACE
@pytest.mark.parametrize("arch", ["gfx942", "sm_90"])
def test_what_has_no_effect_does_not_vary(space: SearchSpace, arch: str) -> None:
    columns = space.enumerate(problem_of(space, 1, QWEN3_30B), resolve(arch)).columns()
    gemv = columns["FORM"] != "expert"
    assert gemv.any() and not gemv.all()
    for name in ("BLOCK_M", "SWAP", "num_stages", "matrix_instr_nonkdim", "kpack"):
        if name in columns:
            assert len(set(columns[name][gemv])) == 1
    for name in ("BLOCK_N", "BLOCK_K", "num_warps", "ORDER"):
        assert len(set(columns[name][gemv])) > 1


@EACH_SPACE
def test_large_batches_have_no_gemv_form(space: SearchSpace) -> None:
    device = resolve("gfx942")
    assert set(space.enumerate(problem_of(space, 64, QWEN3_30B), device).columns()["FORM"]) == {"expert"}
    assert set(space.enumerate(problem_of(space, 256, QWEN3_30B), device).columns()["BLOCK_M"]) == {16, 32}


def test_parameters_of_the_devices() -> None:
    problem = problem_of(MOE_DOWN, 1, QWEN3_30B)
    names = {arch: set(MOE_DOWN.choices(problem, resolve(arch))) for arch in ("gfx942", "gfx950", "sm_90")}
    assert names["gfx942"] - names["gfx950"] == {"kpack"}
    assert names["gfx950"] - names["sm_90"] == {"XCD_REMAP", "waves_per_eu", "matrix_instr_nonkdim"}


def test_work_counts_every_touched_weight_once() -> None:
    one = MOE_GATE_UP.work(problem_of(MOE_GATE_UP, 1, QWEN3_30B))
    weights = 8 * 2 * 768 * 2048
    assert one.flops == 2 * weights
    assert one.bytes == pytest.approx(2 * (weights + 2048 + 8 * 768) + 8 * 8)
    down = MOE_DOWN.work(problem_of(MOE_DOWN, 1, QWEN3_30B))
    assert down.bytes == pytest.approx(2 * (8 * 768 * 2048 + 8 * 768 + 2 * 2048) + (8 + 2) * 8)
    many = MOE_DOWN.work(problem_of(MOE_DOWN, 256, QWEN3_30B))
    assert many.flops == 256 * down.flops
    assert many.bytes < 2 * (128 * 768 * 2048 + 256 * (8 * 768 + 2 * 2048)) + (8 + 2) * 8 * 256
    assert problem_of(MOE_DOWN, 8, QWEN3_30B).distinct_experts == pytest.approx(51.62, abs=0.01)


def test_top_k_is_bounded_by_the_experts() -> None:
    with pytest.raises(InvalidProblem, match=r"top_k=9 is outside 1\.\.experts=8"):
        dataclasses.replace(problem_of(MOE_DOWN, 1, {**QWEN3_30B, "experts": 8}), top_k=9)
