"""Expert rows: how an expert's program finds its own (token, expert) pairs without a sort, and routing for tests.

A pair p = token * top_k + choice is one row of work. The expert ids of a token are distinct and lie in 0..experts-1,
as a top-k router gives them; so an expert has at most one row per token. They are int64 in Hugging Face's models, and
narrowed to 32 bits as soon as they are loaded, so that comparing and counting them costs what it costs for int32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.config import Config

SEARCH_ELEMENTS = 4096
"""Size of the [rows, pairs] comparison in `find_pairs`: 32 registers a thread at 4 warps of 32."""

_MAX_OFFSET = 2**31 - 1
_ID_TYPES = (torch.int32, torch.int64)


@triton.jit
def count_rows(ids_ptr, num_pairs, expert, CHUNK: tl.constexpr):
    """Number of pairs that go to `expert`."""
    hits = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, num_pairs, CHUNK):
        pair = start + tl.arange(0, CHUNK)
        ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
        hits += (ids == expert).to(tl.int32)
    return tl.sum(hits, 0)


@triton.jit
def find_pairs(ids_ptr, num_pairs, expert, first_row, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr):
    """The pairs that are rows first_row .. first_row + BLOCK_M - 1 of `expert`, in ascending order; 0 past the last.

    The row of a pair is the number of hits before it (a prefix sum), so slot i takes the one pair of row
    first_row + i by a compare-reduce. The ids are read in chunks: the register cost does not grow with the batch.
    """
    slot = first_row + tl.arange(0, BLOCK_M)
    found = tl.zeros((BLOCK_M,), tl.int32)
    rows_before = 0
    for start in range(0, num_pairs, CHUNK):
        pair = start + tl.arange(0, CHUNK)
        ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
        hit = (ids == expert).to(tl.int32)
        row = tl.where(hit == 1, rows_before + tl.cumsum(hit, 0) - 1, -1)
        found += tl.sum(tl.where(row[None, :] == slot[:, None], pair[None, :], 0), 1)
        rows_before += tl.sum(hit, 0)
    return found


@triton.jit
def load_weights(pointers, rows, num_rows: tl.constexpr, columns, num_columns: tl.constexpr,
                 BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """A [BLOCK_N, BLOCK_K] tile of a weight matrix, zero outside; no mask is computed where the blocks divide it."""
    if num_rows % BLOCK_N == 0 and num_columns % BLOCK_K == 0:
        return tl.load(pointers)
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def load_activations(row_ptr, columns, num_columns: tl.constexpr, BLOCK_N: tl.constexpr, ROW_SPANS: tl.constexpr):
    """One row of activations, to be multiplied with a [BLOCK_N, columns] tile of weights.

    Loaded as a vector only where it then lies in the threads as the weights do (ROW_SPANS); elsewhere every row of
    the tile loads it again, from the nearest cache, because the change of layout would go through shared memory with
    two barriers a step, and no load passes a barrier: on gfx942 it left 4 weight loads in flight instead of 16.
    """
    if ROW_SPANS:
        row = tl.load(row_ptr + columns, mask=columns < num_columns, other=0.0)[None, :]
    else:
        offsets = tl.zeros((BLOCK_N, 1), tl.int32) + columns[None, :]
        row = tl.load(row_ptr + offsets, mask=offsets < num_columns, other=0.0)
    return row


def row_spans_program(dtype: torch.dtype, config: Config, device: Device) -> bool:
    """Whether BLOCK_K elements give every thread of a program a load of 16 bytes."""
    threads = config.integer("num_warps") * device.arch.wave_size
    return config.integer("BLOCK_K") * dtype.itemsize >= 16 * threads


def random_expert_ids(
    batch: int, experts: int, top_k: int, *, torch_device: str, generator: torch.Generator | None
) -> torch.Tensor:
    """[batch, top_k] int64, as torch.topk gives them: uniform independent routing, the experts of a token distinct."""
    if torch_device == "meta":
        return torch.empty(batch, top_k, dtype=torch.int64, device="meta")
    scores = torch.rand(batch, experts, generator=generator, device=torch_device)
    return scores.topk(top_k, dim=1).indices


def check_experts(rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> None:
    """Raises ValueError unless `weights` is [E, N, K] with contiguous rows, `rows` [_, K] and `ids` fit to it."""
    if weights.dim() != 3 or rows.dim() != 2 or rows.shape[1] != weights.shape[2]:
        raise ValueError(f"expert weights {tuple(weights.shape)} do not take rows of shape {tuple(rows.shape)}")
    if rows.dtype != weights.dtype or not rows.is_floating_point():
        raise ValueError(f"rows are {rows.dtype} but expert weights are {weights.dtype}")
    if rows.stride(1) != 1 or weights.stride(2) != 1:
        raise ValueError(f"the last axis must be contiguous; strides are {rows.stride()} and {weights.stride()}")
    if ids.dim() != 2 or ids.dtype not in _ID_TYPES or not ids.is_contiguous():
        raise ValueError(
            f"expert ids must be contiguous int32 or int64 [batch, top_k], got {ids.dtype} {tuple(ids.shape)}"
        )
    if not 1 <= ids.shape[1] <= weights.shape[0]:
        raise ValueError(f"top_k={ids.shape[1]} is outside 1..experts={weights.shape[0]}")
    widest = max(rows.stride(0), weights.shape[1])
    if ids.numel() * widest > _MAX_OFFSET or weights.shape[1] * weights.stride(1) > _MAX_OFFSET:
        raise ValueError(
            f"{ids.numel()} pairs x {widest} elements, or one expert of {weights.shape[1]} rows x "
            f"{weights.stride(1)} elements, pass the {_MAX_OFFSET} of a 32-bit offset"
        )
