"""moe_gate_up and moe_down compile for every arch within its limits; the defaults spill nothing and load 16 bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from paiton.autotune.compile_pool import CompileJob, CompileOutcome, CompilePool
from paiton.kernels_triton.moe_down import MOE_DOWN_SPEC
from paiton.kernels_triton.moe_gate_up import MOE_GATE_UP_SPEC
from paiton.kernels_triton.spec import KernelSpec
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem

ARCHS = ("gfx942", "gfx950", "sm_90", "sm_100")
SPECS = (MOE_GATE_UP_SPEC, MOE_DOWN_SPEC)
QWEN3_30B = {"experts": 128, "top_k": 8, "hidden": 2048, "inter": 768}
QWEN3_235B = {"experts": 128, "top_k": 8, "hidden": 4096, "inter": 1536}
EACH_ARCH = pytest.mark.parametrize("arch", ARCHS)


@pytest.fixture(scope="module")
def pool() -> Iterator[CompilePool]:
    with CompilePool(workers=1, timeout_s=120) as pool:
        yield pool


def compiled(pool: CompilePool, device: Device, wanted: list[tuple[Problem, Config]]) -> list[CompileOutcome]:
    """The outcome of the first launch of each plan: the one that reads the weights."""
    jobs = [
        CompileJob(
            str(row).encode(), problem.kernel, problem.dtype, problem.batch, problem.signature, config.json(),
            device.name, 0,
        )
        for row, (problem, config) in enumerate(wanted)
    ]  # fmt: skip
    outcomes = {outcome.key: outcome for outcome in pool.compile(jobs)}
    return [outcomes[job.key] for job in jobs]


def default_of(spec: KernelSpec, device: Device, batch: int, dims: dict[str, int], dtype: str = "bf16"):
    problem = spec.space.problem(dtype=dtype, batch=batch, **dims)
    return problem, spec.space.default_config(problem, device)


@EACH_ARCH
def test_defaults(pool: CompilePool, arch: str) -> None:
    """Batch 1 takes the GEMV form, batch 8 the tile form; W13 of the 235B model passes 2 GiB."""
    device = resolve(arch)
    cases = [(spec, batch, QWEN3_30B) for spec in SPECS for batch in (1, 8)]
    cases += [(MOE_GATE_UP_SPEC, batch, QWEN3_235B) for batch in (1, 8)]
    outcomes = compiled(pool, device, [default_of(spec, device, batch, dims) for spec, batch, dims in cases])
    for (spec, batch, dims), outcome in zip(cases, outcomes, strict=True):
        assert outcome.facts is not None, outcome.error
        facts = outcome.facts
        assert facts.shared_bytes <= device.arch.shared_limit_bytes
        assert facts.spills == 0 and facts.scratch_bytes == 0, (spec.name, batch, dims)
        assert (facts.mfma_count > 0) == (batch == 8)
        # Weights and activations are loaded 16 bytes wide; ids and routing weights are single words.
        assert facts.global_load_bytes >= 12 * facts.global_loads, (spec.name, batch, dims)


@pytest.mark.parametrize(("arch", "dtype"), [("gfx942", "fp32"), ("gfx950", "fp16"), ("sm_90", "fp32")])
def test_defaults_of_other_types(pool: CompilePool, arch: str, dtype: str) -> None:
    device = resolve(arch)
    wanted = [default_of(spec, device, batch, QWEN3_30B, dtype) for spec in SPECS for batch in (1, 8)]
    for outcome in compiled(pool, device, wanted):
        assert outcome.facts is not None, outcome.error
        assert outcome.facts.shared_bytes <= device.arch.shared_limit_bytes


def test_the_sum_of_the_pairs_compiles(pool: CompilePool) -> None:
    for arch in ARCHS:
        device = resolve(arch)
        problem, config = default_of(MOE_DOWN_SPEC, device, 8, QWEN3_30B)
        job = CompileJob(
            arch.encode(), "moe_down", "bf16", 8, problem.signature, config.json(), device.name, 1
        )  # fmt: skip
        (outcome,) = pool.compile([job])
        assert outcome.facts is not None, outcome.error
        assert outcome.facts.spills == 0 and outcome.facts.shared_bytes == 0


@EACH_ARCH
def test_random_legal_configs(pool: CompilePool, arch: str) -> None:
    """Shared memory and spills are judged by the compiler's own numbers, so a config may fail there; none may raise."""
    device = resolve(arch)
    rng = random.Random(arch)
    wanted = []
    for spec in SPECS:
        for batch, dims in ((1, QWEN3_30B), (256, QWEN3_235B)):
            problem = spec.space.problem(dtype="bf16", batch=batch, **dims)
            feasible = spec.space.enumerate(problem, device)
            wanted.append((problem, feasible.config(rng.randrange(len(feasible)))))
    for (_, config), outcome in zip(wanted, compiled(pool, device, wanted), strict=True):
        assert outcome.facts is not None, outcome.error
        assert (outcome.facts.mfma_count > 0) == (config.word("FORM") == "expert")
