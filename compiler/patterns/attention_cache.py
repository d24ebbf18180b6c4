"""One decode step on a static cache in one operation: norm and RoPE of q and k, the write of k and v, attention.

    q, k = qk_norm_rope(...);  k_cache.index_copy_(2, position, k);  v_cache.index_copy_(2, position, v)
    attention(q, k_cache, v_cache, mask)

becomes `attention_decode_fused`, which writes the new k and v itself, where attention stood. It joins what the patterns
qk_norm_rope and attention made. The caches are graph inputs and are read through them, so what must hold is that
nothing else looks at them between the two writes and attention, and that nobody else wants the new k. A mask is needed:
without one, attention sees all of the cache, also what stands behind the new token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..canonical import arg, calls, dtype, is_axis, is_op, is_parameter, ndim, same_shape, same_size, shape
from ..ops.attention import ATTENTION, ATTENTION_DECODE_FUSED
from ..ops.rope import QK_NORM_ROPE
from ..rewriter import Pattern, Rewriter, single
from ..site import Site, need

_TOKENS_AXIS = 2


@dataclass(frozen=True)
class _Write:
    """cache.index_copy_(2, index, new): new [B, Hk, 1, D]."""

    node: fx.Node
    cache: fx.Node
    index: fx.Node
    new: fx.Node


def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str | None:
    (attend,) = group
    q, k_cache, v_cache, mask, scale, is_causal, window = attend.args
    if not same_size(shape(q)[2], 1) or not (is_parameter(k_cache) and is_parameter(v_cache)):
        return None
    assert isinstance(k_cache, fx.Node) and isinstance(v_cache, fx.Node)
    key, values = _write_of(rewriter, k_cache, attend), _write_of(rewriter, v_cache, attend)
    if key is None or values is None:
        return None
    need(k_cache is not v_cache, "keys and values are one tensor")
    need(key.index is values.index, "keys and values are written at different positions")
    need(isinstance(mask, fx.Node), "no mask: what stands behind the new token is seen as well")
    assert isinstance(mask, fx.Node)
    need(is_causal is False and window == 0, "causal, or a window, beside a mask")
    rotated = _rotated(rewriter, q, key, attend)
    if rotated is None:
        return None
    q_in, k_in, q_weight, k_weight, cos, sin, eps = rotated.args
    _check(key, values, mask)

    v_in, is_swapped = _untransposed(values.new)
    first = min(key.node, values.node)
    inputs = [each for each in (*rotated.args, v_in, key.index, mask) if isinstance(each, fx.Node)]
    rewriter.check_no_write(inputs, min(rotated, key.node, values.node), attend)
    for cache in (k_cache, v_cache):
        rewriter.check_no_access(cache, first, attend, besides=(key.node, values.node))

    v = v_in if is_swapped else rewriter.emit_method(attend, "transpose", (v_in, 1, 2), like=attend)
    weights_and_tables = (q_weight, k_weight, cos, sin)
    call = rewriter.emit(
        attend, ATTENTION_DECODE_FUSED.overload,
        (q_in, k_in, v, *weights_and_tables, k_cache, v_cache, key.index, mask, eps, scale, 0), like=attend,
    )  # fmt: skip
    for write in (key, values):
        rewriter.retire_write(write.node, write.cache)
    rewriter.replace(attend, call)
    rewriter.absorb(*_sites(rewriter, attend, rotated))
    what = "norm, RoPE" if q_weight is not None else "RoPE"
    heads = f"{shape(q)[1]}/{shape(k_cache)[1]} heads of {shape(q)[3]}"
    return f"{what}, write and attention, {heads}, {shape(k_cache)[2]} keys"


def _write_of(rewriter: Rewriter, cache: fx.Node, attend: fx.Node) -> _Write | None:
    """The last thing that happens to a cache before attention, if it is a write of one token into it."""
    users = [user for user in rewriter.users(cache) if user < attend]
    node = users[-1] if users else None
    if node is None or not is_op(node, "index_copy_") or node.args[0] is not cache or len(node.args) != 4:
        return None
    _, axis, index, new = node.args
    if not is_axis(axis, _TOKENS_AXIS, 4) or not isinstance(index, fx.Node) or not isinstance(new, fx.Node):
        return None
    return _Write(node, cache, index, new)


def _rotated(rewriter: Rewriter, q: Any, key: _Write, attend: fx.Node) -> fx.Node | None:
    """The qk_norm_rope whose q only attention and whose k only the cache reads."""
    q_item, k_item = (_untransposed(each)[0] for each in (q, key.new))
    for index, item in enumerate((q_item, k_item)):
        if not is_op(item, "getitem") or item.args[1] != index:
            return None
    rotated = q_item.args[0]
    if rotated is not k_item.args[0] or not calls(rotated, QK_NORM_ROPE.overload):
        return None
    assert isinstance(rotated, fx.Node)
    for chain in ((rotated, q_item, k_item), (q_item, q), (k_item, key.new), (q, attend), (key.new, key.node)):
        need(rewriter.users(chain[0]) == sorted(chain[1:]), f"{chain[0].name} is used elsewhere as well")
    return rotated


def _untransposed(node: Any) -> tuple[Any, bool]:
    """x and True of x.transpose(1, 2); anything else as it is."""
    if is_op(node, "transpose") and ndim(node) == 4:
        first, second = arg(node, 1, "dim0"), arg(node, 2, "dim1")
        if (is_axis(first, 1, 4) and is_axis(second, 2, 4)) or (is_axis(first, 2, 4) and is_axis(second, 1, 4)):
            return node.args[0], True
    return node, False


def _check(key: _Write, values: _Write, mask: fx.Node) -> None:
    need(dtype(key.index) in (torch.int64, torch.int32), f"positions of {dtype(key.index)}")
    need(ndim(key.index) == 1 and same_size(shape(key.index)[0], 1), "more than one position is written")
    batch, heads, keys, head_dim = shape(key.cache)
    need(same_shape(shape(key.cache), shape(values.cache)), "the caches differ in shape")
    for write in (key, values):
        need(same_shape(shape(write.new), (batch, heads, 1, head_dim)), f"{write.new.name} is not one token")
        need(dtype(write.new) == dtype(write.cache), "what is written has another dtype than the cache")
    need(dtype(mask) == torch.bool, "the mask is not boolean")
    need(
        ndim(mask) == 4 and same_shape(shape(mask)[1:], (1, 1, keys)), "the mask is not one row for every sequence"
    )  # fmt: skip


def _sites(rewriter: Rewriter, *calls_of_parts: fx.Node) -> list[Site]:
    found = [rewriter.site_of(call) for call in calls_of_parts]
    need(all(site is not None for site in found), "norm and RoPE, or attention, is no site of ours")
    return [site for site in found if site is not None]


PATTERN = Pattern("attention_cache", single(lambda node: calls(node, ATTENTION.overload)), match)
