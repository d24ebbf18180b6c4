"""RMSNorm of a head and rotary position embedding, rounded where Hugging Face's eager Qwen3 rounds.

    norm(x) = weight * (x / sqrt(mean(x^2) + eps) rounded to the dtype)
    rope(x) = x * cos + rotate_half(x) * sin,  rotate_half(x) = [-x[D/2:], x[:D/2]], each product rounded to the dtype

The jitted functions work on values in registers; how a kernel loads its heads is its own affair.
Source: transformers, models/qwen3/modeling_qwen3.py (Qwen3RMSNorm, apply_rotary_pos_emb).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def scale_head(x, inverse_rms, weight, dtype: tl.constexpr):
    """fp32 x and 1 / rms -> the normalised head, rounded to dtype before and after the weight, as fp32."""
    return ((x * inverse_rms).to(dtype).to(tl.float32) * weight.to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def rotate(x, partner, cos, sin, dtype: tl.constexpr):
    """x * cos + partner * sin in dtype; fp32 x, and as partner what rotate_half puts in its place."""
    kept = (x * cos.to(tl.float32)).to(dtype).to(tl.float32)
    return (kept + (partner * sin.to(tl.float32)).to(dtype).to(tl.float32)).to(dtype)


def norm_rope_reference(
    x: torch.Tensor, weight: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, eps: float
) -> torch.Tensor:
    """Norm and RoPE of heads [..., H, D] in torch, with the roundings of the eager model; cos and sin [..., D]."""
    if weight is not None:
        wide = x.float()
        x = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos.unsqueeze(-2) + rotated * sin.unsqueeze(-2)
