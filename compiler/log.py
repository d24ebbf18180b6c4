"""The backend's log: the logger `paiton`, which TORCH_LOGS=paiton and +paiton switch on by themselves.

Torch reads any importable module's name there, so nothing needs to be registered. INFO has one table for each graph,
DEBUG the matchers' tracebacks; warnings always come out.
"""

from __future__ import annotations

import logging
import threading

LOG = logging.getLogger("paiton")

_said: set[str] = set()
_lock = threading.Lock()


def warn_once(message: str) -> bool:
    """Log a warning the first time this process has it to say; returns whether this was the first time."""
    with _lock:
        if message in _said:
            return False
        _said.add(message)
    LOG.warning("%s", message)
    return True


def forget() -> None:
    """Let every warning be said again."""
    with _lock:
        _said.clear()
