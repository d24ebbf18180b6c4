"""Scaled dot-product attention, with the key/value heads as they lie in the cache: repeat_kv is seen through.

    scaled_dot_product_attention(q, repeat_kv(k), repeat_kv(v), mask, 0.0, is_causal, scale)

Our operation stands where SDPA stood and never earlier: it reads the cache after an in-place write. A mask is kept, and
a sliding window comes as one. SDPA's causal alignment is the top left corner; Hugging Face asks for it only with as
many keys as queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..canonical import (
    arg,
    dtype,
    is_axis,
    is_op,
    is_tensor,
    ndim,
    same_shape,
    same_size,
    scalar,
    shape,
    skip_noop,
    value,
)
from ..ops.attention import ATTENTION
from ..rewriter import Pattern, Rewriter, single
from ..site import Reject, need

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_HEADS_AXIS = 1


@dataclass(frozen=True)
class Heads:
    """Keys or values before `repeat_kv`: the tensor [B, Hk, T, D], how often a head is repeated, what was skipped."""

    source: fx.Node
    repeats: int
    skipped: tuple[fx.Node, ...]


def match(rewriter: Rewriter, anchors: tuple[fx.Node, ...]) -> str:
    (sdpa,) = anchors
    query, mask = arg(sdpa, 0, "query"), arg(sdpa, 3, "attn_mask")
    is_causal = arg(sdpa, 5, "is_causal", False)
    need(scalar(arg(sdpa, 4, "dropout_p", 0.0)) == 0, "dropout")
    need(isinstance(is_causal, bool), "is_causal is not a plain bool")
    need(not is_causal or mask is None, "both a mask and is_causal")
    k, v = _keys_and_values(sdpa, query)
    q, skipped = _laid_out(query)
    q_heads, kv_heads, head_dim = _check_shapes(q, k.source, v.source)
    if mask is not None:
        _check_mask(mask, q, k.source)
    scale = _scale(sdpa, head_dim)

    # The keys and values are read where SDPA stood, rather than where repeat_kv or contiguous read them.
    inner = (*skipped, *k.skipped, *v.skipped)
    rewriter.check_no_write((q, k.source, v.source, *inner), min((sdpa, *inner)), sdpa)
    call = rewriter.emit(
        sdpa, ATTENTION.overload, (q, k.source, v.source, mask, scale, is_causal, 0), like=sdpa
    )  # fmt: skip
    output = rewriter.emit_method(sdpa, "transpose", (call, 1, 2), like=sdpa)
    rewriter.replace(sdpa, output)
    rewriter.retire((sdpa, *inner))
    seen = "causal" if is_causal else "mask" if mask is not None else "every key"
    return f"{q_heads}/{kv_heads} heads of {head_dim}, {shape(q)[2]} queries, {shape(k.source)[2]} keys, {seen}"


def _keys_and_values(sdpa: fx.Node, query: Any) -> tuple[Heads, Heads]:
    """Both without their repetition; as they are where only one is repeated, or each differently."""
    key, values = arg(sdpa, 1, "key"), arg(sdpa, 2, "value")
    for name, node in (("query", query), ("key", key), ("value", values)):
        need(ndim(node) == 4, f"the {name} has not four axes")
    heads = shape(query)[_HEADS_AXIS]
    shares_heads = arg(sdpa, 7, "enable_gqa", False) is True
    for node in (key, values):
        has_all = same_size(shape(node)[_HEADS_AXIS], heads)
        need(has_all or shares_heads, "fewer key/value heads than query heads without enable_gqa")
    k, v = _unrepeated(key), _unrepeated(values)
    if k.repeats != v.repeats:
        return Heads(key, 1, ()), Heads(values, 1, ())
    return k, v


def _unrepeated(node: fx.Node) -> Heads:
    """Look through repeat_kv (kv head h serves query heads h * n to h * n + n - 1) in each of its spellings."""
    inner, skipped = _laid_out(node)
    found = _interleaved(inner) or _expanded(inner)
    if found is None:
        return Heads(inner, 1, skipped)
    source, repeats, nodes = found
    heads, wide = shape(source), shape(inner)
    is_proven = len(heads) == 4 and same_shape(wide, (heads[0], heads[1] * repeats, *heads[2:]))
    if not is_proven:
        return Heads(inner, 1, skipped)
    source, below = _laid_out(source)
    return Heads(source, repeats, (*skipped, *nodes, *below))


def _interleaved(node: fx.Node) -> tuple[fx.Node, int, tuple[fx.Node, ...]] | None:
    """torch.repeat_interleave(x, n, dim=1)."""
    repeats = arg(node, 1, "repeats")
    if not is_op(node, "repeat_interleave") or not isinstance(repeats, int):
        return None
    source = arg(node, 0, "input")
    return (source, repeats, (node,)) if is_axis(arg(node, 2, "dim"), _HEADS_AXIS, 4) else None


def _expanded(node: fx.Node) -> tuple[fx.Node, int, tuple[fx.Node, ...]] | None:
    """x[:, :, None].expand(B, Hk, n, T, D).reshape(B, Hk * n, T, D), or with unsqueeze(2) and repeat(1, 1, n, 1, 1)."""
    if not is_op(node, "reshape", "view", "flatten"):
        return None
    wide = arg(node, 0)
    is_repeat = isinstance(wide, fx.Node) and wide.op == "call_method" and wide.target == "repeat"
    if ndim(wide) != 5 or not (is_op(wide, "expand") or is_repeat):
        return None
    column = arg(wide, 0)
    if not _inserts_axis(column) or ndim(column) != 5:
        return None
    source = arg(column, 0)
    repeats = shape(wide)[2]
    batch, heads, *rest = shape(source)
    if not isinstance(repeats, int) or not same_shape(shape(wide), (batch, heads, repeats, *rest)):
        return None
    return source, repeats, (node, wide, column)


def _inserts_axis(node: Any) -> bool:
    """x.unsqueeze(2), x[:, :, None] or x[:, :, None, :, :] of four axes."""
    if is_op(node, "unsqueeze"):
        return ndim(node.args[0]) == 4 and is_axis(arg(node, 1, "dim"), 2, 5)
    if not is_op(node, "getitem") or ndim(node.args[0]) != 4:
        return False
    index = node.args[1]
    if not isinstance(index, tuple) or len(index) < 3 or index[2] is not None:
        return False
    return all(each == slice(None) for axis, each in enumerate(index) if axis != 2)


def _laid_out(node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """What `contiguous` and other nothings were applied to, if the kernel can read that; and the skipped nodes."""
    source = skip_noop(node)
    if source is node or not _has_unit_stride(source):
        return node, ()
    skipped = []
    while node is not source:
        skipped.append(node)
        node = arg(node, 0)
    return source, tuple(skipped)


def _has_unit_stride(node: fx.Node) -> bool:
    """Whether neighbours of the last axis lie side by side, as every kernel reads them."""
    return same_size(value(node).stride(-1), 1) or same_size(shape(node)[-1], 1)


def _check_shapes(q: fx.Node, k: fx.Node, v: fx.Node) -> tuple[int, int, int]:
    """Query heads, key/value heads and their size, of what the kernel can take."""
    need(all(is_tensor(node) for node in (q, k, v)), "query, key or value is not a tensor")
    batch, q_heads, _, head_dim = shape(q)
    kv_heads = shape(k)[_HEADS_AXIS]
    need(
        isinstance(q_heads, int) and isinstance(kv_heads, int) and isinstance(head_dim, int),
        "number or size of the heads is not static",
    )
    need(_agree(shape(k)[0], batch) and _agree(shape(v)[0], batch), "key and query have not the same batch size")
    need(same_size(shape(k)[3], head_dim), "key and query heads differ in size")
    is_like_key = _agree(shape(v)[2], shape(k)[2]) and shape(v)[1] == kv_heads
    need(is_like_key and same_size(shape(v)[3], head_dim), "key and value differ in shape")
    need(kv_heads > 0 and q_heads % kv_heads == 0, f"{q_heads} query heads are not shared evenly by {kv_heads}")
    need(dtype(q) == dtype(k) == dtype(v), "query, key and value differ in dtype")
    need(dtype(q) in _DTYPES, f"no kernel for {dtype(q)}")
    for node in (q, k, v):
        need(value(node).layout == torch.strided, f"{node.name} is {value(node).layout}")
        need(_has_unit_stride(node), f"{node.name} is strided over its last axis")
    return q_heads, kv_heads, head_dim


def _check_mask(mask: Any, q: fx.Node, k: fx.Node) -> None:
    """[B or 1, 1, S, T], boolean: True where a query sees a key."""
    need(is_tensor(mask), "the mask is not a tensor")
    need(dtype(mask) == torch.bool, f"the mask is added to the scores ({dtype(mask)}), rather than boolean")
    need(ndim(mask) == 4, f"the mask has {ndim(mask)} axes, not four")
    batch, heads, queries, keys = shape(mask)
    need(same_size(heads, 1), "a mask for every head")
    need(_agree(batch, shape(q)[0]) or same_size(batch, 1), "the mask has another batch size")
    need(_agree(queries, shape(q)[2]), "the mask has another number of queries")
    need(_agree(keys, shape(k)[2]), "the mask has another number of keys")
    need(_has_unit_stride(mask), "the mask is strided over the keys")


def _agree(a: Any, b: Any) -> bool:
    """Whether two sizes are equal wherever SDPA accepts them: it broadcasts sizes of 1, and refuses others.

    The tensors of a growing cache have a symbol each in torch's eyes, and nothing says that they are equal.
    """
    if same_size(a, b):
        return True
    return not (isinstance(a, int) and isinstance(b, int)) and _is_not_one(a) and _is_not_one(b)


def _is_not_one(size: Any) -> bool:
    return bool(statically_known_true(size != 1))


def _scale(sdpa: fx.Node, head_dim: int) -> float:
    given = arg(sdpa, 6, "scale")
    scale = 1.0 / math.sqrt(head_dim) if given is None else scalar(given)
    if scale is None or not 0.0 < scale < math.inf:
        raise Reject("the scale is not a positive number")
    return float(scale)


PATTERN = Pattern("attention", single(lambda node: is_op(node, "sdpa")), match)
