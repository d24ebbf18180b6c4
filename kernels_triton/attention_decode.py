"""Decode attention: one query token per sequence against a KV cache, split over the context (flash decoding).

    out[b, h] = softmax(scale * q[b, h] K[b, h // G]^T) V[b, h // G],   G = q_heads / kv_heads

over the last `min(lengths[b], window)` cached tokens (window 0: all). One program works for one (split, kv
head, sequence): the G query heads that share a kv head are the rows of one tile, padded to 16 for the matrix
unit, so K and V are read once. See `split_attention.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.attention import ATTENTION_DECODE, AttentionDecodeProblem
from ..search_spaces.config import Config
from .attention_operands import check_caches, check_heads, check_lengths, row_strides
from .launch import Launch, Plan, compile_options
from .spec import TORCH_DTYPES, KernelSpec, make_generator, random_tensor
from .split_attention import (
    attend_range,
    combine_launch,
    head_constexprs,
    split_parts,
    split_range,
    store_split,
)


@triton.jit(do_not_specialize=["capacity", "window"])
def _attention_decode_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, lengths_ptr, out_ptr, part_ptr, part_lse_ptr,
    q_batch_stride, q_head_stride, k_batch_stride, k_head_stride, k_token_stride,
    v_batch_stride, v_head_stride, v_token_stride, capacity, window, scale,
    Q_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, IS_SPLIT: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    q_offsets = (kv_head * GROUP + rows)[:, None] * q_head_stride + cols[None, :]
    q_mask = (rows < GROUP)[:, None] & (cols < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + sequence * q_batch_stride + q_offsets, mask=q_mask, other=0.0)

    length = tl.minimum(tl.load(lengths_ptr + sequence), capacity)
    first = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    begin, end = split_range(length, first, BLOCK_N)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    peak, total, acc = attend_range(
        q, k_cache_ptr + sequence * k_batch_stride + kv_head.to(tl.int64) * k_head_stride,
        v_cache_ptr + sequence * v_batch_stride + kv_head.to(tl.int64) * v_head_stride,
        k_token_stride, v_token_stride, begin, end, peak, total, acc, scale * 1.4426950408889634,
        HEAD_DIM, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    store_split(
        out_ptr,
        part_ptr,
        part_lse_ptr,
        peak,
        total,
        acc,
        Q_HEADS,
        GROUP,
        HEAD_DIM,
        BLOCK_M,
        BLOCK_D,
        IS_SPLIT,
    )


def plan_attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int,
    *,
    config: Config,
    device: Device,
) -> Plan:
    """Launches of decode attention.

    q [B, Hq, D], caches [B, Hkv, S, D] of q's dtype, any strides but a unit stride over D; lengths [B] int32,
    tokens to attend in each sequence (cached, the current one included; more than S counts as S). Output [B,
    Hq, D]. Raises ValueError for other shapes, dtypes or strides.
    """
    check_heads("q", q)
    check_caches(q, k_cache, v_cache)
    check_lengths(lengths, q.shape[0])
    batch, q_heads, head_dim = q.shape
    kv_heads, capacity = k_cache.shape[1], k_cache.shape[2]
    splits = config.integer("SPLITS")
    out = torch.empty(batch, q_heads, head_dim, dtype=q.dtype, device=q.device)
    parts = split_parts(out, splits)
    attend = Launch(
        fn=_attention_decode_kernel,
        grid=(splits, kv_heads, batch),
        args={
            "q_ptr": q, "k_cache_ptr": k_cache, "v_cache_ptr": v_cache, "lengths_ptr": lengths,
            "out_ptr": out, "part_ptr": parts[0], "part_lse_ptr": parts[1],
            **row_strides("q", q, "batch", "head"),
            **row_strides("k", k_cache, "batch", "head", "token"),
            **row_strides("v", v_cache, "batch", "head", "token"),
            "capacity": capacity, "window": window, "scale": float(scale),
        },
        constexprs=head_constexprs(q_heads, kv_heads, head_dim, config),
        options=compile_options(config),
    )  # fmt: skip
    if parts[0] is None or parts[1] is None:
        return Plan((attend,), (out,))
    return Plan((attend, combine_launch((parts[0], parts[1]), out, splits)), (out,))


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int,
    *,
    config: Config,
    device: Device,
) -> torch.Tensor:
    """Run decode attention: see `plan_attention_decode`."""
    return plan_attention_decode(q, k_cache, v_cache, lengths, scale, window, config=config, device=device).run()[0]


def attention_decode_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int,
) -> tuple[torch.Tensor]:
    """The formula in fp32, one sequence at a time to bound the memory; output in q's dtype."""
    batch, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[1]
    out = torch.zeros(batch, q_heads, head_dim, dtype=torch.float32, device=q.device)
    for sequence in range(batch):
        length = min(int(lengths[sequence]), k_cache.shape[2])
        first = max(length - window, 0) if window > 0 else 0
        if length == 0:
            continue
        keys = k_cache[sequence, :, first:length].float()
        values = v_cache[sequence, :, first:length].float()
        grouped = q[sequence].float().view(kv_heads, q_heads // kv_heads, head_dim)
        weights = torch.softmax(grouped @ keys.transpose(1, 2) * scale, -1)
        out[sequence] = (weights @ values).view(q_heads, head_dim)
    return (out.to(q.dtype),)


def _make_inputs(problem: AttentionDecodeProblem, *, torch_device: str, seed: int) -> tuple[object, ...]:
    """Random q and a cache full to `context` tokens in every sequence, in Hugging Face's layout."""
    generator = make_generator(torch_device, seed)
    dtype = TORCH_DTYPES[problem.dtype]

    def random(*shape: int) -> torch.Tensor:
        return random_tensor(*shape, dtype=dtype, torch_device=torch_device, generator=generator)

    q = random(problem.batch, problem.q_heads, problem.head_dim)
    k_cache = random(problem.batch, problem.kv_heads, problem.context, problem.head_dim)
    v_cache = random(problem.batch, problem.kv_heads, problem.context, problem.head_dim)
    lengths = torch.full((problem.batch,), problem.context, dtype=torch.int32, device=torch_device)
    return q, k_cache, v_cache, lengths, problem.head_dim**-0.5, problem.window


ATTENTION_DECODE_SPEC = KernelSpec(
    name="attention_decode",
    space=ATTENTION_DECODE,
    plan=plan_attention_decode,
    reference=attention_decode_reference,
    make_inputs=_make_inputs,
)
