"""Real compiles for GPUs that are not here, in real worker processes: facts, limits, failures, memory of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paiton.autotune.compile_pool import CompileJob, CompileOutcome, CompilePool
from paiton.autotune.objective import EstimateObjective
from paiton.autotune.precompile import Precompiler, judged
from paiton.cache.key import Cell
from paiton.cache.rows import TrialRow, TrialState
from paiton.cache.store import ConfigStore
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.model.facts import CompileFacts

SPEC = spec_of("rms_norm")
PROBLEM = SPEC.space.problem(dtype="bf16", batch=4, hidden=1024)
CONFIGS = [Config.of(BLOCK_H=1024, num_warps=1), Config.of(BLOCK_H=512, num_warps=1)]
DEVICES = [resolve("gfx942"), resolve("sm_90")]


@pytest.fixture(scope="module")
def pool() -> Iterator[CompilePool]:
    """One worker: importing torch and triton is most of what these tests take."""
    with CompilePool(workers=1, timeout_s=120.0) as pool:
        yield pool


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConfigStore]:
    with ConfigStore.open(tmp_path / "tuned.db") as store:
        yield store


def _spent(precompiler: Precompiler) -> tuple[int, int, int]:
    counts = precompiler.counts
    return counts.asked, counts.hits, counts.compiled


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_facts_of_an_absent_gpu_and_no_second_compile(
    device: Device, pool: CompilePool, store: ConfigStore, tmp_path: Path
) -> None:
    precompiler = Precompiler(device, pool, store)
    compiled = precompiler.compile(SPEC, PROBLEM, CONFIGS)
    assert [each.config for each in compiled] == CONFIGS
    for each in compiled:
        assert each.state is TrialState.OK, each.error
        assert each.facts is not None and each.facts.launches == 1
        assert 0 < each.facts.registers <= 512 and each.facts.spills == 0
        assert 0 <= each.facts.shared_bytes <= device.arch.shared_limit_bytes
        assert each.facts.code_bytes > 0 and each.facts.global_loads > 0 and each.facts.mfma == ()
    assert _spent(precompiler) == (2, 0, 2) and precompiler.counts.seconds > 0

    assert precompiler.compile(SPEC, PROBLEM.with_batch(64), CONFIGS) == compiled, "one binary for all batches"
    assert _spent(precompiler) == (4, 2, 2)
    with ConfigStore.open(tmp_path / "tuned.db") as reopened:
        another = Precompiler(device, pool, reopened)
        assert another.compile(SPEC, PROBLEM, CONFIGS) == compiled
        assert _spent(another) == (2, 2, 0)


def test_a_matrix_kernel_shows_its_matrix_instructions(pool: CompilePool, store: ConfigStore) -> None:
    spec = spec_of("linear")
    problem = spec.space.problem(dtype="bf16", batch=16, n=64, k=256, bias=0, residual=0)
    device = resolve("gfx942")
    config = Config.of(
        DOT=1, BLOCK_M=16, BLOCK_N=16, BLOCK_K=64, SPLIT_K=2, XCD_REMAP=0, num_warps=1, num_stages=2, waves_per_eu=0,
        matrix_instr_nonkdim=16, kpack=1,
    )  # fmt: skip
    assert spec.space.faults(config, problem, device) == []
    (compiled,) = Precompiler(device, pool, store).compile(spec, problem, [config])
    assert compiled.state is TrialState.OK and compiled.facts is not None
    assert compiled.facts.mfma_count > 0 and compiled.facts.launches == 2, "a split of k adds the reduction"


def test_over_the_limit_is_typed_recorded_and_not_retried(pool: CompilePool, store: ConfigStore) -> None:
    device = resolve("gfx942")
    tiny = dataclasses.replace(device, arch=dataclasses.replace(device.arch, shared_limit_bytes=1))
    config = Config.of(BLOCK_H=1024, num_warps=2)
    precompiler = Precompiler(tiny, pool, store)
    (compiled,) = precompiler.compile(SPEC, PROBLEM, [config])
    assert (compiled.state, compiled.facts) == (TrialState.OVER_LIMIT, None)
    words = compiled.error.split()
    assert words[0] == "LDS" and int(words[1]) > 1 and words[2:] == [">", "1", "bytes", "on", "gfx942"]
    assert precompiler.counts.failures == {"over_limit": 1}
    again = Precompiler(tiny, pool, store)
    assert again.compile(SPEC, PROBLEM, [config]) == [compiled] and again.counts.compiled == 0


@pytest.mark.parametrize(("arch", "name"), [("gfx942", "LDS"), ("sm_90", "shared memory")])
def test_the_limit_itself_is_allowed(arch: str, name: str) -> None:
    device = resolve(arch)
    limit = device.arch.shared_limit_bytes

    def outcome(shared: int) -> CompileOutcome:
        return judged(
            CompileOutcome(b"k" * 16, TrialState.OK, 1.0, CompileFacts(shared_bytes=shared, registers=1)), device
        )

    assert outcome(limit).state is TrialState.OK
    assert outcome(limit + 1).error == f"{name} {limit + 1} > {limit} bytes on {arch}"
    failed = CompileOutcome(b"k" * 16, TrialState.TIMEOUT, 1.0, error="late")
    assert judged(failed, device) is failed


def test_a_compile_error_is_typed_recorded_and_not_retried(pool: CompilePool, store: ConfigStore) -> None:
    """A block that is no power of two: Triton refuses `tl.arange`."""
    wrong = Config.of(BLOCK_H=1000, num_warps=1)
    precompiler = Precompiler(resolve("gfx942"), pool, store)
    compiled, fine = precompiler.compile(SPEC, PROBLEM, [wrong, CONFIGS[0]])
    assert compiled.state is TrialState.COMPILE_ERROR and fine.state is TrialState.OK
    assert compiled.error.startswith("CompilationError") and "\n" not in compiled.error and len(compiled.error) <= 500
    again = Precompiler(resolve("gfx942"), pool, store)
    assert again.compile(SPEC, PROBLEM, [wrong])[0] == compiled and again.counts.compiled == 0


def test_a_compile_that_takes_too_long_is_typed_recorded_and_not_retried(store: ConfigStore) -> None:
    device = resolve("gfx942")
    with CompilePool(workers=1, timeout_s=0.001) as hasty:
        precompiler = Precompiler(device, hasty, store)
        begin = time.monotonic()
        (compiled,) = precompiler.compile(SPEC, PROBLEM, CONFIGS[:1])
        assert time.monotonic() - begin < 120
        assert (compiled.state, compiled.error) == (TrialState.TIMEOUT, "passed the limit of 0.001 s")
        assert precompiler.compile(SPEC, PROBLEM, CONFIGS[:1]) == [compiled] and precompiler.counts.compiled == 1


def test_the_estimate_scores_what_compiled_and_recalls_it(pool: CompilePool, store: ConfigStore) -> None:
    device = resolve("gfx942")
    objective = EstimateObjective(device, Precompiler(device, pool, store))
    wrong = Config.of(BLOCK_H=1000, num_warps=1)
    good, bad = objective.evaluate(SPEC, PROBLEM, [CONFIGS[0], wrong])
    assert good.state is TrialState.OK and good.value is not None and good.value > 0 and good.facts is not None
    assert (bad.state, bad.value) == (TrialState.COMPILE_ERROR, None) and bad.error
    cell = Cell(
        arch="gfx942", device="MI300X", kernel="rms_norm", kernel_digest=SPEC.digest, signature=PROBLEM.signature,
        dtype="bf16", batch=4,
    )  # fmt: skip

    def stored(evaluation: Any, **changes: Any) -> TrialRow:
        facts = evaluation.facts.json() if evaluation.facts else None
        row = TrialRow(
            cell=cell, params_json=evaluation.config.json(), state=evaluation.state, told=1.0, score=evaluation.value,
            error=evaluation.error, facts_json=facts,
        )  # fmt: skip
        return dataclasses.replace(row, **changes)

    assert objective.recall(PROBLEM, stored(good)) == good
    assert objective.recall(PROBLEM, stored(good, score=99.0)) == good, "scored by today's model, on the stored facts"
    refused = stored(good, state=TrialState.ILLEGAL, score=None, error="no program can be resident")
    assert objective.recall(PROBLEM, refused) == good, "so said another model; the facts stand"
    assert objective.recall(PROBLEM, stored(bad)) == bad
    assert objective.recall(PROBLEM, stored(good, facts_json=None)) is None
    assert objective.confirm(PROBLEM, [good, bad], CONFIGS[0]) == [good, bad]


def test_a_crashed_compiler_is_typed(pool: CompilePool) -> None:
    """A job the worker cannot even read ends it; the next job finds a new one."""
    bad = CompileJob(b"a" * 16, "rms_norm", "bf16", 4, "nonsense", CONFIGS[0].json(), "MI300X", 0)
    (outcome,) = pool.compile([bad])
    assert (outcome.state, outcome.error) == (TrialState.CRASH, "the worker ended with exit code 1")
    good = dataclasses.replace(bad, signature=PROBLEM.signature)
    (outcome,) = pool.compile([good])
    assert outcome.state is TrialState.OK and outcome.facts is not None and outcome.facts.registers > 0
