"""Norms and skinny projections compile for every arch within its limits; the defaults spill nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from paiton.autotune.compile_pool import CompileJob, CompileOutcome, CompilePool
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem

ARCHS = ("gfx942", "gfx950", "sm_90", "sm_100")
O_PROJ = ("linear", {"n": 2048, "k": 4096, "bias": 0, "residual": 1})
LM_HEAD = ("linear", {"n": 151936, "k": 2048, "bias": 0, "residual": 0})
DENSE_GATE_UP = ("linear_silu_mul", {"n": 25600, "k": 5120})
DENSE_DOWN = ("linear", {"n": 5120, "k": 27648, "bias": 0, "residual": 1})
QKV = ("linear_qkv", {"n_q": 4096, "n_kv": 512, "k": 2048, "bias": 0})
QKV_BIAS = ("linear_qkv", {"n_q": 5120, "n_kv": 1024, "k": 5120, "bias": 1})


@pytest.fixture(scope="module")
def pool() -> Iterator[CompilePool]:
    with CompilePool(workers=1, timeout_s=120) as pool:
        yield pool


def problem_of(shape: tuple[str, dict[str, int]], batch: int, dtype: str = "bf16") -> Problem:
    kernel, dims = shape
    return spec_of(kernel).space.problem(dtype=dtype, batch=batch, **dims)


def default_of(problem: Problem, device: Device) -> Config:
    return spec_of(problem.kernel).space.default(problem, device)


def compiled(pool: CompilePool, device: Device, wanted: Sequence[tuple[Problem, Config]]) -> list[CompileOutcome]:
    """The outcome of every launch of every plan, the split's reduction included."""
    jobs = []
    for row, (problem, config) in enumerate(wanted):
        launches = spec_of(problem.kernel).meta_plan(problem, config, device).launches
        jobs += [
            CompileJob(
                f"{row}.{unit}".encode(), problem.kernel, problem.dtype, problem.batch, problem.signature,
                config.json(), device.name, unit,
            )
            for unit in range(len(launches))
        ]  # fmt: skip
    outcomes = {outcome.key: outcome for outcome in pool.compile(jobs)}
    return [outcomes[job.key] for job in jobs]


def facts_of(outcome: CompileOutcome, device: Device) -> Any:
    assert outcome.facts is not None, outcome.error
    assert outcome.facts.shared_bytes <= device.arch.shared_limit_bytes
    return outcome.facts


@pytest.mark.parametrize("arch", ARCHS)
def test_defaults(pool: CompilePool, arch: str) -> None:
    device = resolve(arch)
    shapes = [
        (O_PROJ, 1), (QKV_BIAS, 4), (DENSE_GATE_UP, 1), (O_PROJ, 16), (QKV, 64), (DENSE_GATE_UP, 16),
        (DENSE_DOWN, 256), (LM_HEAD, 256), (("rms_norm", {"hidden": 5120}), 8), (("add_rms_norm", {"hidden": 2048}), 8),
    ]  # fmt: skip
    wanted = [(problem, default_of(problem, device)) for problem in (problem_of(*shape) for shape in shapes)]
    for outcome in compiled(pool, device, wanted):
        facts = facts_of(outcome, device)
        assert facts.spills == 0
        assert facts.scratch_bytes == 0


@pytest.mark.parametrize(
    ("arch", "dtype"), [("gfx942", "fp32"), ("sm_90", "fp32"), ("gfx950", "fp16"), ("sm_100", "fp16")]
)
def test_defaults_of_other_types(pool: CompilePool, arch: str, dtype: str) -> None:
    device = resolve(arch)
    problems = [problem_of(QKV, 2, dtype), problem_of(DENSE_GATE_UP, 32, dtype)]
    for outcome in compiled(pool, device, [(problem, default_of(problem, device)) for problem in problems]):
        assert facts_of(outcome, device).spills == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_dot_form_uses_the_matrix_unit(pool: CompilePool, arch: str) -> None:
    device = resolve(arch)
    problem = problem_of(O_PROJ, 64)
    main, *_ = compiled(pool, device, [(problem, default_of(problem, device))])
    names = {name for name, _ in facts_of(main, device).mfma}
    wanted = {"gfx942": "v_mfma", "gfx950": "v_mfma", "sm_90": "wgmma", "sm_100": "tcgen05"}[arch]
    assert any(wanted in name for name in names), names


@pytest.mark.parametrize("arch", ARCHS)
def test_random_legal_configs(pool: CompilePool, arch: str) -> None:
    """Any legal config compiles; what needs too much shared memory is found by the compiler's own number."""
    device = resolve(arch)
    generator = np.random.default_rng(11)
    wanted = []
    for shape, batch in ((O_PROJ, 2), (QKV, 8), (DENSE_GATE_UP, 24), (DENSE_DOWN, 128)):
        problem = problem_of(shape, batch)
        feasible = spec_of(problem.kernel).space.enumerate(problem, device)
        wanted.append((problem, feasible.config(int(generator.integers(len(feasible))))))
    for outcome in compiled(pool, device, wanted):
        assert outcome.facts is not None, outcome.error
