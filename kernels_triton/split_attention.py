"""What the decode attention kernels share: the online softmax over one split, and the combination of the splits.

With more than one split the parts are combined by a second small kernel, in the order of the splits:
deterministic, without counters that would have to be zero and without relying on coherence between the L2s of an
AMD GPU. Flash decoding: Dao et al., https://crfm.stanford.edu/2023/10/12/flashdecoding.html.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.config import Config
from .launch import Launch

_COMBINE_WARPS = 4
_SCAN_TOKENS_PER_WARP = 512
"""Of a mask's row, read at a time: one 16-byte load for each of 32 threads."""


@triton.jit
def split_range(length, first, BLOCK_N: tl.constexpr):
    """The cached tokens [begin, end) of this split: equal runs of whole blocks, late splits may be empty."""
    blocks = tl.cdiv(tl.maximum(length - first, 0), BLOCK_N)
    run = tl.cdiv(blocks, tl.num_programs(0)) * BLOCK_N
    begin = first + tl.program_id(0) * run
    return begin, tl.minimum(begin + run, length)


@triton.jit
def range_in_use(mask_ptr, mask_tokens, first, length, BLOCK: tl.constexpr):
    """From the first True of mask[first:length] to one past the last; without any, an empty range.

    Every split reads its sequence's row, one byte a token. The loads are bounded by the row's length, which is
    specialised, and not by `length`: a bound of unknown divisibility would make them byte by byte.
    """
    lanes = tl.arange(0, BLOCK)
    low, high = length, first
    for start in tl.range(first // BLOCK * BLOCK, length, BLOCK):
        tokens = start + lanes
        is_used = tl.load(mask_ptr + tokens, mask=tokens < mask_tokens, other=0).to(tl.int1)
        is_used = is_used & (tokens >= first) & (tokens < length)
        # Reduced in the loop: with vectors carried out of it and reduced behind it, Triton 3.7.1 gives up
        # pipelining the loop over K and V that follows.
        low = tl.minimum(low, tl.min(tl.where(is_used, tokens, length), 0))
        high = tl.maximum(high, tl.max(tl.where(is_used, tokens + 1, first), 0))
    return low, high


@triton.jit
def attend_range(
    q, k_ptr, v_ptr, k_stride, v_stride, mask_ptr, skipped, begin, end, peak, total, acc, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Online softmax of q [rows, BLOCK_D] over cached tokens begin..end; peak, total [rows], acc like q.

    The pointers stand at token 0 of one sequence and kv head. They advance as scalars, and the offsets inside
    a block stay 32-bit: the form that AMD's buffer loads want. mask_ptr is None or the sequence's row. K and V of
    tokens that it hides inside the range are loaded all the same, so that their loads do not wait for the mask.
    `skipped` is None or a token that is not read at all.
    """
    k_ptr += begin.to(tl.int64) * k_stride
    v_ptr += begin.to(tl.int64) * v_stride
    rows = tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_D)
    k_offsets = rows[:, None] * k_stride + cols[None, :]
    v_offsets = rows[:, None] * v_stride + cols[None, :]
    for start in tl.range(begin, end, BLOCK_N):
        is_seen = rows < end - start
        if skipped is not None:
            is_seen = is_seen & (start + rows != skipped)
        mask = is_seen[:, None]
        if HEAD_DIM != BLOCK_D:
            mask = mask & (cols < HEAD_DIM)[None, :]
        k = tl.load(k_ptr + k_offsets, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        if mask_ptr is not None:
            is_seen = tl.load(mask_ptr + start + rows, mask=is_seen, other=0).to(tl.int1)
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        if mask_ptr is not None:
            # A split may begin in a hole of the mask: nothing is seen yet.
            offset = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        else:
            offset = new_peak
        weights = tl.exp2(scores - offset[:, None])
        decay = tl.exp2(peak - offset)
        total = total * decay + tl.sum(weights, 1)
        v = tl.load(v_ptr + v_offsets, mask=mask, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = new_peak
        k_ptr += BLOCK_N * k_stride
        v_ptr += BLOCK_N * v_stride
    return peak, total, acc


@triton.jit
def store_split(
    out_ptr, part_ptr, part_lse_ptr, peak, total, acc,
    Q_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, IS_SPLIT: tl.constexpr,
):  # fmt: skip
    """Store this program's heads to out [B, Hq, D], or to part [B, Hq, SPLITS, D].

    Parts are normalised, and part_lse holds log2 of their totals. A sequence of length 0 gives zeros; an
    empty split gives zeros and -inf.
    """
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    mask = (rows < GROUP)[:, None] & (cols < HEAD_DIM)[None, :]
    is_empty = total == 0.0
    total = tl.where(is_empty, 1.0, total)
    result = acc / total[:, None]
    head = tl.program_id(2).to(tl.int64) * Q_HEADS + tl.program_id(1) * GROUP
    if IS_SPLIT:
        row = (head + rows) * tl.num_programs(0) + tl.program_id(0)
        tl.store(part_ptr + row[:, None] * HEAD_DIM + cols[None, :], result, mask=mask)
        lse = tl.where(is_empty, float("-inf"), peak + tl.log2(total))
        tl.store(part_lse_ptr + row, lse, mask=rows < GROUP)
    else:
        out_offsets = rows[:, None] * HEAD_DIM + cols[None, :]
        tl.store(out_ptr + head * HEAD_DIM + out_offsets, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["splits"])
def _combine_splits_kernel(
    part_ptr,
    part_lse_ptr,
    out_ptr,
    splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program per query head and sequence: the mean of the parts, weighted by 2^(lse - max lse)."""
    head = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    split = tl.arange(0, BLOCK_S)
    cols = tl.arange(0, BLOCK_D)
    lse = tl.load(part_lse_ptr + head * splits + split, mask=split < splits, other=float("-inf"))
    peak = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(peak == float("-inf"), 0.0, peak))
    total = tl.sum(weights, 0)
    mask = (split < splits)[:, None] & (cols < HEAD_DIM)[None, :]
    part = tl.load(
        part_ptr + head * splits * HEAD_DIM + split[:, None] * HEAD_DIM + cols[None, :], mask=mask, other=0.0
    )
    result = tl.sum(part * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + head * HEAD_DIM + cols, result.to(out_ptr.dtype.element_ty), mask=cols < HEAD_DIM)


def combine_launch(parts: tuple[torch.Tensor, torch.Tensor], out: torch.Tensor, splits: int) -> Launch:
    """The second launch when the context is split: parts (values, log2 totals) -> out [B, Hq, D]."""
    batch, q_heads, head_dim = out.shape
    return Launch(
        fn=_combine_splits_kernel,
        grid=(q_heads, batch),
        args={"part_ptr": parts[0], "part_lse_ptr": parts[1], "out_ptr": out, "splits": splits},
        constexprs={
            "HEAD_DIM": head_dim,
            "BLOCK_D": triton.next_power_of_2(head_dim),
            "BLOCK_S": triton.next_power_of_2(splits),
        },
        options={"num_warps": _COMBINE_WARPS},
    )


def split_parts(out: torch.Tensor, splits: int) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Workspace: fp32 values [B, Hq, SPLITS, D] and log2 totals [B, Hq, SPLITS]; none for one split."""
    if splits == 1:
        return None, None
    batch, q_heads, head_dim = out.shape
    values = torch.empty(batch, q_heads, splits, head_dim, dtype=torch.float32, device=out.device)
    return values, torch.empty(batch, q_heads, splits, dtype=torch.float32, device=out.device)


def head_constexprs(q_heads: int, kv_heads: int, head_dim: int, config: Config) -> dict[str, int | str | bool]:
    """The constexprs that the plain and the fused kernel share; the tile has at least 16 rows for tl.dot."""
    group = q_heads // kv_heads
    return {
        "Q_HEADS": q_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_M": max(16, triton.next_power_of_2(group)),
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_N": config.integer("BLOCK_N"),
        "IS_SPLIT": config.integer("SPLITS") > 1,
        "SCAN": _SCAN_TOKENS_PER_WARP * config.integer("num_warps"),
    }
