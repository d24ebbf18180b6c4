"""Decode attention: one query token per sequence against a KV cache, split over the context (flash decoding).

    out[b, h] = softmax(scale * q[b, h] K[b, h // G]^T) V[b, h // G],   G = q_heads / kv_heads

over the last `min(lengths[b], window)` cached tokens (window 0: all), of them those that mask[b] allows. One program
works for one (split, kv head, sequence): the G query heads that share a kv head are the rows of one tile, padded to
16 for the matrix unit, so K and V are read once. With a mask the splits share the range from its first to its last
True: a static cache is longer than what it holds, and padding stands to the left. See `split_attention.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.attention import ATTENTION_DECODE, AttentionDecodeProblem
from ..search_spaces.config import Config
from .attention_operands import check_caches, check_heads, check_lengths, check_mask, row_strides
from .launch import Launch, Plan, compile_options
from .spec import TORCH_DTYPES, KernelSpec, make_generator, random_tensor
from .split_attention import (
    attend_range,
    combine_launch,
    head_constexprs,
    range_in_use,
    split_parts,
    split_range,
    store_split,
)


@triton.jit(do_not_specialize=["lengths_batch_stride", "capacity", "window"])
def _attention_decode_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, lengths_ptr, mask_ptr, out_ptr, part_ptr, part_lse_ptr,
    q_batch_stride, q_head_stride, k_batch_stride, k_head_stride, k_token_stride,
    v_batch_stride, v_head_stride, v_token_stride, lengths_batch_stride, mask_batch_stride, mask_tokens,
    capacity, window, scale, Q_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, IS_SPLIT: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    q_offsets = (kv_head * GROUP + rows)[:, None] * q_head_stride + cols[None, :]
    q_mask = (rows < GROUP)[:, None] & (cols < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + sequence * q_batch_stride + q_offsets, mask=q_mask, other=0.0)

    length = capacity
    if lengths_ptr is not None:
        length = tl.minimum(tl.load(lengths_ptr + sequence * lengths_batch_stride), capacity).to(tl.int32)
    first = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    if mask_ptr is not None:
        mask_ptr += sequence * mask_batch_stride
        first, length = range_in_use(mask_ptr, mask_tokens, first, length, SCAN)
    begin, end = split_range(length, first, BLOCK_N)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    peak, total, acc = attend_range(
        q, k_cache_ptr + sequence * k_batch_stride + kv_head.to(tl.int64) * k_head_stride,
        v_cache_ptr + sequence * v_batch_stride + kv_head.to(tl.int64) * v_head_stride,
        k_token_stride, v_token_stride, mask_ptr, None, begin, end, peak, total, acc, scale * 1.4426950408889634,
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
    lengths: torch.Tensor | None,
    scale: float,
    window: int,
    mask: torch.Tensor | None = None,
    *,
    config: Config,
    device: Device,
) -> Plan:
    """Launches of decode attention.

    q [B, Hq, D], caches [B, Hkv, S, D] of q's dtype, any strides but a unit stride over D. lengths [B] int32 or
    int64, any stride: tokens to attend in each sequence (cached, the current one included; more than S counts as S);
    None is S for all. window counts back from there. mask [B, S] bool, True = attend, unit stride over S, any over B
    (0 for one mask of all sequences): of the tokens that lengths and window leave, those that it allows. A sequence
    without any gives zeros. Hidden K and V between the first and the last True must be finite, as for torch's
    attention. Output [B, Hq, D]. Raises ValueError for other shapes, dtypes or strides.
    """
    check_heads("q", q, "rows")
    check_caches(q, k_cache, v_cache)
    batch, q_heads, head_dim = q.shape
    kv_heads, capacity = k_cache.shape[1], k_cache.shape[2]
    if lengths is not None:
        check_lengths(lengths, batch)
    if mask is not None:
        check_mask(mask, batch, capacity)
    splits = config.integer("SPLITS")
    out = torch.empty(batch, q_heads, head_dim, dtype=q.dtype, device=q.device)
    parts = split_parts(out, splits)
    attend = Launch(
        fn=_attention_decode_kernel,
        grid=(splits, kv_heads, batch),
        args={
            "q_ptr": q, "k_cache_ptr": k_cache, "v_cache_ptr": v_cache, "lengths_ptr": lengths, "mask_ptr": mask,
            "out_ptr": out, "part_ptr": parts[0], "part_lse_ptr": parts[1],
            **row_strides("q", q, "batch", "head"),
            **row_strides("k", k_cache, "batch", "head", "token"),
            **row_strides("v", v_cache, "batch", "head", "token"),
            **row_strides("lengths", lengths, "batch"),
            **row_strides("mask", mask, "batch"), "mask_tokens": None if mask is None else capacity,
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
    lengths: torch.Tensor | None,
    scale: float,
    window: int,
    mask: torch.Tensor | None = None,
    *,
    config: Config,
    device: Device,
) -> torch.Tensor:
    """Run decode attention: see `plan_attention_decode`."""
    plan = plan_attention_decode(q, k_cache, v_cache, lengths, scale, window, mask, config=config, device=device)
    return plan.run()[0]


def attention_decode_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor | None,
    scale: float,
    window: int,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor]:
    """The formula in fp32, one sequence at a time to bound the memory; output in q's dtype."""
    batch, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[1]
    out = torch.zeros(batch, q_heads, head_dim, dtype=torch.float32, device=q.device)
    for sequence in range(batch):
        length = k_cache.shape[2]
        if lengths is not None:
            length = min(int(lengths[sequence]), length)
        first = max(length - window, 0) if window > 0 else 0
        keys = k_cache[sequence, :, first:length].float()
        values = v_cache[sequence, :, first:length].float()
        if mask is not None:
            is_seen = mask[sequence, first:length]
            keys, values = keys[:, is_seen], values[:, is_seen]
        if keys.shape[1] == 0:
            continue
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
