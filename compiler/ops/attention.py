"""Attention as scaled_dot_product_attention defines it, and its decode form joined with norm, RoPE and KV write."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ..ask import Ask, Asks
from ..choice import Way
from .define import define
from .launching import launching, unit_last
from .rope import qk_norm_rope

Tensor = torch.Tensor


def _fake_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool, window: int
) -> Tensor:
    batch, q_heads, tokens, _ = q.shape
    return q.new_empty((batch, tokens, q_heads, v.shape[-1]))


def _fake_attention_decode_fused(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor,
    k_cache: Tensor, v_cache: Tensor, positions: Tensor, mask: Tensor | None, eps: float, scale: float, window: int,
) -> Tensor:  # fmt: skip
    return q.new_empty(q.shape)


ATTENTION = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, bool is_causal, int window) -> Tensor",
    _fake_attention,
)
ATTENTION_DECODE_FUSED = define(
    "attention_decode_fused(Tensor q, Tensor k, Tensor v, Tensor? q_weight, Tensor? k_weight, Tensor cos, Tensor sin,"
    " Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor positions, Tensor? mask, float eps, float scale, int window)"
    " -> Tensor",
    _fake_attention_decode_fused,
)


def asks_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool, window: int
) -> Asks:
    """attention_decode for one query a sequence, attention_prefill for several; none for what they cannot compute:
    an added mask, one that differs between heads, v with another head size than k, or a window beside a mask in
    prefill. Causal with more queries than keys is left to torch as well."""
    batch, q_heads, tokens, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    if v.shape[-1] != head_dim or scale <= 0 or (is_causal and keys < tokens):
        return ()
    if mask is not None and not _is_shared_bool(mask, keys):
        return ()
    if tokens == 1 and not (is_causal and keys > 1):
        dims = (q_heads, kv_heads, head_dim, window, context_bucket(keys))
        return ((Ask("attention_decode", dims, batch, q.dtype),),)
    if window > 0 and (mask is not None or not is_causal):
        return ()
    return ((Ask("attention_prefill", (q_heads, kv_heads, head_dim, window), tokens, q.dtype),),)


def asks_attention_decode_fused(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor,
    k_cache: Tensor, v_cache: Tensor, positions: Tensor, mask: Tensor | None, eps: float, scale: float, window: int,
) -> Asks:  # fmt: skip
    """One kernel, where q and k are both normalised or neither is."""
    if (q_weight is None) != (k_weight is None) or (mask is not None and window > 0):
        return ()
    context = context_bucket(k_cache.shape[2])
    dims = (q.shape[2], k.shape[2], q.shape[3], window, context, int(q_weight is not None))
    return ((Ask("attention_decode_fused", dims, q.shape[0], q.dtype),),)


def context_bucket(keys: int) -> int:
    """The power of two nearest by ratio: a growing cache asks a new question at each doubling, not at each token."""
    return 1 << max(0, round(math.log2(keys))) if keys > 0 else 1


def _is_shared_bool(mask: Tensor, keys: int) -> bool:
    """Bool, the same for all heads, one column a key."""
    return mask.dtype == torch.bool and len(mask.shape) == 4 and mask.shape[1] == 1 and mask.shape[3] == keys


@ATTENTION.body
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool, window: int
) -> Tensor:
    """softmax(scale q k^T + mask) v: q [B, Hq, S, D], k [B, Hk, T, D], v [B, Hk, T, Dv] -> contiguous [B, S, Hq, Dv].

    As torch's scaled_dot_product_attention: mask bool (True = attend) or added, broadcastable to [B, Hq, S, T];
    is_causal aligns query 0 with key 0 and excludes a mask. A window > 0 leaves the last `window` keys up to a query's
    own: key i of query i when causal, else the last key, which needs S == 1. Each k and v head serves Hq / Hk heads.
    """
    if window > 0:
        mask, is_causal = _within_window(q, k, mask, is_causal, window), False
    return _grouped_attention(q, k, v, mask, scale, is_causal).transpose(1, 2).contiguous()


@ATTENTION_DECODE_FUSED.body
def attention_decode_fused(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor,
    k_cache: Tensor, v_cache: Tensor, positions: Tensor, mask: Tensor | None, eps: float, scale: float, window: int,
) -> Tensor:  # fmt: skip
    """One token of each sequence: q [B, 1, Hq, D], k and v [B, 1, Hk, D] before norm and RoPE -> [B, 1, Hq, D].

    As qk_norm_rope; then k and v are written to the caches [B, Hk, T, D] at `positions` ([1] for all sequences or [B],
    integers), and q attends to what the mask (bool, [B or 1, 1, 1, T], True = attend) allows of the caches then, or
    without a mask to the new token and those before it, of them the last `window` (0: all). A window excludes a mask.
    """
    q, k = qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps)
    _write(k_cache, positions, k)
    _write(v_cache, positions, v)
    if mask is None:
        keys, own = torch.arange(k_cache.shape[2], device=q.device), positions.view(-1, 1)
        seen = keys <= own
        if window > 0:
            seen = seen & (keys > own - window)
        mask = seen[:, None, None]
    elif window > 0:
        raise ValueError(f"window {window} beside a mask: a mask says itself what is seen")
    out = _grouped_attention(q.transpose(1, 2), k_cache, v_cache, mask, scale, False)
    return out.transpose(1, 2).contiguous()


def _within_window(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, window: int) -> Tensor:
    """The mask [.., .., S, T] that also keeps the window."""
    tokens, keys = q.shape[2], k.shape[2]
    if not is_causal and tokens != 1:
        raise ValueError(f"window {window} without is_causal takes one query, not {tokens}")
    last = torch.arange(tokens, device=q.device)[:, None] if is_causal else keys - 1
    key = torch.arange(keys, device=q.device)[None, :]
    seen = (key <= last) & (key > last - window)
    seen = seen[None, None]
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, float("-inf"))


def _grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool) -> Tensor:
    """[B, Hq, S, Dv] of any strides."""
    if q.shape[2] == 1 and not is_causal:
        return _one_query(q, k, v, mask, scale)
    group = q.shape[1] // k.shape[1]
    # On a GPU torch's fast kernels share heads only without a mask and up to 256 wide.
    can_share = q.device.type != "cuda" or (mask is None and q.shape[3] == v.shape[3] <= 256)
    if group > 1 and not can_share:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of one query a sequence: the heads that share a kv head become the rows of one head.

    Nothing is repeated, and a matrix product takes the place of one matrix-vector product a head, which for bf16 is ten
    times faster on a CPU; even two equal rows are faster than one (bench_cpu_sites.py).
    """
    batch, q_heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    rows = q.reshape(batch, kv_heads, q_heads // kv_heads, head_dim)
    if mask is not None and mask.shape[-3] > 1:
        mask = mask.expand(-1, q_heads, -1, -1).reshape(-1, kv_heads, q_heads // kv_heads, mask.shape[-1])
    is_doubled = q_heads == kv_heads and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    if is_doubled:
        rows = rows.expand(-1, -1, 2, -1)
        mask = None if mask is None else mask.expand(-1, -1, 2, -1)
    out = functional.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scale)
    return (out[:, :, :1] if is_doubled else out).reshape(batch, q_heads, 1, v.shape[-1])


def _write(cache: Tensor, positions: Tensor, new: Tensor) -> None:
    """cache[b, :, positions[b]] = new[b, 0]."""
    rows = new.transpose(1, 2)
    if positions.numel() == 1:
        cache.index_copy_(2, positions.view(-1), rows)
    else:
        cache[torch.arange(len(cache), device=cache.device), :, positions] = rows[:, :, 0]


@ATTENTION.launcher
@launching(asks_attention, attention)
def _launch_attention(
    way: Way, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool, window: int
) -> Tensor:
    batch, q_heads, tokens, head_dim = q.shape
    q, k, v = unit_last(q), unit_last(k), unit_last(v)
    keys = k.shape[2]
    if mask is not None:
        mask = unit_last(mask)[:, 0].expand(batch, tokens, keys)
    if way[0].problem.kernel == "attention_decode":
        (out,) = way[0].run(q[:, :, 0], k, v, None, scale, window, None if mask is None else mask[:, 0])
        return out.view(batch, 1, q_heads, head_dim)
    if is_causal and keys > tokens:
        # The kernel aligns the last query with the last key, torch the first with the first.
        k, v = k[:, :, :tokens], v[:, :, :tokens]
    (out,) = way[0].run(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale, window, mask, is_causal)
    return out


@ATTENTION_DECODE_FUSED.launcher
@launching(asks_attention_decode_fused, attention_decode_fused)
def _launch_attention_decode_fused(
    way: Way, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor,
    sin: Tensor, k_cache: Tensor, v_cache: Tensor, positions: Tensor, mask: Tensor | None, eps: float, scale: float,
    window: int,
) -> Tensor:  # fmt: skip
    batch, _, q_heads, head_dim = q.shape
    if mask is not None:
        mask = unit_last(mask)[:, 0, 0].expand(batch, k_cache.shape[2])
    cos, sin = (unit_last(each)[:, 0].expand(batch, head_dim) for each in (cos, sin))
    out, _, _ = way[0].run(
        unit_last(q)[:, 0], unit_last(k)[:, 0], unit_last(v)[:, 0], q_weight, k_weight, cos, sin, k_cache, v_cache,
        positions.expand(batch), eps, scale, window, mask,
    )  # fmt: skip
    return out.view(batch, 1, q_heads, head_dim)
