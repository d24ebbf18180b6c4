"""What of each row of a boolean attention mask is in use, found by reading the mask once for all heads.

Per query three positions: the first True, the end of the run of True that begins there, one past the last True.
Attention walks from the least first to the greatest last of its rows, and where the rows' runs overlap it need not
look at the mask again: of a causal mask that is all but the diagonal and the end of the padding. Where it looks, it
reads a copy whose rows are whole blocks: rows of odd length would be read byte by byte, with a pointer for each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .attention_operands import row_strides
from .launch import Launch

_ROWS = 8
_KEYS = 1024
_WARPS = 8
"""A program reads 8 KiB of the mask at a time: 32 bytes a thread on NVIDIA, 16 on AMD."""


@triton.jit(do_not_specialize=["tokens"])
def _mask_ranges_kernel(
    mask_ptr, ranges_ptr, copy_ptr, mask_batch_stride, mask_token_stride, tokens, keys, copy_keys,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """mask [B, T, S] -> ranges [B, 3, T], copy [B, T, copy_keys]; a row without any True gets S, S, 0."""
    batch = tl.program_id(1).to(tl.int64)
    first_row = tl.program_id(0) * ROWS
    rows = tl.arange(0, ROWS)
    cols = tl.arange(0, KEYS)
    is_row = rows < tokens - first_row
    mask_ptr += batch * mask_batch_stride + first_row.to(tl.int64) * mask_token_stride
    offsets = rows.to(tl.int64)[:, None] * mask_token_stride + cols[None, :]
    copy_ptr += (batch * tokens + first_row) * copy_keys
    copy_offsets = rows[:, None] * copy_keys + cols[None, :]
    firsts = tl.zeros((ROWS,), tl.int32) + keys
    run_ends = tl.zeros((ROWS,), tl.int32) + keys
    ends = tl.zeros((ROWS,), tl.int32)
    for start in tl.range(0, keys, KEYS):
        key = (start + cols)[None, :]
        is_key = is_row[:, None] & (key < keys)
        is_seen = tl.load(mask_ptr + start + offsets, mask=is_key, other=0).to(tl.int1)
        firsts = tl.minimum(firsts, tl.min(tl.where(is_seen, key, keys), 1))
        ends = tl.maximum(ends, tl.max(tl.where(is_seen, key + 1, 0), 1))
        is_after = is_key & (key > firsts[:, None])
        run_ends = tl.minimum(run_ends, tl.min(tl.where(is_after & (is_seen == 0), key, keys), 1))
        tl.store(copy_ptr + start + copy_offsets, is_seen.to(tl.uint8), mask=is_row[:, None] & (key < copy_keys))
    out = ranges_ptr + batch * 3 * tokens + first_row + rows
    tl.store(out, firsts, mask=is_row)
    tl.store(out + tokens, run_ends, mask=is_row)
    tl.store(out + 2 * tokens.to(tl.int64), ends, mask=is_row)


def mask_ranges_launch(mask: torch.Tensor, block_n: int) -> tuple[torch.Tensor, torch.Tensor, tuple[Launch]]:
    """Of mask [B, T, S] bool with unit stride over S: ranges [B, 3, T] int32, copy [B, T, S rounded up to whole blocks
    of block_n keys] uint8, False behind S, and the launch that fills both.
    """
    batch, tokens, keys = mask.shape
    ranges = torch.empty(batch, 3, tokens, dtype=torch.int32, device=mask.device)
    copy_keys = triton.cdiv(keys, block_n) * block_n
    copy = torch.empty(batch, tokens, copy_keys, dtype=torch.uint8, device=mask.device)
    launch = Launch(
        fn=_mask_ranges_kernel,
        grid=(triton.cdiv(tokens, _ROWS), batch),
        args={
            "mask_ptr": mask, "ranges_ptr": ranges, "copy_ptr": copy, **row_strides("mask", mask, "batch", "token"),
            "tokens": tokens, "keys": keys, "copy_keys": copy_keys,
        },
        constexprs={"ROWS": _ROWS, "KEYS": _KEYS},
        options={"num_warps": _WARPS},
    )  # fmt: skip
    return ranges, copy, (launch,)


@triton.jit
def block_ranges(ranges_ptr, tokens, first_row, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of BLOCK_M rows: [begin, end) of what any row sees, from a whole block on; the blocks that all rows see."""
    row = first_row + tl.minimum(tl.arange(0, BLOCK_M), tokens - first_row - 1)
    ranges_ptr += tl.program_id(1).to(tl.int64) * 3 * tokens
    firsts = tl.load(ranges_ptr + row)
    run_ends = tl.load(ranges_ptr + tokens + row)
    ends = tl.load(ranges_ptr + 2 * tokens.to(tl.int64) + row)
    begin = tl.min(firsts, 0) // BLOCK_N * BLOCK_N
    return begin, tl.max(ends, 0), tl.cdiv(tl.max(firsts, 0), BLOCK_N) * BLOCK_N, tl.min(run_ends, 0)
