"""Mixture of experts: the router (softmax, top-k, renormalisation) and the experts (SwiGLU, weighted sum)."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..ask import Ask, Asks
from ..choice import Way
from .define import define
from .launching import launching, unit_last

Tensor = torch.Tensor


def _fake_router(logits: Tensor, top_k: int, renormalize: bool, weights_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=weights_dtype), logits.new_empty(shape, dtype=torch.int64)


def _fake_experts(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, residual: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


ROUTER = define(
    "router(Tensor logits, int top_k, bool renormalize, ScalarType weights_dtype) -> (Tensor, Tensor)", _fake_router
)
EXPERTS = define(
    "experts(Tensor x, Tensor w13, Tensor w2, Tensor weights, Tensor ids, Tensor? residual) -> Tensor", _fake_experts
)


def asks_router(logits: Tensor, top_k: int, renormalize: bool, weights_dtype: torch.dtype) -> Asks:
    """One kernel, whatever the call."""
    return ((Ask("router", (logits.shape[1], top_k, int(renormalize)), logits.shape[0], logits.dtype),),)


def asks_experts(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, residual: Tensor | None) -> Asks:
    """Two ways: gate_up and down without a sort (decode), or everything grouped by expert (prefill)."""
    dims = (w13.shape[0], ids.shape[1], x.shape[1], w2.shape[2])
    gate_up, down, grouped = (
        Ask(kernel, dims, x.shape[0], x.dtype) for kernel in ("moe_gate_up", "moe_down", "moe_grouped")
    )
    return (gate_up, down), (grouped,)


@ROUTER.body
def router(logits: Tensor, top_k: int, renormalize: bool, weights_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """softmax(logits) in fp32, its top_k values [T, k], divided by their sum if renormalize, then rounded to
    weights_dtype; and their ids [T, k] int64. Logits [T, E] (transformers, models/qwen3_moe)."""
    weights, ids = torch.topk(torch.softmax(logits, -1, dtype=torch.float32), top_k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(weights_dtype), ids


@EXPERTS.body
def experts(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, residual: Tensor | None) -> Tensor:
    """sum over j of weights[t, j] * W2[e] (silu(W1[e] x[t]) * (W3[e] x[t])), e = ids[t, j], then + residual.

    x and residual [T, H], w13 [E, 2 I, H] with the gate rows (W1) first, w2 [E, H, I], weights, ids [T, k] -> [T, H].
    Every product is rounded as in Hugging Face's grouped_mm and batched_mm experts (transformers, integrations/moe.py):
    each expert's row, that row times its weight, and the sum over k, which accumulates in fp32.
    """
    tokens, top_k = ids.shape
    pairs = ids.reshape(-1)
    order = pairs.argsort(stable=True)
    counts = torch.bincount(pairs, minlength=w13.shape[0]).tolist()
    rows = x[order // top_k]
    product = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            span = slice(start, start + count)
            gate, up = functional.linear(rows[span], w13[expert]).chunk(2, -1)
            product[span] = functional.linear(functional.silu(gate) * up, w2[expert])
            start += count
    weighted = product * weights.reshape(-1)[order].unsqueeze(-1)
    placed = torch.empty_like(weighted)
    placed[order] = weighted
    out = placed.view(tokens, top_k, -1).sum(1).to(x.dtype)
    return out if residual is None else out + residual


@ROUTER.launcher
@launching(asks_router, router)
def _launch_router(
    way: Way, logits: Tensor, top_k: int, renormalize: bool, weights_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    weights, ids = way[0].run(unit_last(logits), top_k, renormalize, weights_dtype)
    return weights, ids


@EXPERTS.launcher
@launching(asks_experts, experts)
def _launch_experts(
    way: Way, x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, residual: Tensor | None
) -> Tensor:
    x, weights, ids = unit_last(x), weights.contiguous(), ids.contiguous()
    residual = None if residual is None else unit_last(residual)
    if len(way) == 1:
        (out,) = way[0].run(x, w13, w2, ids, weights, residual)
    else:
        gate_up, down = way
        (h,) = gate_up.run(x, w13, ids)
        (out,) = down.run(h, w2, ids, weights, residual)
    return out
