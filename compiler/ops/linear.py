"""Projections: plain, q, k and v in one, and gate and up with SiLU * mul; weights in the layout of Hugging Face."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..ask import Ask, Asks, rows_in
from ..choice import Way
from .define import define
from .launching import launching, rows_of

Tensor = torch.Tensor


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_linear_qkv(
    x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, bq: Tensor | None, bk: Tensor | None, bv: Tensor | None
) -> Tensor:
    return x.new_empty((*x.shape[:-1], wq.shape[0] + wk.shape[0] + wv.shape[0]))


def _fake_linear_silu_mul(x: Tensor, gate_weight: Tensor, up_weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], gate_weight.shape[0]))


LINEAR = define("linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual) -> Tensor", _fake_linear)
LINEAR_QKV = define(
    "linear_qkv(Tensor x, Tensor wq, Tensor wk, Tensor wv, Tensor? bq, Tensor? bk, Tensor? bv) -> Tensor",
    _fake_linear_qkv,
)
LINEAR_SILU_MUL = define(
    "linear_silu_mul(Tensor x, Tensor gate_weight, Tensor up_weight) -> Tensor", _fake_linear_silu_mul
)


def asks_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Asks:
    """One kernel, whatever the call."""
    dims = (weight.shape[0], x.shape[-1], int(bias is not None), int(residual is not None))
    return ((Ask("linear", dims, rows_in(x), x.dtype),),)


def asks_linear_qkv(
    x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, bq: Tensor | None, bk: Tensor | None, bv: Tensor | None
) -> Asks:
    """One kernel, where k and v are of one size and all three have a bias or none has."""
    if wk.shape[0] != wv.shape[0] or len({bias is None for bias in (bq, bk, bv)}) != 1:
        return ()
    return ((Ask("linear_qkv", (wq.shape[0], wk.shape[0], x.shape[-1], int(bq is not None)), rows_in(x), x.dtype),),)


def asks_linear_silu_mul(x: Tensor, gate_weight: Tensor, up_weight: Tensor) -> Asks:
    """One kernel, whatever the call."""
    return ((Ask("linear_silu_mul", (gate_weight.shape[0], x.shape[-1]), rows_in(x), x.dtype),),)


@LINEAR.body
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x W^T + bias, rounded, then + residual: x [..., K], weight [N, K], residual [..., N] -> contiguous [..., N]."""
    y = functional.linear(x, weight, bias)
    if residual is not None:
        y = y + residual
    return y.contiguous()


@LINEAR_QKV.body
def linear_qkv(
    x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, bq: Tensor | None, bk: Tensor | None, bv: Tensor | None
) -> Tensor:
    """The three projections of x side by side: weights [N_q, K], [N_k, K], [N_v, K] -> [..., N_q + N_k + N_v]."""
    parts = (functional.linear(x, wq, bq), functional.linear(x, wk, bk), functional.linear(x, wv, bv))
    return torch.cat(parts, -1)


@LINEAR_SILU_MUL.body
def linear_silu_mul(x: Tensor, gate_weight: Tensor, up_weight: Tensor) -> Tensor:
    """silu(x Wg^T) * (x Wu^T), each of the four steps rounded: weights [N, K] -> contiguous [..., N]."""
    return (functional.silu(functional.linear(x, gate_weight)) * functional.linear(x, up_weight)).contiguous()


@LINEAR.launcher
@launching(asks_linear, linear)
def _launch_linear(way: Way, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    (y,) = way[0].run(rows_of(x), weight, bias, None if residual is None else rows_of(residual))
    return y.view((*x.shape[:-1], y.shape[-1]))


@LINEAR_QKV.launcher
@launching(asks_linear_qkv, linear_qkv)
def _launch_linear_qkv(
    way: Way, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, bq: Tensor | None, bk: Tensor | None, bv: Tensor | None
) -> Tensor:
    (y,) = way[0].run(rows_of(x), wq, wk, wv, bq, bk, bv)
    return y.view((*x.shape[:-1], y.shape[-1]))


@LINEAR_SILU_MUL.launcher
@launching(asks_linear_silu_mul, linear_silu_mul)
def _launch_linear_silu_mul(way: Way, x: Tensor, gate_weight: Tensor, up_weight: Tensor) -> Tensor:
    (y,) = way[0].run(rows_of(x), gate_weight, up_weight)
    return y.view((*x.shape[:-1], y.shape[-1]))
