"""Decode attention with everything between the QKV product and the output product in one kernel.

q and the new k of every sequence get RMSNorm over each head (qk_norm) and rotary position embedding, the new
k and v go into the cache at position lengths[b], and q attends to the new token and to the cache before it, or to
whatever a mask of the whole cache allows. Norm and RoPE round as Hugging Face's eager Qwen3 does (`norm_rope`).
Every split repeats those of its query heads in registers; only the last split touches the new k and v: it takes
them from registers and stores them, so no program waits for another. The idea of keeping the new k and v in
registers is vLLM's (pull request 57682).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.attention import ATTENTION_DECODE_FUSED, AttentionDecodeFusedProblem
from ..search_spaces.config import Config
from .attention_decode import attention_decode_reference
from .attention_operands import check_caches, check_heads, check_lengths, check_like, check_mask, row_strides
from .launch import Launch, Plan, compile_options
from .norm_rope import norm_rope_reference, rotate, scale_head
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

EPS = 1e-6


@triton.jit
def _norm_rope(
    x_ptr, head_offsets, head_mask, weight_ptr, cos_ptr, sin_ptr, eps,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, QK_NORM: tl.constexpr,
):  # fmt: skip
    """Heads at x_ptr + head_offsets [rows] -> [rows, BLOCK_D] of their dtype; masked rows, columns are 0."""
    cols = tl.arange(0, BLOCK_D)
    is_first_half = cols < HEAD_DIM // 2
    partners = tl.where(is_first_half, cols + HEAD_DIM // 2, cols - HEAD_DIM // 2)
    col_mask = cols < HEAD_DIM
    mask = head_mask[:, None] & col_mask[None, :]
    dtype = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + head_offsets[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    partner = tl.load(x_ptr + head_offsets[:, None] + partners[None, :], mask=mask, other=0.0).to(tl.float32)
    if QK_NORM:
        inverse = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        weight = tl.load(weight_ptr + cols, mask=col_mask, other=0.0).to(tl.float32)[None, :]
        partner_weight = tl.load(weight_ptr + partners, mask=col_mask, other=0.0).to(tl.float32)[None, :]
        x = scale_head(x, inverse, weight, dtype)
        partner = scale_head(partner, inverse, partner_weight, dtype)
    rotated = tl.where(is_first_half[None, :], -partner, partner)
    cos = tl.load(cos_ptr + cols, mask=col_mask, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + cols, mask=col_mask, other=0.0).to(tl.float32)[None, :]
    return rotate(x, rotated, cos, sin, dtype)


@triton.jit(do_not_specialize=["lengths_batch_stride", "capacity", "window"])
def _attention_decode_fused_kernel(
    q_ptr, k_new_ptr, v_new_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, k_cache_ptr, v_cache_ptr,
    lengths_ptr, mask_ptr, out_ptr, part_ptr, part_lse_ptr,
    q_batch_stride, q_head_stride, k_new_batch_stride, k_new_head_stride, v_new_batch_stride,
    v_new_head_stride, cos_batch_stride, sin_batch_stride, k_batch_stride, k_head_stride, k_token_stride,
    v_batch_stride, v_head_stride, v_token_stride, lengths_batch_stride, mask_batch_stride, mask_tokens,
    capacity, window, eps, scale, Q_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, IS_SPLIT: tl.constexpr, SCAN: tl.constexpr,
    QK_NORM: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    cos_ptr += sequence * cos_batch_stride
    sin_ptr += sequence * sin_batch_stride
    q = _norm_rope(
        q_ptr + sequence * q_batch_stride, (kv_head * GROUP + rows) * q_head_stride, rows < GROUP,
        q_weight_ptr, cos_ptr, sin_ptr, eps, HEAD_DIM, BLOCK_D, QK_NORM,
    )  # fmt: skip
    k_ptr = k_cache_ptr + sequence * k_batch_stride + kv_head.to(tl.int64) * k_head_stride
    v_ptr = v_cache_ptr + sequence * v_batch_stride + kv_head.to(tl.int64) * v_head_stride
    scale_log2 = scale * 1.4426950408889634

    length = tl.minimum(tl.load(lengths_ptr + sequence * lengths_batch_stride), capacity).to(tl.int32)
    if mask_ptr is not None:
        mask_ptr += sequence * mask_batch_stride
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        k_new = _norm_rope(
            k_new_ptr + sequence * k_new_batch_stride, (kv_head + tl.arange(0, 1)) * k_new_head_stride,
            tl.arange(0, 1) == 0, k_weight_ptr, cos_ptr, sin_ptr, eps, HEAD_DIM, BLOCK_D, QK_NORM,
        )  # fmt: skip
        v_new_offsets = sequence * v_new_batch_stride + kv_head * v_new_head_stride + cols[None, :]
        v_new = tl.load(v_new_ptr + v_new_offsets, mask=(cols < HEAD_DIM)[None, :], other=0.0)
        has_room = (cols < HEAD_DIM)[None, :] & (length < capacity)
        tl.store(k_ptr + length.to(tl.int64) * k_token_stride + cols[None, :], k_new, mask=has_room)
        tl.store(v_ptr + length.to(tl.int64) * v_token_stride + cols[None, :], v_new, mask=has_room)
        peak = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), 1) * scale_log2
        total += 1.0
        acc += v_new.to(tl.float32)
        if mask_ptr is not None:
            is_new_seen = tl.load(mask_ptr + length, mask=length < capacity, other=0).to(tl.int1)
            peak = tl.where(is_new_seen, peak, float("-inf"))
            total = tl.where(is_new_seen, total, 0.0)
            acc = tl.where(is_new_seen, acc, 0.0)

    if mask_ptr is not None:
        # The new token may stand anywhere in what the mask allows, and another program is just writing it.
        first, seen_end = range_in_use(mask_ptr, mask_tokens, 0, capacity, SCAN)
        begin, end = split_range(seen_end, first, BLOCK_N)
        peak, total, acc = attend_range(
            q, k_ptr, v_ptr, k_token_stride, v_token_stride, mask_ptr, length, begin, end, peak, total, acc,
            scale_log2, HEAD_DIM, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    else:
        first = tl.where(window > 0, tl.maximum(length + 1 - window, 0), 0)
        begin, end = split_range(length, first, BLOCK_N)
        peak, total, acc = attend_range(
            q, k_ptr, v_ptr, k_token_stride, v_token_stride, None, None, begin, end, peak, total, acc,
            scale_log2, HEAD_DIM, BLOCK_D, BLOCK_N,
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


def plan_attention_decode_fused(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    eps: float,
    scale: float,
    window: int,
    mask: torch.Tensor | None = None,
    *,
    config: Config,
    device: Device,
) -> Plan:
    """Launches of decode attention with norm, RoPE and KV write; the caches are changed in place.

    q [B, Hq, D], k_new and v_new [B, Hkv, D] before norm and RoPE, any strides but a unit stride over D
    (views of one qkv row are fine); q_weight and k_weight [D], both or neither; cos and sin [B, D], stride over B
    may be 0; caches [B, Hkv, S, D]; lengths [B] int32 or int64, any stride (0 where all sequences write at one
    position): tokens in the cache before the new one, each below S (a full cache is left as it is). mask [B, S] bool,
    True = attend, unit stride over S, any over B: it alone says which tokens of the cache are seen once the new one is
    in it, as in torch's attention after an in-place write, and window must be 0. A sequence without any gives zeros.
    Hidden K and V between the first and the last True must be finite. Outputs: [B, Hq, D] and the two caches. Raises
    ValueError for other shapes, dtypes or strides.
    """
    check_heads("q", q, "rows")
    check_caches(q, k_cache, v_cache)
    batch, q_heads, head_dim = q.shape
    kv_heads, capacity = k_cache.shape[1], k_cache.shape[2]
    check_lengths(lengths, batch)
    if mask is not None:
        check_mask(mask, batch, capacity)
        if window:
            raise ValueError(f"window {window} beside a mask: a mask says itself what is seen")
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd: rotate_half needs two halves")
    for name, tensor, shape in (
        ("k_new", k_new, (batch, kv_heads, head_dim)), ("v_new", v_new, (batch, kv_heads, head_dim)),
        ("cos", cos, (batch, head_dim)), ("sin", sin, (batch, head_dim)),
    ):  # fmt: skip
        check_like(name, tensor, shape, q.dtype)
    if (q_weight is None) != (k_weight is None):
        raise ValueError("q_weight and k_weight must both be given or both be None")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            check_like(name, weight, (head_dim,), q.dtype)
    splits = config.integer("SPLITS")
    out = torch.empty(batch, q_heads, head_dim, dtype=q.dtype, device=q.device)
    parts = split_parts(out, splits)
    attend = Launch(
        fn=_attention_decode_fused_kernel,
        grid=(splits, kv_heads, batch),
        args={
            "q_ptr": q, "k_new_ptr": k_new, "v_new_ptr": v_new, "q_weight_ptr": q_weight,
            "k_weight_ptr": k_weight, "cos_ptr": cos, "sin_ptr": sin, "k_cache_ptr": k_cache,
            "v_cache_ptr": v_cache, "lengths_ptr": lengths, "mask_ptr": mask,
            "out_ptr": out, "part_ptr": parts[0], "part_lse_ptr": parts[1],
            **row_strides("q", q, "batch", "head"),
            **row_strides("k_new", k_new, "batch", "head"),
            **row_strides("v_new", v_new, "batch", "head"),
            **row_strides("cos", cos, "batch"),
            **row_strides("sin", sin, "batch"),
            **row_strides("k", k_cache, "batch", "head", "token"),
            **row_strides("v", v_cache, "batch", "head", "token"),
            **row_strides("lengths", lengths, "batch"),
            **row_strides("mask", mask, "batch"), "mask_tokens": None if mask is None else capacity,
            "capacity": capacity, "window": window, "eps": float(eps), "scale": float(scale),
        },
        constexprs={
            **head_constexprs(q_heads, kv_heads, head_dim, config), "QK_NORM": q_weight is not None,
        },
        options=compile_options(config),
    )  # fmt: skip
    outputs = (out, k_cache, v_cache)
    if parts[0] is None or parts[1] is None:
        return Plan((attend,), outputs)
    return Plan((attend, combine_launch((parts[0], parts[1]), out, splits)), outputs)


def attention_decode_fused(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    eps: float,
    scale: float,
    window: int,
    mask: torch.Tensor | None = None,
    *,
    config: Config,
    device: Device,
) -> torch.Tensor:
    """Run fused decode attention and change the caches: see `plan_attention_decode_fused`."""
    return plan_attention_decode_fused(
        q, k_new, v_new, q_weight, k_weight, cos, sin, k_cache, v_cache, lengths, eps, scale, window, mask,
        config=config, device=device,
    ).run()[0]  # fmt: skip


def attention_decode_fused_reference(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    eps: float,
    scale: float,
    window: int,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norm and RoPE rounded as Hugging Face's model, attention in fp32; returns copies of the caches."""
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    sequence = torch.arange(q.shape[0], device=q.device)
    position = lengths.long()
    k_cache[sequence, :, position] = norm_rope_reference(k_new, k_weight, cos, sin, eps)
    v_cache[sequence, :, position] = v_new
    q = norm_rope_reference(q, q_weight, cos, sin, eps)
    seen = lengths + 1 if mask is None else None
    (out,) = attention_decode_reference(q, k_cache, v_cache, seen, scale, window, mask)
    return out, k_cache, v_cache


