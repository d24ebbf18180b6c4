"""What the operators compute: every body against a formula in fp64, and bit by bit against Hugging Face in bf16."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.integrations.moe import batched_mm_experts_forward, grouped_mm_experts_forward
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from paiton.compiler.ops.registry import OPERATORS

from .op_calls import Call, calls, copied

Tensor = torch.Tensor
CALLS = list(calls())
BF16 = torch.bfloat16


def run(name: str, *arguments: Any) -> Any:
    with torch.no_grad():
        return OPERATORS[name].overload(*arguments)


def case_id(call: Call) -> str:
    return f"{call[0]}: {call[1]}"


class Formula:
    """Each operator, as simply as it can be written; the arguments in fp64."""

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)

    @staticmethod
    def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return Formula.rms_norm(x + residual, weight, eps), x + residual

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        y = torch.einsum("...k,nk->...n", x, weight)
        y = y if bias is None else y + bias
        return y if residual is None else y + residual

    @staticmethod
    def linear_qkv(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, *biases: Tensor | None) -> Tensor:
        return torch.cat([Formula.linear(x, w, b, None) for w, b in zip((wq, wk, wv), biases, strict=True)], -1)

    @staticmethod
    def linear_silu_mul(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        g = Formula.linear(x, gate, None, None)
        return g / (1 + torch.exp(-g)) * Formula.linear(x, up, None, None)

    @staticmethod
    def qk_norm_rope(
        q: Tensor, k: Tensor, wq: Tensor | None, wk: Tensor | None, cos: Tensor, sin: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        def turn(x: Tensor, weight: Tensor | None) -> Tensor:
            x = x if weight is None else Formula.rms_norm(x, weight, eps)
            low, high = x.chunk(2, -1)
            return x * cos[:, :, None] + torch.cat((-high, low), -1) * sin[:, :, None]

        return turn(q, wq), turn(k, wk)

    @staticmethod
    def attention(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool, window: int
    ) -> Tensor:
        group, tokens, keys = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
        seen = torch.ones(tokens, keys, dtype=torch.bool)
        if is_causal:
            seen = seen.tril()
        if window:
            own = torch.arange(tokens)[:, None] if is_causal else torch.tensor([[keys - 1]])
            seen = seen & (own - torch.arange(keys) < window)
        if mask is not None:
            seen = seen & mask
        scores = q @ k.repeat_interleave(group, 1).transpose(2, 3) * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return (weights @ v.repeat_interleave(group, 1)).transpose(1, 2)

    @staticmethod
    def attention_decode_fused(
        q: Tensor, k: Tensor, v: Tensor, wq: Tensor | None, wk: Tensor | None, cos: Tensor, sin: Tensor,
        k_cache: Tensor, v_cache: Tensor, positions: Tensor, mask: Tensor | None, eps: float, scale: float, window: int,
    ) -> Tensor:  # fmt: skip
        q, k = Formula.qk_norm_rope(q, k, wq, wk, cos, sin, eps)
        out = []
        for b in range(len(q)):
            at = int(positions.expand(len(q))[b])
            k_cache[b, :, at], v_cache[b, :, at] = k[b, 0], v[b, 0]
            first = max(0, at + 1 - window) if window else 0
            hidden = torch.zeros(at + 1, dtype=torch.bool) if mask is None else ~mask[b, 0, 0, : at + 1]
            hidden[at] = False
            rows = [t for t in range(first, at + 1) if not hidden[t]]
            one = [c[b : b + 1, :, rows] for c in (k_cache, v_cache)]
            out.append(Formula.attention(q[b : b + 1].transpose(1, 2), *one, None, scale, False, 0))
        return torch.cat(out)

    @staticmethod
    def router(logits: Tensor, top_k: int, renormalize: bool, weights_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weights, ids = logits.softmax(-1).sort(descending=True)
        weights, ids = weights[:, :top_k], ids[:, :top_k]
        return (weights / weights.sum(-1, keepdim=True) if renormalize else weights), ids

    @staticmethod
    def experts(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, residual: Tensor | None) -> Tensor:
        out = torch.zeros_like(x) if residual is None else residual.clone()
        for t in range(len(x)):
            for weight, e in zip(weights[t], ids[t], strict=True):
                out[t] += weight * (Formula.linear_silu_mul(x[t], *w13[e].chunk(2)) @ w2[e].T)
        return out


def wide(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)


@pytest.mark.parametrize("call", CALLS, ids=case_id)
def test_body_computes_the_formula(call: Call) -> None:
    name, _, arguments = call
    mine, exact = copied(arguments), wide(copied(arguments))
    got, expected = run(name, *mine), getattr(Formula, name)(*exact)
    torch.testing.assert_close(got, expected, check_dtype=False, rtol=2e-5, atol=2e-5)
    if name == "attention_decode_fused":
        torch.testing.assert_close(mine[7:9], exact[7:9], check_dtype=False, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("call", CALLS, ids=case_id)
def test_outputs_are_contiguous_and_no_input_is_written(call: Call) -> None:
    name, _, arguments = call
    before = copied(arguments)
    outputs = run(name, *arguments)
    for each in (outputs,) if isinstance(outputs, Tensor) else outputs:
        assert each.is_contiguous()
    if name != "attention_decode_fused":
        assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True) if isinstance(a, Tensor))


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(BF16)


def test_norms_round_as_hugging_face() -> None:
    norm = Qwen3RMSNorm(96, eps=1e-5).to(BF16)
    norm.weight.data.copy_(random(96))
    x, residual = random(5, 96), random(4, 5, 96)[1]
    with torch.no_grad():
        assert torch.equal(run("rms_norm", x, norm.weight, 1e-5), norm(x))
        normed, total = run("add_rms_norm", x, residual, norm.weight, 1e-5)
        assert torch.equal(total, x + residual) and torch.equal(normed, norm(x + residual))


def test_rope_rounds_as_hugging_face() -> None:
    q, k, cos, sin = random(2, 3, 4, 16), random(2, 3, 2, 16), random(1, 3, 16), random(1, 3, 16)
    norm = Qwen3RMSNorm(16).to(BF16)
    norm.weight.data.copy_(random(16))
    with torch.no_grad():
        expected = apply_rotary_pos_emb(norm(q).transpose(1, 2), norm(k).transpose(1, 2), cos, sin)
        got = run("qk_norm_rope", q, k, norm.weight, norm.weight, cos, sin, 1e-6)
    assert all(torch.equal(a.transpose(1, 2), b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_experts_round_as_hugging_face(tokens: int) -> None:
    w13, w2 = random(16, 48, 32, scale=0.2), random(16, 32, 24, scale=0.2)
    x = random(tokens, 32)
    weights, ids = torch.softmax(random(tokens, 16).float(), -1).topk(4)
    module: Any = SimpleNamespace(
        num_experts=16, gate_up_proj=w13, down_proj=w2, has_gate=True, has_bias=False, is_transposed=False,
        has_post_expert_norm=False, _is_expert_parallel=False,
        _apply_gate=lambda both: functional.silu(both.chunk(2, -1)[0]) * both.chunk(2, -1)[1],
    )  # fmt: skip
    got = run("experts", x, w13, w2, weights.to(BF16), ids, None)
    assert torch.equal(got, grouped_mm_experts_forward(module, x, ids, weights.to(BF16)))
    close = batched_mm_experts_forward(module, x, ids, weights.to(BF16))
    torch.testing.assert_close(got, close, rtol=2e-2, atol=2e-2)


def test_router_rounds_as_hugging_face() -> None:
    logits = random(7, 16, scale=2.0)
    values, ids = torch.topk(functional.softmax(logits, dtype=torch.float, dim=-1), 4, dim=-1)
    values /= values.sum(dim=-1, keepdim=True)
    got = run("router", logits, 4, True, BF16)
    assert torch.equal(got[0], values.to(BF16)) and torch.equal(got[1], ids)


@pytest.mark.parametrize(("heads", "keys"), [((8, 2), 40), ((4, 4), 40), ((4, 1), 1)])
def test_decode_attention_is_torchs(heads: tuple[int, int], keys: int) -> None:
    q, k, v = random(3, heads[0], 1, 32), random(3, heads[1], keys, 32), random(3, heads[1], keys, 32)
    group = heads[0] // heads[1]
    repeated = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    additive = random(3, heads[0], 1, keys)
    for mask in (None, additive, additive > 0.5, (additive > -9)[:, :1]):
        got = run("attention", q, k, v, mask, 0.2, False, 0)
        expected = functional.scaled_dot_product_attention(q, *repeated, attn_mask=mask, scale=0.2).transpose(1, 2)
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_a_window_with_several_queries_that_are_not_causal_has_no_meaning() -> None:
    q = random(1, 2, 3, 16)
    with pytest.raises(ValueError, match="takes one query, not 3"):
        run("attention", q, q, q, None, 0.25, False, 2)
