"""RMSNorm over each head of q and k (or none) and rotary position embedding, in one operator."""

from __future__ import annotations

import torch

from ..ask import Ask, Asks
from ..choice import Way
from .define import define
from .launching import launching, unit_last
from .norm import normalised

Tensor = torch.Tensor


def _fake_qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


QK_NORM_ROPE = define(
    "qk_norm_rope(Tensor q, Tensor k, Tensor? q_weight, Tensor? k_weight, Tensor cos, Tensor sin, float eps)"
    " -> (Tensor, Tensor)",
    _fake_qk_norm_rope,
)


def asks_qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> Asks:
    """One kernel, where q and k are both normalised or neither is."""
    if (q_weight is None) != (k_weight is None):
        return ()
    dims = (q.shape[2], k.shape[2], q.shape[3], int(q_weight is not None))
    return ((Ask("qk_norm_rope", dims, q.shape[0] * q.shape[1], q.dtype),),)


@QK_NORM_ROPE.body
def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x * cos + rotate_half(x) * sin of q [B, S, Hq, D] and k [B, S, Hk, D], contiguous; cos, sin [B or 1, S, D].

    With weights [D], x is the RMSNorm of a head first. Rounded step by step in the dtype, as apply_rotary_pos_emb of
    Hugging Face does (transformers, models/qwen3/modeling_qwen3.py).
    """
    if q_weight is not None:
        q = normalised(q, q_weight, eps)
    if k_weight is not None:
        k = normalised(k, k_weight, eps)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return rotated(q, cos, sin), rotated(k, cos, sin)


@QK_NORM_ROPE.launcher
@launching(asks_qk_norm_rope, qk_norm_rope)
def _launch_qk_norm_rope(
    way: Way, q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q_out, k_out = way[0].run(unit_last(q), unit_last(k), q_weight, k_weight, unit_last(cos), unit_last(sin), eps)
    return q_out, k_out


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + rotate_half(x) * sin, contiguous; cos and sin broadcast against x over its last axis."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return (x * cos + turned * sin).contiguous()
