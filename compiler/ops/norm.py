"""RMSNorm, alone and after a residual add: schemas, fakes and bodies that round as Hugging Face's Qwen3RMSNorm."""

from __future__ import annotations

import torch

from ..ask import Ask, Asks, rows_in
from ..choice import Way
from .define import define
from .launching import launching, rows_of

Tensor = torch.Tensor


def _fake_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _fake_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


RMS_NORM = define("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", _fake_rms_norm)
ADD_RMS_NORM = define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)", _fake_add_rms_norm
)


def asks_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Asks:
    """One kernel, whatever the call."""
    return ((Ask("rms_norm", (x.shape[-1],), rows_in(x), x.dtype),),)


def asks_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Asks:
    """One kernel, whatever the call."""
    return ((Ask("add_rms_norm", (x.shape[-1],), rows_in(x), x.dtype),),)


@RMS_NORM.body
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * (x / sqrt(mean(x^2) + eps)): x [..., H] -> contiguous [..., H], normalised in fp32, rounded, then
    multiplied (transformers, models/qwen3/modeling_qwen3.py)."""
    return normalised(x, weight, eps).contiguous()


@ADD_RMS_NORM.body
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), both contiguous; the sum is rounded to the dtype first."""
    total = (x + residual).contiguous()
    return normalised(total, weight, eps), total


@RMS_NORM.launcher
@launching(asks_rms_norm, rms_norm)
def _launch_rms_norm(way: Way, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    (y,) = way[0].run(rows_of(x), weight, eps)
    return y.view(x.shape)


@ADD_RMS_NORM.launcher
@launching(asks_add_rms_norm, add_rms_norm)
def _launch_add_rms_norm(way: Way, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, total = way[0].run(rows_of(x), rows_of(residual), weight, eps)
    return y.view(x.shape), total.view(x.shape)


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Qwen3RMSNorm over the last axis, whatever the strides."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)
