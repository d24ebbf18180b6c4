"""The experts of a mixture: two products of each token with the matrices of its experts, and their weighted sum.

    sum over j of weights[t, j] * W2[e] (silu(W1[e] x[t]) * (W3[e] x[t])),   e = ids[t, j],   W13 = (W1, W3)

Hugging Face writes it in two ways, `expert_products.py` reads both. What surrounds the products changes with every
version, so this matcher follows the values instead: it finds x, ids, weights, W13 and W2, and then proves that what
lies between them and the sum reads nothing else, writes nothing but what it made, and is used nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from ..aliasing import mutated_args, storage_owner
from ..canonical import arg, dtype, is_axis, is_cast, is_op, is_parameter, ndim, same_shape, same_size, shape, value
from ..ops.moe import EXPERTS
from ..rewriter import Pattern, Rewriter, single
from ..site import need
from .expert_products import Products, find_products, is_second_product

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_BOUNDS = ("clamp", "clamp_", "masked_fill", "masked_fill_")
"""What other versions do about ids out of range; here it must be proven to do nothing."""


def match(rewriter: Rewriter, anchors: tuple[fx.Node, ...]) -> str:
    (second,) = anchors
    products = find_products(rewriter, second)
    output = _sum_over_chosen(rewriter, products)
    experts, hidden, inter = _check_operands(products, output)

    inputs = products.inputs
    region = _region(output, inputs)
    _check_region(rewriter, products, region, output)
    for each in inputs:
        readers = [node for node in region if each in node.all_input_nodes]
        rewriter.check_no_write((each,), min(readers), output)
    call = rewriter.emit(output, EXPERTS.overload, (*inputs, None), like=output)
    rewriter.replace(output, call)
    rewriter.retire(region)
    return f"{products.form}, top {products.ids.top_k} of {experts} experts, {hidden} to {inter}"


def _sum_over_chosen(rewriter: Rewriter, products: Products) -> fx.Node:
    """From the weighted rows [T * k, H], in the order of the tokens, to their sum over k [T, H]."""
    (rows,) = _only_users(rewriter, products.weighted)
    tokens, hidden = shape(products.x)
    wide = (tokens, products.ids.top_k, hidden)
    need(is_op(rows, "view", "reshape") and same_shape(shape(rows), wide), "no [tokens, k, hidden] before the sum")
    (total,) = _only_users(rewriter, rows)
    is_sum = is_op(total, "sum") and is_axis(arg(total, 1, "dim"), 1, 3)
    need(is_sum and not arg(total, 2, "keepdim", False), "no sum over the chosen experts")
    need(total.kwargs.get("dtype") is None, "the sum is taken in another dtype")
    users = rewriter.users(total)
    if len(users) == 1 and is_cast(users[0]) and dtype(users[0]) == dtype(products.x):
        return users[0]
    return total


def _only_users(rewriter: Rewriter, node: fx.Node) -> tuple[fx.Node]:
    users = rewriter.users(node)
    need(len(users) == 1, f"{node.name} is used elsewhere as well")
    return (users[0],)


def _check_operands(products: Products, output: fx.Node) -> tuple[int, int, int]:
    """Number of experts, hidden and intermediate size, of what the kernels can take."""
    x, w13, w2, weights, ids = products.inputs
    need(is_parameter(w13) and is_parameter(w2), "the experts' matrices are computed")
    need(ndim(x) == 2 and ndim(w13) == 3 and ndim(w2) == 3, "tokens or matrices of an unexpected rank")
    experts, hidden, inter = shape(w2)
    need(all(isinstance(size, int) for size in (experts, hidden, inter)), "the matrices' sizes are not static")
    need(same_shape(shape(w13), (experts, 2 * inter, hidden)), "the two matrices do not fit together")
    need(same_size(shape(x)[1], hidden), "the tokens do not fit the matrices")
    need(dtype(x) == dtype(w13) == dtype(w2) == dtype(output), "tokens, matrices and result differ in dtype")
    need(dtype(x) in _DTYPES, f"no kernel for {dtype(x)}")
    need(dtype(weights) in (dtype(x), torch.float32), f"routing weights in {dtype(weights)}")
    need(same_shape(shape(ids), (shape(x)[0], products.ids.top_k)), "the ids are not [tokens, k]")
    need(same_shape(shape(weights), shape(ids)), "the routing weights are not [tokens, k]")
    return experts, hidden, inter


def _region(output: fx.Node, inputs: tuple[fx.Node, ...]) -> list[fx.Node]:
    """What the output is computed from, down to the inputs, with what writes into it before the output; in order.

    Sizes are not followed: the matcher has compared them.
    """
    stops, seen, work = set(inputs), set[fx.Node](), [output]
    while work:
        node = work.pop()
        if node not in seen and node not in stops and _holds_data(node):
            seen.add(node)
            work += node.all_input_nodes
        if not work:
            work += [writer for writer in _writers(min(seen), output, seen) if writer not in seen]
    return sorted(seen)


def _writers(first: fx.Node, output: fx.Node, region: set[fx.Node]) -> Iterator[fx.Node]:
    """The nodes between the two that write storage which the region made."""
    node = first
    while node is not output:
        if any(storage_owner(written) in region for written in mutated_args(node)):
            yield node
        node = node.next


def _holds_data(node: fx.Node) -> bool:
    """Not a size, nor anything else that is no tensor."""
    found = value(node)
    if isinstance(found, (torch.Size, int, float, torch.SymInt, torch.SymFloat)):
        return False
    return not (isinstance(found, tuple) and found and all(isinstance(each, (int, torch.SymInt)) for each in found))


def _check_region(rewriter: Rewriter, products: Products, region: list[fx.Node], output: fx.Node) -> None:
    """Reject what reads something else, changes something in an unknown way, or is used by others."""
    inside = set(region)
    for node in region:
        need(node.op not in ("placeholder", "get_attr"), f"the result depends on {node.name} as well")
        if is_op(node, *_BOUNDS):
            need(products.ids.is_nothing(node), f"{node.name} may change something")
        for written in mutated_args(node):
            need(node is products.inverse_write or is_op(node, *_BOUNDS), f"{node.name} writes in between")
            need(storage_owner(written) in inside, f"{node.name} writes an input")
        if node >= products.first and node is not output and _is_floating(node):
            is_inside = all(user in inside for user in rewriter.users(node))
            need(is_inside, f"{node.name} is used elsewhere as well")


def _is_floating(node: fx.Node) -> bool:
    found = value(node)
    parts = found if isinstance(found, (tuple, list)) else (found,)
    return any(isinstance(part, torch.Tensor) and part.is_floating_point() for part in parts)


PATTERN = Pattern("experts", single(is_second_product), match)
