"""Where our operators' CPU bodies beat Inductor: `python tests/compiler/bench_cpu_sites.py [SITE ...] [--hidden 1024]`.

Each site is compiled twice by Inductor, once as Hugging Face writes it and once with our operator in its place, on the
same inputs; what is left around the operator (a transpose, a split) is part of it. Times are CPU time of one thread, so
another process on the machine does not count; the best of interleaved rounds. A ratio below 1 means that ours wins.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional
from transformers.integrations.moe import grouped_mm_experts_forward

import paiton.compiler.ops  # noqa: F401  registers the operators
from paiton.compiler.ops.define import NAMESPACE

ROUNDS = 15
ours = getattr(torch.ops, NAMESPACE)
Tensor = torch.Tensor
Case = tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]


def rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return (x * cos) + (torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin)


def repeat_kv(x: Tensor, times: int) -> Tensor:
    batch, heads, tokens, size = x.shape
    return x[:, :, None].expand(batch, heads, times, tokens, size).reshape(batch, heads * times, tokens, size)


class Shapes:
    """Random inputs of one model size and dtype."""

    def __init__(self, hidden: int, dtype: torch.dtype) -> None:
        self.hidden, self.dtype = hidden, dtype
        self.head_dim, self.heads, self.kv_heads = 64, hidden // 64, hidden // 256

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape) * scale).to(self.dtype)

    def weight(self, rows: int, columns: int) -> Tensor:
        return self.random(rows, columns, scale=columns**-0.5)


def rms_norm(s: Shapes, batch: int, tokens: int) -> Iterator[Case]:
    x, weight = s.random(batch, tokens, s.hidden), s.random(s.hidden)
    yield "", rms, lambda x, w: ours.rms_norm(x, w, 1e-6), (x, weight)


def add_rms_norm(s: Shapes, batch: int, tokens: int) -> Iterator[Case]:
    x, residual, weight = s.random(batch, tokens, s.hidden), s.random(batch, tokens, s.hidden), s.random(s.hidden)

    def plain(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = residual + x
        return rms(total, weight), total

    yield "", plain, lambda x, r, w: ours.add_rms_norm(x, r, w, 1e-6), (x, residual, weight)


def qk_norm_rope(s: Shapes, batch: int, tokens: int) -> Iterator[Case]:
    q, k = s.random(batch, tokens, s.heads, s.head_dim), s.random(batch, tokens, s.kv_heads, s.head_dim)
    weights = s.random(s.head_dim), s.random(s.head_dim)
    cos, sin = s.random(1, tokens, s.head_dim), s.random(1, tokens, s.head_dim)

    def plain(q: Tensor, k: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = rms(q, wq).transpose(1, 2), rms(k, wk).transpose(1, 2)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    def with_op(q: Tensor, k: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ours.qk_norm_rope(q, k, wq, wk, cos, sin, 1e-6)
        return q.transpose(1, 2), k.transpose(1, 2)

    yield "", plain, with_op, (q, k, *weights, cos, sin)


def linear(s: Shapes, batch: int, tokens: int) -> Iterator[Case]:
    x, weight = s.random(batch, tokens, s.hidden), s.weight(s.hidden, s.hidden)
    yield "", lambda x, w: functional.linear(x, w), lambda x, w: ours.linear(x, w, None, None), (x, weight)
    residual = s.random(batch, tokens, s.hidden)
    yield (
        "residual",
        lambda x, w, r: r + functional.linear(x, w),
        lambda x, w, r: ours.linear(x, w, None, r),
        (x, weight, residual),
    )


def linear_qkv(s: Shapes, batch: int, tokens: int) -> Iterator[Case]:
    x, kv = s.random(batch, tokens, s.hidden), s.kv_heads * s.head_dim
    weights = s.weight(s.hidden, s.hidden), s.weight(kv, s.hidden), s.weight(kv, s.hidden)

    def plain(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> tuple[Tensor, ...]:
        return functional.linear(x, wq), functional.linear(x, wk), functional.linear(x, wv)

    def with_op(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> tuple[Tensor, ...]:
        out = ours.linear_qkv(x, wq, wk, wv, None, None, None)
        return tuple(torch.split(out, [len(wq), len(wk), len(wv)], -1))

    yield "", plain, with_op, (x, *weights)


def linear_silu_mul(s: Shapes, batch: int, tokens: int) -> Iterator[Case]:
    x = s.random(batch, tokens, s.hidden)
    weights = s.weight(3 * s.hidden, s.hidden), s.weight(3 * s.hidden, s.hidden)
    yield (
        "",
        lambda x, g, u: functional.silu(functional.linear(x, g)) * functional.linear(x, u),
        ours.linear_silu_mul,
        (x, *weights),
    )


def attention(s: Shapes, batch: int, tokens: int) -> Iterator[Case]:
    keys, group, scale = (512 if tokens == 1 else tokens), s.heads // s.kv_heads, s.head_dim**-0.5
    q = s.random(batch, tokens, s.heads, s.head_dim).transpose(1, 2)
    k, v = s.random(batch, s.kv_heads, keys, s.head_dim), s.random(batch, s.kv_heads, keys, s.head_dim)
    mask = torch.ones(batch, 1, tokens, keys, dtype=torch.bool).tril(keys - tokens)
    causal = tokens > 1
    sdpa = functional.scaled_dot_product_attention

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2).contiguous()

    def plain_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return sdpa(q, repeat_kv(k, group), repeat_kv(v, group), attn_mask=mask).transpose(1, 2).contiguous()

    yield "no mask", plain, lambda q, k, v: ours.attention(q, k, v, None, scale, causal, 0), (q, k, v)
    yield (
        "mask",
        plain_masked,
        lambda q, k, v, mask: ours.attention(q, k, v, mask, scale, False, 0),
        (q, k, v, mask),
    )


def router(s: Shapes, batch: int, tokens: int) -> Iterator[Case]:
    logits = s.random(batch * tokens, 64, scale=2.0)

    def plain(logits: Tensor) -> tuple[Tensor, Tensor]:
        values, ids = torch.topk(functional.softmax(logits, dtype=torch.float, dim=-1), 8, dim=-1)
        values /= values.sum(dim=-1, keepdim=True)
        return values.to(logits.dtype), ids

    yield "", plain, lambda logits: ours.router(logits, 8, True, logits.dtype), (logits,)


class Experts(torch.nn.Module):
    """What transformers' decorator of an experts class makes of it, with its implementation grouped_mm."""

    has_gate, has_bias, is_transposed, has_post_expert_norm, _is_expert_parallel = True, False, False, False, False

    def __init__(self, w13: Tensor, w2: Tensor) -> None:
        super().__init__()
        self.num_experts, self.gate_up_proj, self.down_proj = len(w13), w13, w2

    def _apply_gate(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        return grouped_mm_experts_forward(self, x, ids, weights)


def experts(s: Shapes, batch: int, tokens: int) -> Iterator[Case]:
    count, top_k, inter = 64, 8, s.hidden // 4
    w13 = s.random(count, 2 * inter, s.hidden, scale=s.hidden**-0.5)
    w2 = s.random(count, s.hidden, inter, scale=inter**-0.5)
    x = s.random(batch * tokens, s.hidden)
    weights, ids = torch.softmax(torch.randn(batch * tokens, count), -1).topk(top_k)

    module = Experts(w13, w2)
    yield (
        "grouped_mm",
        module,
        lambda x, w, i: ours.experts(x, w13, w2, w, i, None),
        (x, weights.to(s.dtype), ids),
    )


SITES = {
    each.__name__: each
    for each in (rms_norm, add_rms_norm, qk_norm_rope, linear, linear_qkv, linear_silu_mul, attention, router, experts)
}


def cpu_us(functions: list[Callable[[], Any]]) -> list[float]:
    """The best time of each, over interleaved rounds of about 20 ms."""
    loops = []
    for function in functions:
        function()
        start = time.thread_time()
        function()
        loops.append(max(1, int(0.02 / max(time.thread_time() - start, 1e-6))))
    best = [float("inf")] * len(functions)
    for _ in range(ROUNDS):
        for position, (function, count) in enumerate(zip(functions, loops, strict=True)):
            start = time.thread_time()
            for _ in range(count):
                function()
            best[position] = min(best[position], (time.thread_time() - start) / count * 1e6)
    return best


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sites", nargs="*", default=list(SITES))
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--shapes", default="1x1,8x1,1x64,1x256", help="sequences x tokens, separated by commas")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, hidden {arguments.hidden}, one thread, CPU time; ratio = ours / Inductor")
    for name in arguments.sites:
        for dtype in arguments.dtypes.split(","):
            for shape in arguments.shapes.split(","):
                batch, tokens = map(int, shape.split("x"))
                for form, plain, with_op, inputs in SITES[name](
                    Shapes(arguments.hidden, getattr(torch, dtype)), batch, tokens
                ):
                    torch._dynamo.reset()
                    compiled = [torch.compile(each, fullgraph=True) for each in (plain, with_op)]
                    expected, got = (each(*inputs) for each in compiled)
                    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
                    theirs_us, ours_us = cpu_us([functools.partial(each, *inputs) for each in compiled])
                    print(
                        f"{name:16}{form:11}{dtype:9} {shape:6} Inductor {theirs_us:9.1f} us   "
                        f"ours {ours_us:9.1f} us   ratio {ours_us / theirs_us:5.2f}",
                        flush=True,
                    )  # fmt: skip


if __name__ == "__main__":
    main()
