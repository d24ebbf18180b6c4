"""A compile worker: a process of its own that reads jobs and writes outcomes, one JSON line each, until its input ends.

Started as `python -m paiton.autotune.compile_worker LIMIT_S [--keep-cache]`. A compiler that hangs or crashes takes
this process with it and nothing else. Standard output is kept for the outcomes: whatever a compiler prints goes to
standard error. With `--keep-cache` binaries stay in Triton's own cache, where a launch finds them; else none stays.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from typing import TextIO

from .worker_process import GRACE_S, alarm_after, take_output, write_line

KEEP_CACHE = "--keep-cache"


def main() -> None:
    """Serve jobs from standard input."""
    outcomes = take_output()
    os.nice(5)
    limit_s = float(sys.argv[1])
    if KEEP_CACHE in sys.argv[2:]:
        _serve(sys.stdin, outcomes, None, limit_s)
        return
    with tempfile.TemporaryDirectory(prefix="paiton-compile-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        _serve(sys.stdin, outcomes, cache, limit_s)


def _serve(jobs: TextIO, outcomes: TextIO, private_cache: str | None, limit_s: float) -> None:
    # Imports torch and triton, which takes seconds: after the process is set up.
    from .compile_job import run_job

    write_line(outcomes, {"ready": True})
    for line in jobs:
        before = _cpu_seconds()
        with alarm_after(limit_s + GRACE_S):
            answer = run_job(json.loads(line), keeps_binary=private_cache is None)
        answer["cpu_seconds"] = _cpu_seconds() - before
        answer["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        write_line(outcomes, answer)
        if private_cache is not None:
            _empty(private_cache)


def _cpu_seconds() -> float:
    """CPU time of this process and of the assemblers it has called."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _empty(folder: str) -> None:
    """Drop Triton's files of the last job: only the facts are kept, the binary is made again where it is used."""
    import shutil

    for name in os.listdir(folder):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


if __name__ == "__main__":
    main()
