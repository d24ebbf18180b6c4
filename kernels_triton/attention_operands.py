"""What attention's launchers check of their tensors, and the strides they hand to the kernels."""

from __future__ import annotations

import torch

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_heads(name: str, tensor: torch.Tensor, *axes: str) -> None:
    """[*axes, heads, head_dim] of a dtype we have kernels for, unit stride over it. Raises ValueError."""
    if tensor.dim() != len(axes) + 2:
        expected = ", ".join((*axes, "heads", "head_dim"))
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected [{expected}]")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}, expected bfloat16, float16 or float32")
    _check_unit_stride(name, tensor)


def check_like(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Exactly this shape and dtype, unit stride over the last axis. Raises ValueError."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, expected {dtype}")
    _check_unit_stride(name, tensor)


def check_caches(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
    """Caches [B, Hkv, S, D] with q's batch, head_dim, dtype; Hkv divides q's heads. Raises ValueError."""
    if k_cache.dim() != 4:
        raise ValueError(f"k_cache has shape {tuple(k_cache.shape)}, expected [batch, kv_heads, tokens, head_dim]")
    batch, q_heads, head_dim = q.shape
    kv_heads, capacity = k_cache.shape[1], k_cache.shape[2]
    check_like("k_cache", k_cache, (batch, kv_heads, capacity, head_dim), q.dtype)
    check_like("v_cache", v_cache, (batch, kv_heads, capacity, head_dim), q.dtype)
    check_group(q_heads, kv_heads)


def check_group(q_heads: int, kv_heads: int) -> None:
    """Every kv head serves the same number of query heads. Raises ValueError."""
    if kv_heads < 1 or q_heads % kv_heads:
        raise ValueError(f"{q_heads} query heads cannot be shared by {kv_heads} kv heads")


def check_lengths(lengths: torch.Tensor, batch: int) -> None:
    """[B] int32 or int64, any stride: one number for all sequences is an expanded tensor. Raises ValueError."""
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}, expected {(batch,)}")
    if lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"lengths is {lengths.dtype}, expected int32 or int64")


def check_mask(mask: torch.Tensor, *shape: int) -> None:
    """Exactly this shape, bool, unit stride over the keys; the others are free and may be 0. Raises ValueError."""
    check_like("mask", mask, shape, torch.bool)


def row_strides(name: str, tensor: torch.Tensor | None, *axes: str) -> dict[str, int | None]:
    """`{name}_{axis}_stride` in elements for the leading axes; None each, no run-time argument, for no tensor.

    An axis of length 1 gets stride 0, whatever torch made up for it: it is never stepped over, and an
    accidental 1 or odd number would make Triton compile another binary.
    """
    if tensor is None:
        return dict.fromkeys((f"{name}_{axis}_stride" for axis in axes), None)
    return {
        f"{name}_{axis}_stride": tensor.stride(position) if tensor.shape[position] > 1 else 0
        for position, axis in enumerate(axes)
    }


def _check_unit_stride(name: str, tensor: torch.Tensor) -> None:
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has stride {tensor.stride(-1)} over its last axis, expected 1")
