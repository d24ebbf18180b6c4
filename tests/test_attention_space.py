"""The search spaces of attention: defaults, sizes, and that every rule rejects something for its reason."""

from __future__ import annotations

import pytest

from paiton.search_spaces.arch import Device, known_devices, resolve
from paiton.search_spaces.attention import (
    ATTENTION_DECODE,
    ATTENTION_DECODE_FUSED,
    AttentionDecodeFusedProblem,
    AttentionDecodeProblem,
    AttentionPrefillProblem,
)
from paiton.search_spaces.attention_prefill import ATTENTION_PREFILL
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import InvalidProblem, Problem
from paiton.search_spaces.space import SearchSpace

MODELS = {
    "Qwen3-30B-A3B": {"q_heads": 32, "kv_heads": 4},
    "Qwen3-32B": {"q_heads": 64, "kv_heads": 8},
    "QwQ-32B": {"q_heads": 40, "kv_heads": 8},
    "Qwen3-235B-A22B": {"q_heads": 64, "kv_heads": 4},
}
BATCHES = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256)
SPACES = (ATTENTION_DECODE, ATTENTION_DECODE_FUSED, ATTENTION_PREFILL)
DEVICES = pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)


def problem_of(space: SearchSpace, batch: int, *, dtype: str = "bf16", **dims: int) -> Problem:
    sizes = {"q_heads": 32, "kv_heads": 4, "head_dim": 128, "window": 0, **dims}
    if space is not ATTENTION_PREFILL:
        sizes.setdefault("context", 4096)
    if space is ATTENTION_DECODE_FUSED:
        sizes.setdefault("qk_norm", 1)
    return space.problem(dtype=dtype, batch=batch, **sizes)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.kernel)
@pytest.mark.parametrize("model", MODELS)
@DEVICES
def test_defaults_are_legal_as_they_are(space: SearchSpace, model: str, device: Device) -> None:
    batches = BATCHES if space is not ATTENTION_PREFILL else (1, 17, 128, 1000, 4096, 32768)
    for batch in batches:
        problem = problem_of(space, batch, **MODELS[model])
        space.check(space.default(problem, device), problem, device)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.kernel)
@DEVICES
def test_every_shape_has_a_default(space: SearchSpace, device: Device) -> None:
    """All types, head sizes, short contexts and windows: a legal config exists."""
    for dtype in ("bf16", "fp16", "fp32"):
        for head_dim in (64, 96, 128, 256):
            for window in (0, 3, 1024):
                dims = {} if space is ATTENTION_PREFILL else {"context": 1 + window}
                problem = problem_of(space, 7, dtype=dtype, head_dim=head_dim, window=window, **dims)
                space.check(space.default_config(problem, device), problem, device)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.kernel)
@pytest.mark.parametrize("arch", ["gfx942", "gfx950", "sm_90", "sm_100"])
def test_sizes_are_bounded(space: SearchSpace, arch: str) -> None:
    device = resolve(arch)
    sizes = []
    for dims in MODELS.values():
        for batch in (1, 32, 256, 4096):
            feasible = space.enumerate(problem_of(space, batch, **dims), device)
            assert feasible.raw_count <= 150_000
            sizes.append(len(feasible))
    assert max(sizes) <= 15_000
    assert min(sizes) >= 4  # a prompt of one token has few sensible tiles


def faults_of(space: SearchSpace, device: Device, changes: dict[str, int], batch: int, **dims: int) -> str:
    problem = problem_of(space, batch, **dims)
    config: Config = (
        space.default(problem_of(space, 1, context=4096), device)
        if (space is not ATTENTION_PREFILL)
        else space.default(problem_of(space, 4096), device)
    )
    return "; ".join(space.faults(config.replace(**changes), problem, device))


