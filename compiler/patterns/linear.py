"""A linear layer: x [..., K] times a parameter [N, K], with or without a bias. Runs last and takes what is left."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..canonical import arg, dtype, has_only, is_op, is_parameter, is_tensor, ndim, same_size, shape, value
from ..ops.linear import LINEAR
from ..rewriter import Pattern, Rewriter, single
from ..site import need


def check_linear(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """(x, weight, bias) of a `linear` whose weight our kernels can read; Reject otherwise.

    The weight is contiguous [N, K] and a graph input: its size is then fixed, and the launcher may rely on its strides.
    """
    need(has_only(node, "input", "weight", "bias"), "linear with further arguments")
    x, weight, bias = arg(node, 0, "input"), arg(node, 1, "weight"), arg(node, 2, "bias")
    need(is_tensor(x) and ndim(x) >= 2, "x has no axis of tokens")
    _check_parameter(weight, 2, x, "weight")
    need(same_size(shape(weight)[1], shape(x)[-1]), "the weight does not fit x")
    if bias is not None:
        _check_parameter(bias, 1, x, "bias")
        need(same_size(shape(bias)[0], shape(weight)[0]), "the bias does not fit the weight")
    return x, weight, bias


def _check_parameter(node: Any, rank: int, x: fx.Node, name: str) -> None:
    need(is_parameter(node), f"the {name} is computed in the graph")
    need(ndim(node) == rank, f"the {name} has {ndim(node)} axes")
    need(all(isinstance(size, int) for size in shape(node)), f"the {name} has no fixed size")
    need(dtype(node) == dtype(x), f"the {name} is {dtype(node)}, x is {dtype(x)}")
    need(value(node).is_contiguous(), f"the {name} is not contiguous")


def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str | None:
    node = group[0]
    x, weight, bias = check_linear(node)
    call = rewriter.emit(node, LINEAR.overload, (x, weight, bias, None), like=node)
    rewriter.replace(node, call)
    n, k = shape(weight)
    return f"{n} x {k}" + (", bias" if bias is not None else "")


PATTERN = Pattern("linear", single(lambda node: is_op(node, "linear")), match)
