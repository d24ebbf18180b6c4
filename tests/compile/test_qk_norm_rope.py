"""qk_norm_rope compiles for every arch: nothing spills, nothing goes through shared memory, every load has 16 bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from paiton.autotune.compile_pool import CompileJob, CompilePool
from paiton.kernels_triton.qk_norm_rope import QK_NORM_ROPE_SPEC as SPEC
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.model.facts import CompileFacts
from paiton.search_spaces.problem import Problem

EACH_ARCH = pytest.mark.parametrize("arch", ["gfx942", "gfx950", "sm_90", "sm_100"])
QWEN3_30B = {"q_heads": 32, "kv_heads": 4, "head_dim": 128, "qk_norm": 1}
QWEN3_30B_SHARD = {"q_heads": 4, "kv_heads": 1, "head_dim": 128, "qk_norm": 1}
QWQ = {"q_heads": 40, "kv_heads": 8, "head_dim": 128, "qk_norm": 0}
HEAD_80 = {"q_heads": 32, "kv_heads": 32, "head_dim": 80, "qk_norm": 0}


@pytest.fixture(scope="module")
def pool() -> Iterator[CompilePool]:
    with CompilePool(workers=1, timeout_s=120) as pool:
        yield pool


def compiled(pool: CompilePool, device: Device, wanted: Sequence[tuple[Problem, Config]]) -> list[CompileFacts]:
    jobs = [
        CompileJob(
            str(row).encode(), SPEC.name, problem.dtype, problem.batch, problem.signature, config.json(), device.name, 0
        )
        for row, (problem, config) in enumerate(wanted)
    ]
    outcomes = {outcome.key: outcome for outcome in pool.compile(jobs)}
    facts = []
    for job in jobs:
        found = outcomes[job.key].facts
        assert found is not None, outcomes[job.key].error
        facts.append(found)
    return facts


def default_of(device: Device, batch: int, dims: dict[str, int], dtype: str = "bf16") -> tuple[Problem, Config]:
    problem = SPEC.space.problem(dtype=dtype, batch=batch, **dims)
    return problem, SPEC.space.default_config(problem, device)


@EACH_ARCH
def test_defaults(pool: CompilePool, arch: str) -> None:
    device = resolve(arch)
    cases = [(1, QWEN3_30B, "bf16"), (8192, QWEN3_30B, "bf16"), (8192, QWEN3_30B_SHARD, "bf16"), (64, QWQ, "fp16")]
    cases += [(64, HEAD_80, "bf16"), (64, QWEN3_30B, "fp32")]
    for facts in compiled(pool, device, [default_of(device, *case) for case in cases]):
        assert facts.spills == 0 and facts.scratch_bytes == 0
        assert facts.shared_bytes == 0 and facts.barriers == 0
        assert facts.registers <= 64
        assert facts.global_load_bytes == 16 * facts.global_loads


@EACH_ARCH
def test_random_legal_configs(pool: CompilePool, arch: str) -> None:
    device = resolve(arch)
    generator = np.random.default_rng(5)
    wanted = []
    for batch, dims in ((2, QWEN3_30B), (300, QWEN3_30B_SHARD), (4096, QWQ), (64, HEAD_80)):
        problem = SPEC.space.problem(dtype="bf16", batch=batch, **dims)
        feasible = SPEC.space.enumerate(problem, device)
        wanted.append((problem, feasible.config(int(generator.integers(len(feasible))))))
    for facts in compiled(pool, device, wanted):
        assert facts.spills == 0 and facts.shared_bytes == 0