@pytest.mark.parametrize(
    ("arch", "changes", "batch", "dims", "words"),
    [
        ("sm_90", {"BLOCK_N": 256, "SPLITS": 1}, 1, {"context": 100}, "block of tokens must not pass"),
        ("sm_90", {"BLOCK_N": 256, "SPLITS": 1}, 1, {"window": 64}, "block of tokens must not pass"),
        ("sm_90", {"SPLITS": 8}, 1, {"context": 200}, "every split must have a block"),
        ("sm_90", {"SPLITS": 8}, 256, {}, "8 programs per compute unit"),
        ("gfx942", {"BLOCK_N": 16, "num_warps": 8}, 1, {}, "16-byte load"),
        ("sm_90", {"BLOCK_N": 256, "num_warps": 1}, 1, {}, "elements of K"),
        ("gfx942", {"matrix_instr_nonkdim": 32}, 1, {}, "larger than the query tile"),
        ("sm_90", {"num_warps": 1}, 1, {"q_heads": 128}, "128 scores and sums"),
    ],
    ids=str,
)
def test_each_decode_rule_rejects(
    arch: str, changes: dict[str, int], batch: int, dims: dict[str, int], words: str
) -> None:
    for space in (ATTENTION_DECODE, ATTENTION_DECODE_FUSED):
        assert words in faults_of(space, resolve(arch), changes, batch, **dims)


@pytest.mark.parametrize(
    ("arch", "changes", "batch", "words"),
    [
        ("sm_90", {}, 40, "must not pass the prompt"),
        ("sm_90", {"BLOCK_M": 64, "num_warps": 8}, 4096, "as many rows as its matrix instruction"),
        ("gfx942", {"matrix_instr_nonkdim": 32, "BLOCK_N": 16}, 4096, "wider than a tile"),
        ("sm_90", {"BLOCK_M": 128, "num_warps": 2}, 4096, "160 (NVIDIA) scores and sums"),
        ("gfx942", {"BLOCK_N": 16, "num_warps": 8}, 4096, "16-byte load"),
        ("gfx942", {"BLOCK_N": 128, "num_warps": 2}, 4096, "elements of K"),
    ],
    ids=str,
)
def test_each_prefill_rule_rejects(arch: str, changes: dict[str, int], batch: int, words: str) -> None:
    assert words in faults_of(ATTENTION_PREFILL, resolve(arch), changes, batch)


def test_larger_groups_may_use_larger_instructions() -> None:
    problem = problem_of(ATTENTION_DECODE, 1, q_heads=32, kv_heads=1)
    sides = ATTENTION_DECODE.enumerate(problem, resolve("gfx942")).columns()["matrix_instr_nonkdim"]
    assert set(sides) == {16, 32}


def test_knobs_follow_the_vendor() -> None:
    for space in SPACES:
        problem = problem_of(space, 64)
        assert "kpack" in space.choices(problem, resolve("gfx942"))
        assert "kpack" not in space.choices(problem, resolve("gfx950"))
        assert "waves_per_eu" not in space.choices(problem, resolve("sm_90"))


def test_work_by_hand() -> None:
    """2 sequences, 8 query and 2 kv heads of 64, 100 tokens seen, bf16."""
    problem = AttentionDecodeProblem(
        kernel="attention_decode", dtype="bf16", batch=2, q_heads=8, kv_heads=2, head_dim=64, window=0, context=100
    )
    work = ATTENTION_DECODE.work(problem)
    assert work.flops == 4 * 2 * 8 * 64 * 100
    assert work.bytes == 2 * (2 * 2 * 2 * 100 * 64) + 2 * (2 * 2 * 8 * 64)
    fused = AttentionDecodeFusedProblem(
        kernel="attention_decode_fused", dtype="bf16", batch=2, q_heads=8, kv_heads=2, head_dim=64, window=0,
        context=100, qk_norm=1,
    )  # fmt: skip
    # The new k and v: counted once among the seen ones (read), once more as written.
    assert ATTENTION_DECODE_FUSED.work(fused).bytes == work.bytes + 2 * 2 * (2 * 2 * 64)


@pytest.mark.parametrize(("window", "pairs"), [(0, 5050), (1, 100), (10, 55 + 90 * 10), (500, 5050)])
def test_prefill_work_by_hand(window: int, pairs: int) -> None:
    problem = AttentionPrefillProblem(
        kernel="attention_prefill", dtype="fp16", batch=100, q_heads=8, kv_heads=2, head_dim=64, window=window
    )
    work = ATTENTION_PREFILL.work(problem)
    assert work.flops == 4 * pairs * 8 * 64
    assert work.bytes == 2 * 2 * 100 * 10 * 64


@pytest.mark.parametrize(
    "dims", [{"q_heads": 5}, {"kv_heads": 0}, {"head_dim": 20}, {"head_dim": 0}, {"context": 0}, {"qk_norm": 2}]
)
def test_problems_that_no_kernel_computes(dims: dict[str, int]) -> None:
    with pytest.raises(InvalidProblem):
        problem_of(ATTENTION_DECODE_FUSED, 1, **dims)
