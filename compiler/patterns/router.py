"""The router of a mixture of experts: softmax over all experts, the top k of them, divided by their sum or not.

    weights, ids = topk(softmax(logits, dtype=float32), k);  weights = weights / weights.sum(-1, keepdim=True)

The logits [T, E] are computed outside: an auxiliary loss may read them as well. Another gating function (a sigmoid, a
softmax over the chosen few, a bias that only steers the choice) is another formula and stays.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import torch
from torch import fx

from ..canonical import arg, dtype, has_only, is_cast, is_last_axis, is_op, ndim, shape
from ..ops.moe import ROUTER
from ..rewriter import Pattern, Rewriter, single
from ..site import need

_LOGITS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Weights:
    """The routing weights as the model goes on to use them, and the nodes that made them of the top-k values."""

    output: fx.Node
    renormalize: bool
    nodes: tuple[fx.Node, ...]


def match(rewriter: Rewriter, anchors: tuple[fx.Node, ...]) -> str:
    (topk,) = anchors
    scores, top_k = arg(topk, 0, "input"), arg(topk, 1, "k")
    need(is_op(scores, "softmax"), "no softmax before the top-k: another gating function")
    need(has_only(topk, "input", "k", "dim", "largest", "sorted"), "a top-k with out")
    logits, before = _logits(scores)
    experts = shape(logits)[1]
    need(isinstance(top_k, int) and isinstance(experts, int), "number of experts or of the chosen is not static")
    need(0 < top_k <= experts, f"top {top_k} of {experts} experts")
    need(is_last_axis(arg(topk, 2, "dim", -1), scores), "top-k over another axis than the experts")
    need(arg(topk, 3, "largest", True) is True, "the smallest, rather than the largest")
    need(arg(topk, 4, "sorted", True) is True, "the chosen in no particular order")
    values, ids = _outputs(rewriter, topk)
    weights = _weights(rewriter, values)

    rewriter.check_no_write((logits, *before), before[0], topk)
    call = rewriter.emit(topk, ROUTER.overload, (logits, top_k, weights.renormalize, dtype(weights.output)), like=topk)
    new_weights = rewriter.emit(topk, operator.getitem, (call, 0), like=weights.output)
    new_ids = rewriter.emit(topk, operator.getitem, (call, 1), like=ids)
    rewriter.replace(weights.output, new_weights)
    rewriter.replace(ids, new_ids)
    rewriter.retire((*before, topk, values, ids, *weights.nodes))
    renormalised = ", renormalised" if weights.renormalize else ""
    return f"top {top_k} of {experts}{renormalised}, weights {str(dtype(new_weights)).removeprefix('torch.')}"


def _logits(scores: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """What the softmax is taken of, before a cast to fp32; and the nodes from there to the scores, in order."""
    logits = arg(scores, 0, "input")
    need(ndim(logits) == 2, "the logits are not [tokens, experts]")
    need(is_last_axis(arg(scores, 1, "dim"), logits), "softmax over another axis than the experts")
    need(dtype(scores) == torch.float32, f"softmax in {dtype(scores)}, rather than float32")
    if is_cast(logits) and dtype(logits) == torch.float32 and dtype(logits.args[0]) in _LOGITS:
        return logits.args[0], (logits, scores)
    need(dtype(logits) in _LOGITS, f"logits in {dtype(logits)}")
    return logits, (scores,)


def _outputs(rewriter: Rewriter, topk: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The values and the indices, each taken once."""
    users = rewriter.users(topk)
    need(all(is_op(user, "getitem") for user in users), "the top-k is used as a whole")
    values, ids = ([user for user in users if user.args[1] == index] for index in (0, 1))
    need(len(values) == len(ids) == 1, "values and indices of the top-k are not taken once each")
    return values[0], ids[0]


def _weights(rewriter: Rewriter, values: fx.Node) -> Weights:
    """The top-k values as they are or divided by their sum, and then cast."""
    weights = _renormalised(rewriter, values)
    users = rewriter.users(weights.output)
    if len(users) == 1 and is_cast(users[0]) and dtype(users[0]) in _LOGITS:
        return replace(weights, output=users[0], nodes=(*weights.nodes, users[0]))
    return weights


def _renormalised(rewriter: Rewriter, values: fx.Node) -> Weights:
    users = rewriter.users(values)
    total = next((user for user in users if is_op(user, "sum")), None)
    if total is None:
        return Weights(values, False, ())
    is_row_sum = has_only(total, "input", "dim", "keepdim") and is_last_axis(arg(total, 1, "dim"), values)
    need(is_row_sum and arg(total, 2, "keepdim", False) is True, "the weights are summed otherwise")
    quotients = [user for user in rewriter.users(total) if is_op(user, "div", "div_")]
    need(len(quotients) == 1 and rewriter.users(total) == quotients, "the sum of the weights is used otherwise")
    (quotient,) = quotients
    is_renormalised = arg(quotient, 0, "input") is values and arg(quotient, 1, "other") is total
    need(is_renormalised and has_only(quotient, "input", "other"), "the weights are not divided by their sum")
    need(set(users) == {total, quotient}, "the weights are used before they are renormalised")
    return Weights(quotient, True, (total, quotient))


PATTERN = Pattern("router", single(lambda node: is_op(node, "topk")), match)
