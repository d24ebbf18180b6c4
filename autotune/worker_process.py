"""What every worker process does alike: keep its output for replies, leave no core file, and end when nobody is left.

Standard library only, so that a process is set up before torch and triton are imported.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

GRACE_S = 30.0
"""The driver ends a job at its limit. A driver that was killed cannot: then an alarm does, this much later."""


def take_output() -> TextIO:
    """Standard output for replies alone: whatever a compiler or a driver prints goes to standard error from now on.

    Also turns core files and Triton's interpreter off.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.pop("TRITON_INTERPRET", None)
    return replies


def write_line(replies: TextIO, reply: Mapping[str, Any]) -> None:
    """One reply, as one JSON line, sent at once."""
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


@contextmanager
def alarm_after(seconds: float) -> Iterator[None]:
    """End the process when the block takes longer: without a handler the signal acts even inside a compiler that never
    returns to Python."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
