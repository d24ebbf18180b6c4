"""What one call of an operator asks the database: kernel, dimensions, tokens and element type."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import NamedTuple

import torch

from ..search_spaces.problem import InvalidProblem, Problem
from ..search_spaces.registry import space_of

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class Ask(NamedTuple):
    """One tuning problem, cheap to make and to look up: made on every call. `dims` in the order of the fields that the
    kernel's Problem declares."""

    kernel: str
    dims: tuple[int, ...]
    batch: int
    dtype: torch.dtype

    def problem(self) -> Problem | None:
        """The Problem; None where the kernel cannot compute it (another dtype, no rows, an odd head)."""
        dtype = DTYPES.get(self.dtype)
        if dtype is None:
            return None
        try:
            named = dict(zip(dim_names(self.kernel), self.dims, strict=True))
            return space_of(self.kernel).problem(dtype=dtype, batch=self.batch, **named)
        except InvalidProblem:
            return None


Asks = tuple[tuple[Ask, ...], ...]
"""The ways to run one call: of each, every kernel that takes part. Empty where no kernel of ours can."""


@functools.cache
def dim_names(kernel: str) -> tuple[str, ...]:
    """The dimensions of a kernel's problems in the order that `Ask.dims` has."""
    own = [field.name for field in fields(space_of(kernel).problem_type)]
    return tuple(name for name in own if name not in {field.name for field in fields(Problem)})


def rows_in(x: torch.Tensor) -> int:
    """Rows of x [..., K]."""
    return x.numel() // x.shape[-1] if x.shape[-1] else 0
