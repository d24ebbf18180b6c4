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
    out = _one_token(x, w13, w2, weights, ids) if len(x) == 1 else _grouped(x, w13, w2, weights, ids)
    return out if residual is None else out + residual


def _one_token(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """No sort, no gather: a third of the time for a small model (bench_cpu_sites.py)."""
    if x.device.type != "cpu":
        # Reading the ids would wait for the GPU, and break a CUDA graph's capture.
        return _grouped(x, w13, w2, weights, ids)
    products = []
    for expert in ids[0].tolist():
        gate, up = functional.linear(x, w13[expert]).chunk(2, -1)
        products.append(functional.linear(functional.silu(gate).mul_(up), w2[expert]))
    return (torch.cat(products) * weights.view(-1, 1)).sum(0, keepdim=True).to(x.dtype)


def _grouped(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """The pairs sorted by expert, two grouped products, and back."""
    tokens, top_k = ids.shape
    in_order, order = ids.reshape(-1).sort(stable=True)
    bounds = torch.searchsorted(in_order, torch.arange(len(w13), device=ids.device), right=True, out_int32=True)
    gate, up = _grouped_linear(x.index_select(0, order // top_k), w13, bounds).chunk(2, -1)
    product = _grouped_linear(functional.silu(gate).mul_(up), w2, bounds)
    placed = torch.empty_like(product).index_copy_(0, order, product).view(tokens, top_k, -1)
    return (placed * weights.unsqueeze(-1)).sum(1).to(x.dtype)


def _grouped_linear(rows: Tensor, weight: Tensor, bounds: Tensor) -> Tensor:
    """rows[bounds[e - 1]:bounds[e]] W[e]^T for every expert e."""
    # What torch's grouped_mm asks for; below, the loop waits for the device once.
    if all(size * rows.element_size() % 16 == 0 for size in weight.shape[1:]) and _has_grouped_mm(rows.device):
        return functional.grouped_mm(rows, weight.transpose(1, 2), offs=bounds)
    out = rows.new_zeros(len(rows), weight.shape[1])
    start = 0
    for expert, end in enumerate(bounds.tolist()):
        if end > start:
            torch.mm(rows[start:end], weight[expert].t(), out=out[start:end])
            start = end
    return out


def _has_grouped_mm(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))


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
