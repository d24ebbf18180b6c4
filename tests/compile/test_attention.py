"""Attention compiles for every arch within its limits; the defaults spill nothing and load 16 bytes at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from paiton.autotune.compile_pool import CompileJob, CompileOutcome, CompilePool
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem

KERNELS = ("attention_decode", "attention_decode_fused", "attention_prefill")
EACH_ARCH = pytest.mark.parametrize("arch", ["gfx942", "gfx950", "sm_90", "sm_100"])
MATRIX = {"gfx942": "v_mfma", "gfx950": "v_mfma", "sm_90": "wgmma", "sm_100": "tcgen05"}


@pytest.fixture(scope="module")
def pool() -> Iterator[CompilePool]:
    with CompilePool(workers=1, timeout_s=120) as pool:
        yield pool


def problem_of(kernel: str, *, dtype: str = "bf16", window: int = 0, head_dim: int = 128) -> Problem:
    """Qwen3-30B-A3B: 8 sequences of 4096 tokens, or one prompt of 4096."""
    dims = {"q_heads": 32, "kv_heads": 4, "head_dim": head_dim, "window": window}
    if kernel == "attention_prefill":
        return spec_of(kernel).space.problem(dtype=dtype, batch=4096, **dims)
    more = {"qk_norm": 1} if kernel == "attention_decode_fused" else {}
    return spec_of(kernel).space.problem(dtype=dtype, batch=8, context=4096, **dims, **more)


def default_of(problem: Problem, device: Device) -> Config:
    return spec_of(problem.kernel).space.default_config(problem, device)


def compiled(pool: CompilePool, device: Device, wanted: Sequence[tuple[Problem, Config, int]]) -> list[CompileOutcome]:
    """The outcomes in the order of `wanted`: (problem, config, launch of its plan)."""
    jobs = [
        CompileJob(
            str(row).encode(), problem.kernel, problem.dtype, problem.batch, problem.signature, config.json(),
            device.name, unit,
        )
        for row, (problem, config, unit) in enumerate(wanted)
    ]  # fmt: skip
    outcomes = {outcome.key: outcome for outcome in pool.compile(jobs)}
    return [outcomes[job.key] for job in jobs]


@EACH_ARCH
def test_defaults(pool: CompilePool, arch: str) -> None:
    device = resolve(arch)
    problems = [problem_of(kernel) for kernel in KERNELS]
    wanted = [(problem, default_of(problem, device), 0) for problem in problems]
    for problem, outcome in zip(problems, compiled(pool, device, wanted), strict=True):
        assert outcome.facts is not None, outcome.error
        facts = outcome.facts
        assert facts.shared_bytes <= device.arch.shared_limit_bytes
        assert facts.spills == 0 and facts.scratch_bytes == 0, problem
        assert facts.mfma_count > 0
        assert facts.global_loads and facts.global_load_bytes == 16 * facts.global_loads, problem
        if problem.kernel == "attention_prefill":
            assert all(MATRIX[arch] in name for name, _ in facts.mfma)


def test_the_combination_of_the_splits_compiles(pool: CompilePool) -> None:
    for arch in ("gfx942", "sm_90"):
        device = resolve(arch)
        problem = problem_of("attention_decode")
        config = default_of(problem, device)
        assert config["SPLITS"] != 1
        (outcome,) = compiled(pool, device, [(problem, config, 1)])
        assert outcome.facts is not None and outcome.facts.spills == 0, outcome.error


@pytest.mark.parametrize(
    ("arch", "dtype", "head_dim", "window"),
    [("gfx942", "fp32", 64, 0), ("gfx942", "bf16", 128, 1024), ("gfx950", "fp16", 256, 0), ("sm_90", "bf16", 64, 9)],
)
def test_defaults_of_other_shapes(pool: CompilePool, arch: str, dtype: str, head_dim: int, window: int) -> None:
    device = resolve(arch)
    problems = [problem_of(kernel, dtype=dtype, head_dim=head_dim, window=window) for kernel in KERNELS]
    for outcome in compiled(pool, device, [(each, default_of(each, device), 0) for each in problems]):
        assert outcome.facts is not None, outcome.error
        assert outcome.facts.shared_bytes <= device.arch.shared_limit_bytes


@EACH_ARCH
def test_random_legal_configs(pool: CompilePool, arch: str) -> None:
    """The compiler tells where a config needs more than there is; none may fail."""
    device = resolve(arch)
    rng = random.Random(arch)
    wanted = []
    for kernel in KERNELS:
        problem = problem_of(kernel)
        feasible = spec_of(kernel).space.enumerate(problem, device)
        wanted.append((problem, feasible.config(rng.randrange(len(feasible))), 0))
    for (_, config, _), outcome in zip(wanted, compiled(pool, device, wanted), strict=True):
        assert outcome.facts is not None, (config, outcome.error)
