"""`paiton.tune`: what `autotune run` does, as a function."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .progress import PlainProgress, Progress
from .request import make_request
from .tune import TuneOutcome, run_request


def tune(
    model: str,
    *,
    arch: str | None = None,
    device: str | None = None,
    kernels: Sequence[str] = (),
    batch_sizes: Sequence[int] | None = None,
    prefill_lengths: Sequence[int] | None = None,
    context: int = 4096,
    dtype: str = "bf16",
    tp: int = 1,
    trials: int | None = None,
    budget_s: float | None = None,
    jobs: int | None = None,
    timeout_s: float = 30.0,
    seed: int = 0,
    resume: bool = True,
    estimate: bool = False,
    space_file: str | Path | None = None,
    database: str | Path | None = None,
    progress: Progress | None = None,
) -> TuneOutcome:
    """Tune the kernels of a model for a GPU and store the answers; see `autotune run --help` for each argument.

    >>> outcome = paiton.tune("Qwen3-30B-A3B", arch="gfx942", kernels=["moe_gate_up"], batch_sizes=[1, 8])
    >>> [(row.cell.batch, row.config_json) for row in outcome.summary.rows]

    `budget_s` and `timeout_s` are seconds. Progress goes to standard error as plain lines unless `progress` is given.
    Raises what `make_request` raises, StoreError for a database that cannot be used, WorkerFailed for a broken
    installation.
    """
    request = make_request(
        model, arch=arch, device=device, kernels=kernels, batch_sizes=batch_sizes, prefill_lengths=prefill_lengths,
        context=context, dtype=dtype, tp=tp, trials=trials, budget_s=budget_s, jobs=jobs, timeout_s=timeout_s,
        seed=seed, resume=resume, estimate=estimate, space_file=space_file, database=database,
    )  # fmt: skip
    return run_request(request, progress or PlainProgress(sys.stderr))
