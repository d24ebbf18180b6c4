"""Align: the pairs (token, chosen expert) sorted by expert into blocks of block_m rows, without atomics.

The counting sort of vLLM's `moe_align_block_size`, made stable: each expert has a program of its own that walks over
all ids in order, so the result depends on the ids alone. Two launches, because a block's place needs every count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import Launch

# Pairs one program looks at in one step: 4096 pairs (512 tokens x 8 experts) are one step, and a thread holds 8 ids on
# NVIDIA, 4 on AMD. Not smaller than the largest block_m, because one store fills the last block's padding.
BLOCK_P = 4096
NUM_WARPS = 16


@triton.jit(do_not_specialize=["num_pairs"])
def _moe_count_kernel(ids_ptr, counts_ptr, num_pairs, BLOCK_P: tl.constexpr):
    """counts[e] = number of pairs of expert e; program = expert."""
    expert = tl.program_id(0)
    hits = tl.zeros((BLOCK_P,), tl.int32)
    for start in range(0, num_pairs, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P)
        ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
        hits += (ids == expert).to(tl.int32)
    tl.store(counts_ptr + expert, tl.sum(hits, axis=0))


@triton.jit(do_not_specialize=["num_pairs", "block_m"])
def _moe_scatter_kernel(
    ids_ptr, counts_ptr, sorted_pairs_ptr, block_experts_ptr, num_blocks_ptr, num_pairs, block_m,
    EXPERTS: tl.constexpr, EXPERTS_POW2: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Each expert's pairs, in order, from its first block on; num_pairs in the padding; program = expert."""
    expert = tl.program_id(0)
    experts = tl.arange(0, EXPERTS_POW2)
    blocks = tl.cdiv(tl.load(counts_ptr + experts, mask=experts < EXPERTS, other=0), block_m)
    first_block = tl.sum(tl.where(experts < expert, blocks, 0), axis=0)
    end_block = tl.sum(tl.where(experts <= expert, blocks, 0), axis=0)
    if expert == EXPERTS - 1:
        tl.store(num_blocks_ptr, end_block)

    steps = tl.arange(0, BLOCK_P)
    for start in range(first_block, end_block, BLOCK_P):
        tl.store(block_experts_ptr + start + steps, expert, mask=start + steps < end_block)

    slot = first_block * block_m
    for start in range(0, num_pairs, BLOCK_P):
        pair = start + steps
        is_hit = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1).to(tl.int32) == expert
        rank = tl.cumsum(is_hit.to(tl.int32), axis=0) - 1
        tl.store(sorted_pairs_ptr + slot + rank, pair, mask=is_hit)
        slot += tl.sum(is_hit.to(tl.int32), axis=0)
    tl.store(sorted_pairs_ptr + slot + steps, num_pairs, mask=slot + steps < end_block * block_m)


@dataclass(frozen=True)
class Alignment:
    """The launches that sort the pairs, and the tensors they fill.

    `sorted_pairs` [max_blocks * block_m] int32: pair ids token * top_k + choice in blocks of one expert each, ascending
    within an expert, and the number of pairs where a block is padding. `block_experts` [max_blocks] int32: the expert
    of each block. `num_blocks` [1] int32: the blocks in use; what lies behind them is not written, so never read it.
    """

    launches: tuple[Launch, ...]
    sorted_pairs: torch.Tensor
    block_experts: torch.Tensor
    num_blocks: torch.Tensor
    max_blocks: int


def max_blocks_of(num_pairs: int, experts: int, block_m: int) -> int:
    """The most blocks that any routing needs: an expert wastes at most block_m - 1 rows, and only if it is chosen."""
    return (num_pairs + min(num_pairs, experts) * (block_m - 1)) // block_m


def plan_moe_align(ids: torch.Tensor, *, experts: int, block_m: int) -> Alignment:
    """Sort ids [tokens, top_k], contiguous integers below 2^31. A pair whose id is outside 0..experts-1 is in no block.

    Raises ValueError for a block_m above BLOCK_P.
    """
    if not 1 <= block_m <= BLOCK_P:
        raise ValueError(f"block_m {block_m} is outside 1..{BLOCK_P}")
    num_pairs = ids.numel()
    max_blocks = max_blocks_of(num_pairs, experts, block_m)
    counts, sorted_pairs, block_experts, num_blocks = (
        torch.empty(size, dtype=torch.int32, device=ids.device)
        for size in (experts, max_blocks * block_m, max_blocks, 1)
    )
    count = Launch(
        _moe_count_kernel, (experts,), {"ids_ptr": ids, "counts_ptr": counts, "num_pairs": num_pairs},
        {"BLOCK_P": BLOCK_P}, {"num_warps": NUM_WARPS},
    )  # fmt: skip
    scatter = Launch(
        _moe_scatter_kernel,
        (experts,),
        {
            "ids_ptr": ids, "counts_ptr": counts, "sorted_pairs_ptr": sorted_pairs,
            "block_experts_ptr": block_experts, "num_blocks_ptr": num_blocks, "num_pairs": num_pairs,
            "block_m": block_m,
        },
        {"EXPERTS": experts, "EXPERTS_POW2": triton.next_power_of_2(experts), "BLOCK_P": BLOCK_P},
        {"num_warps": NUM_WARPS},
    )  # fmt: skip
    return Alignment((count, scatter), sorted_pairs, block_experts, num_blocks, max_blocks)
