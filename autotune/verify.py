"""Correctness of a candidate: its outputs against the reference, before its time counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..kernels_triton.launch import Plan
from ..kernels_triton.tolerance import TOLERANCES


def poison(plan: Plan, inputs: Sequence[object]) -> None:
    """Fill the outputs that are not inputs with NaN (integers: their largest value), so that a missed store shows."""
    owned = {value.untyped_storage().data_ptr() for value in inputs if isinstance(value, torch.Tensor)}
    for output in plan.outputs:
        if output.untyped_storage().data_ptr() in owned:
            continue
        is_float = output.dtype.is_floating_point
        output.fill_(float("nan") if is_float else torch.iinfo(output.dtype).max)


def fault_of(outputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], dtype: str) -> str:
    """Empty when every output agrees within the tolerance of `dtype`, else one sentence about the worst element."""
    tolerance = TOLERANCES[dtype]
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs, the reference has {len(expected)}"
    for position, (actual, wanted) in enumerate(zip(outputs, expected, strict=True)):
        if actual.shape != wanted.shape:
            return f"output {position} is {tuple(actual.shape)}, the reference {tuple(wanted.shape)}"
        if not actual.dtype.is_floating_point:
            different = int((actual.to(torch.int64) != wanted.to(torch.int64)).sum())
            if different:
                return f"output {position} has {different} of {actual.numel()} integers that differ from the reference"
            continue
        difference = (actual.double() - wanted.double()).abs()
        excess = difference - (tolerance.absolute + tolerance.relative * wanted.double().abs())
        is_bad = ~(excess <= 0)  # NaN compares false, hence is bad
        if bool(is_bad.any()):
            at = int(torch.nan_to_num(excess, nan=float("inf")).flatten().argmax())
            return (
                f"output {position}: {int(is_bad.sum())} of {actual.numel()} elements are off, the worst "
                f"{float(actual.flatten()[at]):.6g} where {float(wanted.flatten()[at]):.6g} is expected"
            )
    return ""
