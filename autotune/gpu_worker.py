"""A GPU worker: a process of its own that checks and times configs, one JSON line each, until its input ends.

Started as `python -m paiton.autotune.gpu_worker DEVICE LIMIT_S`. After a fault that spoils the GPU context it answers
and ends; a kernel that hangs is ended from outside. Either way the driver starts a fresh one. As a compile worker does,
it ends itself where a driver that was killed can no longer do it.
"""

from __future__ import annotations

import json
import sys

from .worker_process import GRACE_S, alarm_after, take_output, write_line


def main() -> None:
    """Serve jobs from standard input."""
    replies = take_output()
    from .gpu_job import GpuSession, describe_gpu  # imports torch and triton: after the process is set up

    session = GpuSession(sys.argv[1])
    write_line(replies, {"ready": True})
    for line in sys.stdin:
        with alarm_after(float(sys.argv[2]) + GRACE_S):
            job = json.loads(line)
            reply = describe_gpu() if job["op"] == "describe" else session.answer(job)
        write_line(replies, reply)
        if reply.get("is_fatal"):
            return


if __name__ == "__main__":
    main()
