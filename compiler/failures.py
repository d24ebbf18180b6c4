"""A launch that fails is computed by torch instead: said once, counted, and its config not tried again.

What a compiler or a chip can refuse is caught: Triton's errors (a tile too large for shared memory, a failed pass), and
ValueErrors of a plan (a stride the kernel cannot take). Running out of memory and a device that has faulted are not:
torch could not go on either, and the user must see it.
"""

from __future__ import annotations

import threading
from collections import Counter

import torch

from .choice import Choice, Way
from .log import warn_once

_DEVICE_FAULTS = ("out of memory", "illegal memory access", "unspecified launch failure", "device-side assert")

_Bad = tuple[str, str, str, str]
_bad: set[_Bad] = set()
_counts: Counter[str] = Counter()
_lock = threading.Lock()


def is_launch_failure(error: Exception) -> bool:
    """Whether torch may compute the call instead."""
    from triton.errors import TritonError

    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
        return False
    if isinstance(error, RuntimeError):
        # A failed pass of Triton's compiler, or a refusal of the driver: both are plain RuntimeErrors.
        return not any(word in str(error).lower() for word in _DEVICE_FAULTS)
    return isinstance(error, (TritonError, ValueError))


def note(way: Way, error: BaseException) -> bool:
    """Count and report a failed launch. A config that does not compile or fit is not chosen again in this process; a
    ValueError speaks of the tensors of one call, so the config stays. Returns whether a config is out now."""
    kernels = " + ".join(choice.problem.kernel for choice in way)
    is_config = not isinstance(error, ValueError)
    with _lock:
        _counts[kernels] += 1
        if is_config:
            _bad.update(_identity(choice) for choice in way)
    first_line = next(iter(str(error).strip().splitlines()), "")[:300]
    configs = "; ".join(str(choice.config) for choice in way)
    warn_once(f"{kernels} [{configs}] could not be launched, torch computes it: {type(error).__name__}: {first_line}")
    return is_config


def is_bad(choice: Choice) -> bool:
    """Whether a launch of this config failed before, for these dimensions on this device."""
    return _identity(choice) in _bad


def counts() -> dict[str, int]:
    """Calls whose launch failed, by kernel."""
    with _lock:
        return dict(_counts)


def forget() -> None:
    """Try every config again."""
    with _lock:
        _bad.clear()
        _counts.clear()


def _identity(choice: Choice) -> _Bad:
    problem = choice.problem
    return problem.kernel, f"{problem.signature} {problem.dtype}", choice.device.name, choice.config.json()
