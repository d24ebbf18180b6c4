"""A user's file with more values for a kernel's parameters: `{"linear": {"BLOCK_K": [2048]}}`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..search_spaces.arch import Device
from ..search_spaces.config import Value
from ..search_spaces.problem import Problem
from ..search_spaces.registry import KERNEL_NAMES, space_of

MAX_FILE_BYTES = 1 << 16
MAX_VALUES = 64


class SpaceFileError(ValueError):
    """The file is no space extension; the message names the fault."""


def read_space_file(path: Path) -> dict[str, dict[str, tuple[Value, ...]]]:
    """Kernel -> parameter -> extra values. The constraints of each space still apply to them. Raises SpaceFileError."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise SpaceFileError(f"{path} has {size} bytes, at most {MAX_FILE_BYTES} are read")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpaceFileError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, SpaceFileError):
            raise
        raise SpaceFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise SpaceFileError(f'{path} is not a JSON object such as {{"linear": {{"BLOCK_K": [2048]}}}}')
    return {kernel: _parameters(path, kernel, parameters) for kernel, parameters in data.items()}


def _parameters(path: Path, kernel: str, parameters: object) -> dict[str, tuple[Value, ...]]:
    if kernel not in KERNEL_NAMES:
        raise SpaceFileError(f"{path} names the kernel {kernel!r}; known: {', '.join(KERNEL_NAMES)}")
    if not isinstance(parameters, dict):
        raise SpaceFileError(f"{path}: {kernel} is not an object of parameters and lists of values")
    found: dict[str, tuple[Value, ...]] = {}
    for name, values in parameters.items():
        if not isinstance(values, list) or not 1 <= len(values) <= MAX_VALUES or not all(map(_is_value, values)):
            raise SpaceFileError(
                f"{path}: {kernel}.{name} is {str(values)[:60]!r}, "
                f"expected a list of 1 to {MAX_VALUES} positive integers or words"
            )
        found[name] = tuple(values)
    return found


def _is_value(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return (isinstance(value, int) and 1 <= value <= 1 << 20) or (isinstance(value, str) and value.isidentifier())


def check_parameters(
    extra: Mapping[str, Mapping[str, tuple[Value, ...]]], problems: Iterable[Problem], device: Device
) -> None:
    """Whether the kernels of `problems` can take the extra values on the device. Raises SpaceFileError.

    Only numbers can be added: a word, or a switch of 0 and 1, chooses among forms of a kernel, and there are no others.
    """
    first = {problem.kernel: problem for problem in reversed(list(problems))}
    for kernel, parameters in extra.items():
        if kernel not in first:
            continue
        choices = space_of(kernel).choices(first[kernel], device)
        for name, values in parameters.items():
            if name not in choices:
                raise SpaceFileError(
                    f"{name} is no parameter of {kernel} on {device.name}; known: {', '.join(choices)}"
                )
            known = choices[name]
            is_closed = (set(known) <= {0, 1} and 0 in known) or any(isinstance(value, str) for value in known)
            unknown = [value for value in values if value not in known and (is_closed or isinstance(value, str))]
            if unknown:
                can_be = f"one of {', '.join(map(str, known))}" if is_closed else "a positive integer"
                raise SpaceFileError(f"{kernel}.{name} can be {can_be}, not {unknown[0]!r}")
