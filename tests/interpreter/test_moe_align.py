"""The align step in Triton's interpreter: its sort is stable, its blocks are full, its workspace is large enough."""

from __future__ import annotations

import pytest
import torch

from paiton.kernels_triton.moe_align import BLOCK_P, Alignment, max_blocks_of, plan_moe_align

GARBAGE = 0x7F7F7F7F


def aligned(ids: torch.Tensor, experts: int, block_m: int) -> Alignment:
    """The alignment after its launches, which start from tensors full of garbage."""
    align = plan_moe_align(ids, experts=experts, block_m=block_m)
    for tensor in (align.sorted_pairs, align.block_experts, align.num_blocks):
        tensor.fill_(GARBAGE)
    for launch in align.launches:
        launch.run()
    return align


def expected_blocks(ids: torch.Tensor, experts: int, block_m: int) -> tuple[list[int], list[int]]:
    """(sorted pairs with padding, expert of each block) by plain loops."""
    flat = ids.flatten().tolist()
    pairs: list[int] = []
    owners: list[int] = []
    for expert in range(experts):
        own = [pair for pair, chosen in enumerate(flat) if chosen == expert]
        own += [len(flat)] * (-len(own) % block_m)
        pairs += own
        owners += [expert] * (len(own) // block_m)
    return pairs, owners


def check(ids: torch.Tensor, experts: int, block_m: int) -> None:
    align = aligned(ids, experts, block_m)
    pairs, owners = expected_blocks(ids, experts, block_m)
    assert align.num_blocks.tolist() == [len(owners)]
    assert align.block_experts[: len(owners)].tolist() == owners
    assert align.sorted_pairs[: len(pairs)].tolist() == pairs
    assert len(owners) <= align.max_blocks == len(align.block_experts)
    assert (align.sorted_pairs[len(pairs) :] == GARBAGE).all()
    assert (align.block_experts[len(owners) :] == GARBAGE).all()


@pytest.mark.parametrize("block_m", [16, 64, 256])
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 8, 8), (7, 5, 2), (33, 12, 3), (64, 1, 1)])
def test_matches_plain_loops(tokens: int, experts: int, top_k: int, block_m: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.rand(tokens, experts, generator=generator).topk(top_k).indices.to(torch.int32)
    check(ids, experts, block_m)


def test_all_tokens_to_one_expert() -> None:
    check(torch.full((50, 1), 2, dtype=torch.int32), experts=4, block_m=16)


def test_more_pairs_than_one_step() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (BLOCK_P + 77, 2), generator=generator, dtype=torch.int32)
    check(ids, experts=3, block_m=64)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_of_other_ranks_are_in_no_block(dtype: torch.dtype) -> None:
    check(torch.tensor([[-1, 0], [5, 1], [-1, 9]], dtype=dtype), experts=5, block_m=16)


def test_no_known_expert_at_all() -> None:
    check(torch.tensor([[-1], [-1]], dtype=torch.int32), experts=3, block_m=16)


@pytest.mark.parametrize("block_m", [16, 32])
def test_worst_routing_fills_the_workspace(block_m: int) -> None:
    """One row above a full block for each expert wastes most: the bound is reached, not passed."""
    ids = torch.arange(4, dtype=torch.int32).repeat(block_m + 1)[:, None]
    check(ids, experts=4, block_m=block_m)
    assert plan_moe_align(ids, experts=4, block_m=block_m).max_blocks == 8
    assert max_blocks_of(4, 128, 16) == 4


def test_refuses_a_block_that_one_store_cannot_fill() -> None:
    with pytest.raises(ValueError, match="block_m 8192 is outside"):
        plan_moe_align(torch.zeros(1, 1, dtype=torch.int32), experts=1, block_m=2 * BLOCK_P)
