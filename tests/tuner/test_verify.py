"""The correctness gate: what passes, what does not, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from paiton.autotune.verify import fault_of, poison
from paiton.kernels_triton.launch import Plan
from paiton.kernels_triton.tolerance import TOLERANCES


def _ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_the_tolerance_of_the_dtype_is_the_border(dtype: str) -> None:
    tolerance = TOLERANCES[dtype]
    border = tolerance.absolute + tolerance.relative
    inside, outside = _ones(4), _ones(4)
    inside[2] += 0.99 * border
    outside[2] += 1.01 * border
    assert fault_of([inside.double()], [_ones(4).double()], dtype) == ""
    fault = fault_of([outside], [_ones(4)], dtype)
    assert fault == f"output 0: 1 of 4 elements are off, the worst {float(outside[2]):.6g} where 1 is expected"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_off(bad: float) -> None:
    actual = _ones(2, 2)
    actual[1, 0] = bad
    assert f"1 of 4 elements are off, the worst {bad:.6g} where 1" in fault_of([actual], [_ones(2, 2)], "bf16")


def test_the_worst_of_several_is_named() -> None:
    actual = torch.tensor([1.0, 3.0, 9.0])
    assert fault_of([actual], [_ones(3)], "fp32") == (
        "output 0: 2 of 3 elements are off, the worst 9 where 1 is expected"
    )


def test_integers_are_exact() -> None:
    wanted = torch.tensor([1, 2, 3], dtype=torch.int32)
    assert fault_of([wanted.long()], [wanted], "bf16") == ""
    assert fault_of([wanted + 1], [wanted], "bf16") == "output 0 has 3 of 3 integers that differ from the reference"


def test_number_and_shape_of_outputs() -> None:
    assert fault_of([_ones(2)], [_ones(2), _ones(2)], "bf16") == "1 outputs, the reference has 2"
    assert fault_of([_ones(2, 1)], [_ones(2)], "bf16") == "output 0 is (2, 1), the reference (2,)"
    assert fault_of([_ones(2), _ones(3)], [_ones(2), _ones(4)], "bf16") == "output 1 is (3,), the reference (4,)"
    assert fault_of([_ones(0)], [_ones(0)], "bf16") == ""


def test_poison_spares_the_inputs() -> None:
    cache = _ones(4, 4)
    fresh, ids = torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.int32)
    poison(Plan((), (fresh, ids, cache[1])), (cache, 8, None))
    assert fresh.isnan().all() and (ids == 2**31 - 1).all()
    assert (cache == 1).all(), "an output that is an input, such as a KV cache, keeps its contents"
