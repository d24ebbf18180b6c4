"""Calls of every operator, with the operands that tests of the operators share: name -> (form, arguments)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

Tensor = torch.Tensor
Call = tuple[str, str, tuple[Any, ...]]


def calls(dtype: torch.dtype = torch.float32, seed: int = 0) -> Iterator[Call]:
    """(operator, form, arguments): awkward sizes, optional arguments given and left out, strides that are not dense."""
    make = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=make) * scale).to(dtype)

    x, weight = random(2, 3, 48), random(48)
    strided = random(2, 48, 3).transpose(1, 2)
    yield "rms_norm", "rows", (x, weight, 1e-6)
    yield "rms_norm", "one row, wide eps", (random(1, 48), weight, 0.5)
    yield "rms_norm", "strided", (strided, weight, 1e-6)
    yield "add_rms_norm", "rows", (x, random(2, 3, 48), weight, 1e-6)
    yield "add_rms_norm", "strided", (strided, x, weight, 1e-5)

    yield "linear", "plain", (x, random(20, 48, scale=0.2), None, None)
    yield "linear", "bias and residual", (x, random(20, 48, scale=0.2), random(20), random(2, 3, 20))
    yield "linear", "strided", (strided, random(20, 48, scale=0.2), None, random(2, 20, 3).transpose(1, 2))
    qkv = [random(n, 48, scale=0.2) for n in (64, 32, 32)]
    yield "linear_qkv", "plain", (x, *qkv, None, None, None)
    yield "linear_qkv", "bias", (x[0, :1], *qkv, random(64), random(32), random(32))
    yield "linear_silu_mul", "plain", (x, random(36, 48, scale=0.2), random(36, 48, scale=0.2))

    q, k = random(2, 3, 4, 16), random(2, 3, 2, 16)
    cos, sin = random(1, 3, 16), random(1, 3, 16)
    row = random(2, 3, 8, 16)
    yield "qk_norm_rope", "norm", (q, k, random(16), random(16), cos, sin, 1e-6)
    yield "qk_norm_rope", "rope alone, views", (row[:, :, :4], row[:, :, 4:6], None, None, cos, sin, 1e-6)
    yield "qk_norm_rope", "table of each", (q, k, random(16), random(16), random(2, 3, 16), random(2, 3, 16), 1e-6)

    def heads(tokens: int, count: int) -> Tensor:
        """As models have them: [B, S, H, D] seen as [B, H, S, D]."""
        return random(2, tokens, count, 16).transpose(1, 2)

    one, past = heads(1, 4), (random(2, 2, 21, 16), random(2, 2, 21, 16))
    some = torch.rand(2, 1, 1, 21, generator=make) < 0.5
    some[..., 3] = True
    yield "attention", "decode", (one, *past, None, 0.25, False, 0)
    yield "attention", "decode, mask", (one, *past, some, 0.25, False, 0)
    yield "attention", "decode, one mask, window", (one, *past, some[:1], 0.3, False, 19)
    yield "attention", "decode, window", (one, *past, None, 0.25, False, 5)
    yield "attention", "decode, as many heads", (one, heads(21, 4), heads(21, 4), some, 0.25, False, 0)
    full = (heads(5, 4), heads(5, 2), heads(5, 2))
    yield "attention", "prefill", (*full, None, 0.25, True, 0)
    yield "attention", "prefill, window", (*full, None, 0.25, True, 2)
    yield "attention", "prefill, all keys", (*full, None, 0.25, False, 0)
    yield "attention", "prefill, first keys", (full[0], *past, None, 0.25, True, 0)
    causal = torch.ones(5, 21, dtype=torch.bool).tril(16).expand(2, 1, 5, 21)
    yield "attention", "prefill, mask", (full[0], *past, causal, 0.25, False, 0)

    new = (random(2, 1, 4, 16), random(2, 1, 2, 16), random(2, 1, 2, 16))
    table, norms = (cos[:, :1], sin[:, :1]), (random(16), random(16))
    caches = (random(2, 2, 21, 16), random(2, 2, 21, 16))
    until = (torch.arange(21) <= 9).expand(2, 1, 1, 21)
    at = torch.tensor([9])
    yield "attention_decode_fused", "norm", (*new, *norms, *table, *caches, at, None, 1e-6, 0.25, 0)
    yield "attention_decode_fused", "rope alone", (*new, None, None, *table, *caches, at, None, 1e-6, 0.25, 0)
    yield (
        "attention_decode_fused",
        "mask",
        (*new, *norms, *table, *caches, at, some & until | (until & ~until.roll(-1, -1)), 1e-6, 0.25, 0),
    )
    yield "attention_decode_fused", "window", (*new, *norms, *table, *caches, at, None, 1e-6, 0.25, 4)
    each = torch.tensor([0, 17])
    yield "attention_decode_fused", "a place of each", (*new, *norms, *table, *caches, each, None, 1e-6, 0.25, 0)

    logits = random(5, 12, scale=2.0)
    yield "router", "renormalised", (logits, 3, True, dtype)
    yield "router", "plain, strided", (random(12, 5).t(), 3, False, torch.float32)

    def moe(tokens: int, inter: int, hidden: int = 32) -> tuple[Tensor, ...]:
        w13, w2 = random(8, 2 * inter, hidden, scale=0.2), random(8, hidden, inter, scale=0.2)
        weights, ids = torch.rand(tokens, 8, generator=make).topk(3)
        return random(tokens, hidden), w13, w2, weights.to(dtype), ids

    yield "experts", "one token", (*moe(1, 24), None)
    yield "experts", "tokens", (*moe(7, 24), None)
    yield "experts", "residual", (*moe(5, 24), random(5, 32))
    yield "experts", "odd sizes", (*moe(5, 11, 33), None)
    yield "experts", "many tokens", (*moe(40, 16), None)


def copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with tensors of their own, strides kept: an operator may write into them."""
    return tuple(
        torch.empty_strided(a.shape, a.stride(), dtype=a.dtype).copy_(a)
        if isinstance(a, Tensor) and 0 not in a.stride()
        else a
        for a in arguments
    )
