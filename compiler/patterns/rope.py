"""Rotary embedding of q and k, with the RMSNorm of each head before it where there is one.

The form is Hugging Face's: x * cos + rotate_half(x) * sin over the whole head, rotate_half(x) = cat((-x2, x1)) of the
two halves. A scaling of the attention that is multiplied into cos and sin changes nothing here. The interleaved form
(GPT-J) has no `cat` of a negation, so it has no anchor.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..canonical import (
    arg,
    dtype,
    has_only,
    is_axis,
    is_last_axis,
    is_op,
    is_swap,
    layer_of,
    ndim,
    operands,
    same_shape,
    same_size,
    shape,
)  # fmt: skip
from ..ops.rope import QK_NORM_ROPE
from ..rewriter import Pattern, Rewriter
from ..site import Site, need


@dataclass(frozen=True)
class _Rotated:
    """One rotated tensor: out = x * cos + rotate_half(x) * sin. `inner` are the nodes from x to out."""

    x: fx.Node
    cos: fx.Node
    sin: fx.Node
    out: fx.Node
    inner: tuple[fx.Node, ...]

    @property
    def untransposed(self) -> fx.Node:
        """x as [B, S, H, D]; `x` itself is its transpose."""
        found = self.x.args[0]
        assert isinstance(found, fx.Node)
        return found


def _anchors(rewriter: Rewriter) -> Iterable[tuple[fx.Node, ...]]:
    """The `cat` nodes of q and k, pair by pair: of one module, with the same tables, in order of the graph."""
    groups: dict[tuple[str, Any, Any], list[fx.Node]] = {}
    for node in rewriter.live_nodes():
        found = _rotated(rewriter, node)
        if found is not None:
            groups.setdefault((layer_of(node), found.cos, found.sin), []).append(node)
    pairs = [tuple(group[start : start + 2]) for group in groups.values() for start in range(0, len(group), 2)]
    return sorted(pairs)


def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str | None:
    need(len(group) == 2, "only one tensor is rotated by these tables, not q and k")
    pair = [_rotated(rewriter, node) for node in group]
    q, k = pair
    if q is None or k is None:
        return None
    _check_form(q)
    _check_form(k)
    q_heads, k_heads, head_dim = shape(q.x)[1], shape(k.x)[1], shape(q.x)[3]
    if k_heads > q_heads:
        q, k, q_heads, k_heads = k, q, k_heads, q_heads
    need(same_size(shape(k.x)[3], head_dim), "q and k have different head sizes")
    need(same_size(shape(q.x)[0], shape(k.x)[0]) and same_size(shape(q.x)[2], shape(k.x)[2]), "q and k differ in shape")
    need(dtype(q.x) == dtype(k.x), f"q is {dtype(q.x)}, k is {dtype(k.x)}")

    at = min(q.out, k.out)
    norms = _norms(rewriter, q, k)
    inner = [*q.inner, *k.inner, q.x, k.x]
    if norms is not None:
        (q_in, q_weight, eps), (k_in, k_weight, _) = (part.call.args for part in norms)  # type: ignore[union-attr]
        inner += [q.untransposed, k.untransposed]
    else:
        q_in, k_in, q_weight, k_weight, eps = q.untransposed, k.untransposed, None, None, 0.0
    inputs = [each for each in (q_in, k_in, q_weight, k_weight, q.cos, q.sin) if isinstance(each, fx.Node)]
    need(all(each.op == "placeholder" or each < at for each in inputs), "q or k is made after the other is rotated")
    first, last = min(inner), max(q.out, k.out)
    rewriter.check_no_write([*inputs, *inner], first, last)

    cos, sin = (_table(rewriter, each, at) for each in (q.cos, q.sin))
    call = rewriter.emit(at, QK_NORM_ROPE.overload, (q_in, k_in, q_weight, k_weight, cos, sin, eps), like=at)
    for index, rotated in enumerate((q, k)):
        item = rewriter.emit(at, operator.getitem, (call, index), like=rotated.out)
        rewriter.replace(rotated.out, rewriter.emit_method(at, "transpose", (item, 1, 2), like=rotated.out))
    if norms is not None:
        rewriter.absorb(*norms)
    rewriter.retire([*inner, q.cos, q.sin])
    what = f"norm (eps {eps:g}) and RoPE" if norms is not None else "RoPE"
    return f"{what}, heads {q_heads}/{k_heads} of {head_dim}"


def _rotated(rewriter: Rewriter, cat: fx.Node) -> _Rotated | None:
    """Read from a `cat((-x2, x1), -1)` what is rotated by which tables; None where it is no such thing."""
    halves = _rotate_half(cat)
    if halves is None:
        return None
    x, inner = halves
    for product in rewriter.users(cat):
        if not (is_op(product, "mul") and has_only(product, "input", "other")):
            continue
        pair = operands(product, lambda each: each is cat)
        for total in rewriter.users(product):
            if not (is_op(total, "add") and has_only(total, "input", "other")):
                continue
            terms = operands(total, lambda each, product=product: each is product)  # type: ignore[misc]
            assert pair is not None and terms is not None
            other = terms[1]
            if not (is_op(other, "mul") and has_only(other, "input", "other")):
                continue
            factors = operands(other, lambda each: each is x)
            if factors is not None and ndim(factors[1]) == 4 and ndim(pair[1]) == 4:
                return _Rotated(x, factors[1], pair[1], total, (*inner, other, product))
    return None


def _rotate_half(cat: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """(x, nodes) of cat((-x2, x1), -1), x1 and x2 the halves of x's last axis."""
    if not is_op(cat, "cat") or not has_only(cat, "tensors", "dim") or not is_last_axis(arg(cat, 1, "dim", 0), cat):
        return None
    tensors = arg(cat, 0, "tensors")
    if not (isinstance(tensors, (list, tuple)) and len(tensors) == 2 and is_op(tensors[0], "neg")):
        return None
    negated, first = tensors
    second = negated.args[0]
    one, two = _half(first, 0), _half(second, 1)
    if one is None or two is None or one[0] is not two[0] or ndim(one[0]) != 4:
        return None
    return one[0], (cat, negated, first, second, *dict.fromkeys((*one[1], *two[1])))


