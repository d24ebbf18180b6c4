"""The q, k and v projections of one attention layer, as one product: three linear layers on one input.

The operation gives one tensor; q, k and v are slices of it. What reads them as views must accept such a slice.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx

from ..canonical import arg, is_op, layer_of, shape
from ..ops.linear import LINEAR_QKV
from ..rewriter import Pattern, Rewriter
from ..site import Reject, need
from .linear import check_linear


def _anchors(rewriter: Rewriter) -> Iterable[tuple[fx.Node, ...]]:
    """Three or more linear layers that read one value and sit in one module."""
    groups: dict[tuple[object, str], list[fx.Node]] = {}
    for node in rewriter.live_nodes():
        if is_op(node, "linear"):
            parent = layer_of(node).rpartition(".")[0]
            groups.setdefault((arg(node, 0, "input"), parent), []).append(node)
    return [tuple(group) for group in groups.values() if len(group) >= 3]


def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str | None:
    need(len(group) == 3, f"{len(group)} linear layers read one input")
    parts = {node: check_linear(node) for node in group}
    ordered = _query_first(group)
    x = parts[group[0]][0]
    weights = [parts[node][1] for node in ordered]
    biases = [parts[node][2] for node in ordered]
    with_bias = sum(bias is not None for bias in biases)
    need(with_bias in (0, 3), f"{with_bias} of three projections have a bias")

    first, last = group[0], group[-1]
    inputs = [x, *weights, *(bias for bias in biases if bias is not None)]
    need(
        all(each.op == "placeholder" or each < first for each in inputs), "a weight is defined after the first product"
    )
    rewriter.check_no_write(inputs, first, last)
    call = rewriter.emit(first, LINEAR_QKV.overload, (x, *weights, *biases), like=first)
    sizes = [shape(weight)[0] for weight in weights]
    split = rewriter.emit(first, torch.split, (call, sizes, -1), like=first)
    for index, node in enumerate(ordered):
        rewriter.replace(node, rewriter.emit(first, operator.getitem, (split, index), like=node))
    return f"{sizes[0]} + 2 x {sizes[1]} x {shape(weights[0])[1]}" + (", bias" if with_bias else "")


def _query_first(group: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
    """q, k, v: q is the one larger than two equal ones, or the first of three equal ones."""
    sizes = {node: shape(arg(node, 1, "weight"))[0] for node in group}
    for query in group:
        key, value = (node for node in group if node is not query)
        if sizes[key] == sizes[value] and sizes[query] >= sizes[key]:
            return query, key, value
    raise Reject(f"three projections of {', '.join(map(str, sizes.values()))} rows are not q, k and v")


PATTERN = Pattern("linear_qkv", _anchors, match)
