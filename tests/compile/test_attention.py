"""Attention compiles for every arch within its limits; the defaults spill nothing and load 16 bytes at a time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from paiton.autotune.compile_pool import CompileJob, CompileOutcome, CompilePool
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem

KERNELS = ("attention_decode", "attention_decode_fused", "attention_prefill")
EACH_ARCH = pytest.mark.parametrize("arch", ["gfx942", "gfx950", "sm_90", "sm_100"])

# Masks, positions and directions are arguments of a call and not of a problem, so no compile job asks for them.
FORMS = """
import json, sys
import torch
from paiton.autotune.aot import compile_unit, units_of
from paiton.autotune.isa import facts_of
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import resolve

def meta(*shape, dtype=torch.bool):
    return torch.empty(*shape, dtype=dtype, device="meta")

position = meta(1, dtype=torch.int64).expand(8)
FORMS = {
    "attention_decode": {
        "plain": {}, "mask": {3: None, 6: meta(8, 4096)}, "odd mask": {3: position, 6: meta(8, 4097)[:, 1:]},
    },
    "attention_decode_fused": {"plain": {}, "mask": {9: position, 13: meta(1, 4096).expand(8, -1)}},
    "attention_prefill": {"plain": {}, "all": {5: None, 6: False}, "mask": {5: meta(1, 4096, 4096)}},
}
device, found = resolve(sys.argv[1]), {}
for name, forms in FORMS.items():
    spec, more = spec_of(name), {"context": 4096, "qk_norm": 1} if "decode" in name else {}
    if name == "attention_decode":
        del more["qk_norm"]
    problem = spec.space.problem(
        dtype="bf16", batch=8 if more else 4096, q_heads=32, kv_heads=4, head_dim=128, window=0, **more
    )
    config = spec.space.default_config(problem, device)
    for form, changes in forms.items():
        inputs = list(spec.make_inputs(problem, torch_device="meta", seed=0))
        for place, value in changes.items():
            inputs[place:place + 1] = [value]
        for unit in units_of(spec.plan(*inputs, config=config, device=device), device):
            if unit.fn.__name__ != "_combine_splits_kernel":
                facts = facts_of(compile_unit(unit), device)
                found[f"{form} {unit.fn.__name__}"] = (facts.spills, facts.scratch_bytes, facts.shared_bytes)
print(json.dumps(found))
"""
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


@EACH_ARCH
def test_forms_that_no_problem_has(arch: str, tmp_path: Path) -> None:
    """Masks, one 64-bit position of all sequences, both directions: no spills, and K and V are loaded as far ahead.

    Shared memory tells the latter. Triton gives up pipelining for reasons that are hard to see (`range_in_use`).
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FORMS, arch], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    limit = resolve(arch).arch.shared_limit_bytes
    assert len(found) == 9
    for form, (spills, scratch_bytes, shared_bytes) in found.items():
        assert spills == 0 and scratch_bytes == 0 and shared_bytes <= limit, form
        kernel = form.split()[-1]
        if kernel != "_mask_ranges_kernel":
            assert shared_bytes >= found[f"plain {kernel}"][2], form
