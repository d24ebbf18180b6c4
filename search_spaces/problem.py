"""Problem: what one kernel launch has to compute, without saying how."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}

_BASE_FIELDS = frozenset({"kernel", "dtype", "batch"})
_MAX_DIM = 1 << 31


class InvalidProblem(ValueError):
    """A problem whose numbers no kernel of ours can compute."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A kernel's name, element type, batch bucket and, in subclasses, its model dimensions (all integers).

    `batch` counts tokens of one forward pass: sequences in decode, prompt tokens in prefill.
    Raises InvalidProblem for a dtype we have no kernel for, a batch below 1 or a negative dimension.
    """

    kernel: str
    dtype: str
    batch: int

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise InvalidProblem(f"dtype {self.dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
        if self.batch < 1:
            raise InvalidProblem(f"batch {self.batch} of {self.kernel} is not a positive number")
        for name, value in self.dims().items():
            if not 0 <= value < _MAX_DIM:
                raise InvalidProblem(f"{name}={value} of {self.kernel} is outside 0..{_MAX_DIM - 1}")

    @property
    def itemsize(self) -> int:
        """Bytes of one element of activations and weights."""
        return DTYPE_BYTES[self.dtype]

    def dims(self) -> dict[str, int]:
        """The model dimensions by name, sorted."""
        names = sorted(f.name for f in dataclasses.fields(self) if f.name not in _BASE_FIELDS)
        return {name: int(getattr(self, name)) for name in names}

    @property
    def signature(self) -> str:
        """Canonical text of the dimensions, part of every database key: `hidden=2048,inter=768`."""
        return ",".join(f"{name}={value}" for name, value in self.dims().items())

    def with_batch(self, batch: int) -> Problem:
        """The same problem at another batch."""
        return dataclasses.replace(self, batch=batch)

    def __str__(self) -> str:
        return f"{self.kernel}[{self.signature}] {self.dtype} batch {self.batch}"


def parse_signature(signature: str) -> dict[str, int]:
    """`hidden=2048,inter=768` -> {"hidden": 2048, "inter": 768}. Raises InvalidProblem."""
    dims: dict[str, int] = {}
    for part in signature.split(",") if signature else []:
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier() or not value.isdigit() or len(value) > 10:
            raise InvalidProblem(f"signature {signature[:120]!r} has the part {part[:40]!r}, expected name=integer")
        dims[name] = int(value)
    return dims
