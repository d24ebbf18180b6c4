"""Every spelling of one operation has one name, and what this torch does not have is known."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from paiton.compiler.spellings import CAST, absent, name_of_function, name_of_method


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (operator.add, "add"),
        (torch.add, "add"),
        (operator.iadd, "add_"),
        (operator.itruediv, "div_"),
        (torch.true_divide, "div"),
        (torch.multiply, "mul"),
        (torch.negative, "neg"),
        (torch.concat, "cat"),
        (F.linear, "linear"),
        (torch._C._nn.linear, "linear"),
        (F.silu, "silu"),
        (F.softmax, "softmax"),
        (torch.softmax, "softmax"),
        (F.scaled_dot_product_attention, "sdpa"),
        (torch.rms_norm, "rms_norm"),
        (torch.swapaxes, "transpose"),
        (torch.ops.aten.linear.default, "linear"),
        (torch.ops.aten.bmm, "bmm"),
        (operator.matmul, None),
        (torch.nn.functional.gelu, None),
        (torch.ops.aten.add.Tensor, None),
    ],
)
def test_functions(target: Any, name: str | None) -> None:
    assert name_of_function(target) == name


@pytest.mark.parametrize("name", ["to", "float", "half", "bfloat16", "double", "int", "long", "type"])
def test_every_change_of_dtype_is_a_cast(name: str) -> None:
    """`.int()` too: on a GPU the experts' histogram is taken of `.int()`, on the CPU of `.float()`."""
    assert name_of_method(name) == CAST


@pytest.mark.parametrize(
    ("method", "name"),
    [("multiply", "mul"), ("swapaxes", "transpose"), ("clip", "clamp"), ("add_", "add_"), ("numpy", None)],
)
def test_methods(method: str, name: str | None) -> None:
    assert name_of_method(method) == name


def test_in_place_forms_have_names_of_their_own() -> None:
    assert name_of_method("div_") != name_of_method("div")
    assert name_of_function(operator.imul) != name_of_function(operator.mul)


def test_an_unhashable_target_has_no_name() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

    assert name_of_function(Unhashable()) is None


def test_what_this_version_of_torch_does_not_have() -> None:
    """`torch.silu` was never public, and `F.grouped_mm` is younger than `torch._grouped_mm`; all else is everywhere."""
    assert set(absent()) <= {"silu:silu", "grouped_mm:grouped_mm"}
