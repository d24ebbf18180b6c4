"""moe_grouped and router compile for every arch, within its shared memory; the defaults spill nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from paiton.autotune.compile_pool import CompileJob, CompileOutcome, CompilePool
from paiton.kernels_triton.moe_grouped import MOE_GROUPED_SPEC
from paiton.kernels_triton.router import ROUTER_SPEC
from paiton.kernels_triton.spec import KernelSpec
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem

ARCHS = ("gfx942", "gfx950", "sm_90", "sm_100")
GEMMS = (2, 3)
"""Positions of gate_up and down among the launches of moe_grouped."""
QWEN3_30B = {"experts": 128, "top_k": 8, "hidden": 2048, "inter": 768}
QWEN3_235B = {"experts": 128, "top_k": 8, "hidden": 4096, "inter": 1536}
MATRIX = {"gfx942": "v_mfma", "gfx950": "v_mfma", "sm_90": "wgmma", "sm_100": "tcgen05"}


@pytest.fixture(scope="module")
def pool():
    with CompilePool(workers=1, timeout_s=120) as pool:
        yield pool


def compiled(
    pool: CompilePool, spec: KernelSpec, device: Device, wanted: Sequence[tuple[Problem, Config, Sequence[int]]]
) -> list[CompileOutcome]:
    """The outcomes in the order of `wanted`: (problem, config, launches of its plan)."""
    jobs = [
        CompileJob(
            f"{row}.{unit}".encode(), spec.name, problem.dtype, problem.batch, problem.signature, config.json(),
            device.name, unit,
        )
        for row, (problem, config, units) in enumerate(wanted)
        for unit in units
    ]  # fmt: skip
    outcomes = {outcome.key: outcome for outcome in pool.compile(jobs)}
    return [outcomes[job.key] for job in jobs]


def facts_of(outcome: CompileOutcome, device: Device):
    assert outcome.facts is not None, outcome.error
    assert outcome.facts.shared_bytes <= device.arch.shared_limit_bytes
    return outcome.facts


@pytest.mark.parametrize("arch", ARCHS)
def test_defaults(pool: CompilePool, arch: str) -> None:
    device = resolve(arch)
    space = MOE_GROUPED_SPEC.space
    wanted = []
    for dims, batch, units in ((QWEN3_30B, 32, (0, 1, 2, 3, 4)), (QWEN3_235B, 4096, GEMMS)):
        problem = space.problem(dtype="bf16", batch=batch, **dims)
        wanted.append((problem, space.default(problem, device), units))
    outcomes = compiled(pool, MOE_GROUPED_SPEC, device, wanted)
    found = [facts_of(outcome, device) for outcome in outcomes]
    assert all(facts.spills == 0 and facts.scratch_bytes == 0 for facts in found)
    assert all(facts.mfma_count > 0 for facts in found[2:4] + found[5:])
    assert all(MATRIX[arch] in name for facts in found[5:7] for name, _ in facts.mfma)


@pytest.mark.parametrize(("arch", "dtype"), [("gfx942", "fp32"), ("sm_90", "fp32"), ("gfx950", "fp16")])
def test_defaults_of_other_types(pool: CompilePool, arch: str, dtype: str) -> None:
    device = resolve(arch)
    problem = MOE_GROUPED_SPEC.space.problem(dtype=dtype, batch=1024, **QWEN3_30B)
    config = MOE_GROUPED_SPEC.space.default(problem, device)
    for outcome in compiled(pool, MOE_GROUPED_SPEC, device, [(problem, config, GEMMS)]):
        assert facts_of(outcome, device).spills == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_random_legal_configs(pool: CompilePool, arch: str) -> None:
    """Shared memory is judged by the compiler's own number, so a config may be too large for it; none may fail."""
    device = resolve(arch)
    generator = np.random.default_rng(7)
    wanted = []
    for batch in (32, 1024):
        problem = MOE_GROUPED_SPEC.space.problem(dtype="bf16", batch=batch, **QWEN3_30B)
        feasible = MOE_GROUPED_SPEC.space.enumerate(problem, device)
        wanted.append((problem, feasible.config(int(generator.integers(len(feasible)))), GEMMS))
    for outcome in compiled(pool, MOE_GROUPED_SPEC, device, wanted):
        assert outcome.facts is not None, outcome.error
        assert outcome.facts.mfma_count > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_router(pool: CompilePool, arch: str) -> None:
    device = resolve(arch)
    wanted = []
    for batch, experts in ((1, 128), (256, 60)):
        problem = ROUTER_SPEC.space.problem(dtype="bf16", batch=batch, experts=experts, top_k=8, renormalize=1)
        wanted.append((problem, ROUTER_SPEC.space.default(problem, device), (0,)))
    for outcome in compiled(pool, ROUTER_SPEC, device, wanted):
        facts = facts_of(outcome, device)
        assert facts.spills == 0 and facts.registers <= 64
