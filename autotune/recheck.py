"""Recheck: compile every stored answer from nothing and hold it against its chip's limits."""

from __future__ import annotations

from pathlib import Path

from ..cache.rows import TrialState, TunedRow
from ..cache.store import ConfigStore
from ..kernels_triton.registry import spec_of
from ..search_spaces.arch import device_named
from ..search_spaces.config import Config
from ..search_spaces.registry import KERNEL_NAMES
from .compile_pool import CompileJob, CompilePool
from .precompile import jobs_of, judged

TIMEOUT_S = 120.0


def recheck(path: Path, workers: int) -> tuple[bool, str]:
    """Whether all answers of the current kernels compile and fit, and a sentence that says so. Reads only."""
    with ConfigStore.open(path, read_only=True) as store:
        rows = store.tuned()
    current = [row for row in rows if row.config_json and _is_current(row)]
    jobs: dict[bytes, CompileJob] = {}
    asking: dict[bytes, TunedRow] = {}
    for row in current:
        for job in _jobs(row):
            jobs.setdefault(job.key, job)
            asking.setdefault(job.key, row)
    faults = []
    with CompilePool(workers=workers, timeout_s=TIMEOUT_S) as pool:
        for raw in pool.compile(jobs.values()):
            outcome = judged(raw, device_named(asking[raw.key].cell.device))
            if outcome.state is not TrialState.OK:
                faults.append(f"{asking[raw.key].cell}: {outcome.state.value} {outcome.error}")
    stale = len(rows) - len(current)
    note = f"; {stale} rows are of other kernel versions or name the default" if stale else ""
    if faults:
        return False, f"{len(faults)} of {len(jobs)} binaries fail, first {faults[0]}{note}"
    return (
        True,
        f"{len(current)} answers, {len(jobs)} binaries, each compiled and within its chip's limits{note}",
    )


def _is_current(row: TunedRow) -> bool:
    """Whether the row is of this source of its kernel; another Paiton may have kernels that we lack."""
    cell = row.cell
    return cell.kernel in KERNEL_NAMES and spec_of(cell.kernel).digest == cell.kernel_digest


def _jobs(row: TunedRow) -> list[CompileJob]:
    cell = row.cell
    spec, device = spec_of(cell.kernel), device_named(cell.device)
    problem = spec.space.problem_from(cell.signature, cell.dtype, cell.batch)
    assert row.config_json is not None
    return jobs_of(spec, problem, Config.from_json(row.config_json), device)