def _half(node: Any, which: int) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """(x, nodes besides `node`) where `node` is x[..., :D/2] (which = 0) or x[..., D/2:] (which = 1)."""
    if not is_op(node, "getitem"):
        return None
    source, index = node.args
    is_item = isinstance(index, int) and is_op(source, "chunk", "split")
    x = source.args[0] if is_item else source
    size = shape(x)[-1] if shape(x) else None
    if not isinstance(size, int) or size % 2:
        return None
    half = size // 2
    if is_item:
        return (x, (source,)) if index == which and _is_halved(source, x, half) else None
    if not _is_slice_of_last(index, ndim(x)):
        return None
    start, stop = index[-1].start, index[-1].stop
    starts, stops = ((None, 0), (half, -half)) if which == 0 else ((half, -half), (None, size))
    return (x, ()) if start in starts and stop in stops else None


def _is_halved(node: fx.Node, x: fx.Node, half: int) -> bool:
    """Whether a `chunk` or `split` cuts the last axis of x into two halves."""
    if not is_last_axis(arg(node, 2, "dim", 0), x):
        return False
    if is_op(node, "chunk"):
        return bool(arg(node, 1, "chunks") == 2)
    sections = arg(node, 1, "split_size_or_sections", arg(node, 1, "split_size"))
    return sections == half or (isinstance(sections, (list, tuple)) and list(sections) == [half, half])


def _is_slice_of_last(index: Any, rank: int) -> bool:
    """[..., a:b], or the same with `:` for every axis before."""
    if not isinstance(index, tuple) or not index or not isinstance(index[-1], slice) or index[-1].step not in (None, 1):
        return False
    before = index[:-1]
    return before == (Ellipsis,) or (len(before) == rank - 1 and all(each == slice(None) for each in before))


def _check_form(rotated: _Rotated) -> None:
    x, cos, sin, out = rotated.x, rotated.cos, rotated.sin, rotated.out
    need(not is_op(x, "getitem"), "partial rotary: only a part of the head is rotated")
    need(is_swap(x, 1, 2), "x is not [B, S, H, D] with axes 1 and 2 exchanged")
    batch, heads, length, head_dim = shape(x)
    need(isinstance(heads, int) and isinstance(head_dim, int), "the heads have no fixed size")
    for table in (cos, sin):
        table_batch, one, table_length, width = shape(table)
        need(same_size(width, head_dim), "partial rotary: the tables do not cover the head")
        need(same_size(one, 1) and same_size(table_length, length), "the tables are not [B, 1, S, D]")
        need(same_size(table_batch, 1) or same_size(table_batch, batch), "the tables have another batch size")
    need(same_shape(shape(cos), shape(sin)), "cos and sin have different shapes")
    need(dtype(x) == dtype(cos) == dtype(sin) == dtype(out), f"x is {dtype(x)}, cos {dtype(cos)}, sin {dtype(sin)}")


def _norms(rewriter: Rewriter, q: _Rotated, k: _Rotated) -> tuple[Site, Site] | None:
    """The norms of q and k, if both have one of the same eps over the head that nothing else reads."""
    found = []
    for rotated in (q, k):
        node = rotated.untransposed
        site = rewriter.site_of(node)
        is_alone = rewriter.users(node) == [rotated.x] and all(
            user in rotated.inner for user in rewriter.users(rotated.x)
        )
        if site is None or site.pattern != "rms_norm" or not is_alone:
            return None
        found.append(site)
    return (found[0], found[1]) if q.untransposed.args[2] == k.untransposed.args[2] else None


def _table(rewriter: Rewriter, node: fx.Node, at: fx.Node) -> fx.Node:
    """cos or sin as [B, S, D]."""
    if is_op(node, "unsqueeze") and is_axis(arg(node, 1, "dim"), 1, 4):
        found = node.args[0]
        assert isinstance(found, fx.Node)
        return found
    return rewriter.emit_method(at, "squeeze", (node, 1), like=at)


PATTERN = Pattern("qk_norm_rope", _anchors, match)
