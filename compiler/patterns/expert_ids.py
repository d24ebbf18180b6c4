"""Expert ids that are proven to lie in 0 .. E - 1, and what of the code around them therefore does nothing.

Models that can spread their experts over several GPUs mark a pair of another GPU with the id E, a sentinel, and then
clamp ids and mask rows (transformers 5.17 always, 5.23 only there). Ids that a top-k over E columns gave hold no
sentinel, so nothing is clamped or masked. Ids of unknown origin are not accepted at all: out of range they would be an
error or garbage in the model, and a read out of bounds in a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..canonical import arg, calls, dtype, is_cast, is_last_axis, is_op, ndim, same_size, scalar, shape, skip_noop
from ..ops.moe import ROUTER
from ..rewriter import Rewriter
from ..site import need

FLATTENS = ("reshape", "view", "flatten")
_EXACT = (torch.int64, torch.int32, torch.float32, torch.float64)
"""What can hold every id of a model."""


@dataclass(frozen=True)
class ExpertIds:
    """The ids [T, k] of the experts that each token goes to, every one in 0 .. experts - 1."""

    node: fx.Node
    top_k: int
    experts: int

    def is_flat(self, node: Any) -> bool:
        """Whether this is [T * k], the ids in the order of the tokens."""
        node = self._unclamped(node)
        return is_op(node, *FLATTENS) and ndim(node) == 1 and node.args[0] is self.node

    def holds_all(self, node: Any) -> bool:
        """Whether this holds exactly the ids, each as often as they do, in any order, exact dtype and shape."""
        while isinstance(node, fx.Node) and node is not self.node:
            node = self._unclamped(node)
            is_sorted = is_op(node, "getitem") and node.args[1] == 0 and is_op(node.args[0], "sort")
            if is_sorted:
                node = node.args[0].args[0]
            elif is_op(node, *FLATTENS) or (is_cast(node) and dtype(node) in _EXACT):
                node = node.args[0]
            else:
                return node is self.node
        return node is self.node

    def is_nothing(self, node: Any) -> bool:
        """Whether the node clamps the ids to a range they are in, or masks rows where an id is out of range."""
        if is_op(node, "clamp", "clamp_"):
            return self._keeps(node) and self.holds_all(node.args[0])
        if is_op(node, "masked_fill", "masked_fill_"):
            return self._is_never(arg(node, 1, "mask"))
        return False

    def _unclamped(self, node: Any) -> Any:
        while is_op(node, "clamp", "clamp_") and self._keeps(node):
            node = node.args[0]
        return node

    def _keeps(self, clamp: fx.Node) -> bool:
        low, high = arg(clamp, 1, "min"), arg(clamp, 2, "max")
        is_low = low is None or (isinstance(low, int) and low <= 0)
        is_high = high is None or (isinstance(high, int) and high >= self.experts - 1)
        return is_low and is_high

    def _is_never(self, mask: Any) -> bool:
        """ids >= experts, with axes added."""
        while is_op(mask, "unsqueeze", "reshape", "view"):
            mask = mask.args[0]
        if not is_op(mask, "ge"):
            return False
        limit = scalar(arg(mask, 1, "other"))
        return limit is not None and limit >= self.experts and self.holds_all(arg(mask, 0, "input"))


def find_ids(rewriter: Rewriter, flat: Any, experts: int, until: fx.Node) -> ExpertIds:
    """The ids behind `flat` [T * k]; Reject unless they are proven, and unchanged up to the node `until`."""
    while is_op(flat, "clamp", "clamp_"):
        flat = flat.args[0]
    need(is_op(flat, *FLATTENS) and ndim(flat) == 1, "the expert ids are not flattened")
    ids = flat.args[0]
    need(ndim(ids) == 2 and dtype(ids) == torch.int64, "the expert ids are not int64 [tokens, k]")
    top_k = shape(ids)[1]
    need(isinstance(top_k, int), "the number of chosen experts is not static")
    chosen = skip_noop(ids)
    source = chosen.args[0] if is_op(chosen, "getitem") and chosen.args[1] == 1 else None
    need(_chooses_of(source, experts), f"expert ids that do not come from a top-k over the {experts} experts")
    assert source is not None
    rewriter.check_no_write((chosen, ids), source, until)
    return ExpertIds(ids, top_k, experts)


def _chooses_of(node: Any, experts: int) -> bool:
    """Whether output 1 of the node are columns of a matrix that has `experts` of them."""
    if calls(node, ROUTER.overload):
        return same_size(shape(node.args[0])[-1], experts)
    if not is_op(node, "topk"):
        return False
    scores = arg(node, 0, "input")
    return is_last_axis(arg(node, 2, "dim", -1), scores) and same_size(shape(scores)[-1], experts)
