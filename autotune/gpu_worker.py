"""A GPU worker: a process of its own that checks and times configs, one JSON line each, until its input ends.

Started as `python -m paiton.autotune.gpu_worker DEVICE LIMIT_S`. After a fault that spoils the GPU context it answers
and ends; a kernel that hangs is ended from outside. Either way the driver starts a fresh one. As a compile worker does,
it ends itself where a driver that was killed can no longer do it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any, TextIO

GRACE_S = 30.0


def main() -> None:
    """Serve jobs from standard input."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.pop("TRITON_INTERPRET", None)
    from .gpu_job import GpuSession, describe_gpu  # imports torch and triton: after the process is set up

    session = GpuSession(sys.argv[1])
    _write(replies, {"ready": True})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]) + GRACE_S)
        job = json.loads(line)
        reply = describe_gpu() if job["op"] == "describe" else session.answer(job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, reply)
        if reply.get("is_fatal"):
            return


def _write(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