def _make_inputs(problem: AttentionDecodeFusedProblem, *, torch_device: str, seed: int) -> tuple[object, ...]:
    """q, k, v as views of one qkv row; room for one token in the cache, `context` tokens with the new one."""
    generator = make_generator(torch_device, seed)
    dtype = TORCH_DTYPES[problem.dtype]
    batch, head_dim, cached = problem.batch, problem.head_dim, problem.context - 1

    def random(*shape: int) -> torch.Tensor:
        return random_tensor(*shape, dtype=dtype, torch_device=torch_device, generator=generator)

    heads = problem.q_heads + 2 * problem.kv_heads
    row = random(batch, heads * head_dim).view(batch, heads, head_dim)
    q, k_new, v_new = row.split((problem.q_heads, problem.kv_heads, problem.kv_heads), 1)
    weights = (random(head_dim), random(head_dim)) if problem.qk_norm else (None, None)
    exponent = -torch.arange(0, head_dim, 2, dtype=torch.float32, device=torch_device) / head_dim
    angle = (cached * 10000.0**exponent).repeat(2).expand(batch, head_dim)
    k_cache = random(batch, problem.kv_heads, problem.context, head_dim)
    v_cache = random(batch, problem.kv_heads, problem.context, head_dim)
    lengths = torch.full((batch,), cached, dtype=torch.int32, device=torch_device)
    return (
        q, k_new, v_new, *weights, angle.cos().to(dtype), angle.sin().to(dtype), k_cache, v_cache, lengths,
        EPS, head_dim**-0.5, problem.window,
    )  # fmt: skip


ATTENTION_DECODE_FUSED_SPEC = KernelSpec(
    name="attention_decode_fused",
    space=ATTENTION_DECODE_FUSED,
    plan=plan_attention_decode_fused,
    reference=attention_decode_fused_reference,
    make_inputs=_make_inputs,
)
