"""Program order: the remaps are permutations for any grid, and XCDs get contiguous runs."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from paiton.kernels_triton.program_order import chunked_by_xcd, row_and_column


@triton.jit
def _chunked_kernel(out_ptr, XCDS: tl.constexpr):
    pid = tl.program_id(0)
    tl.store(out_ptr + pid, chunked_by_xcd(pid, tl.num_programs(0), XCDS))


@triton.jit
def _tile_kernel(out_ptr, rows, columns, COLUMNS_FASTEST: tl.constexpr, XCDS: tl.constexpr):
    row, column = row_and_column(rows, columns, COLUMNS_FASTEST, XCDS)
    tl.store(out_ptr + 2 * tl.program_id(0), row)
    tl.store(out_ptr + 2 * tl.program_id(0) + 1, column)


@pytest.mark.parametrize("xcds", [1, 4, 8])
@pytest.mark.parametrize("programs", [1, 3, 7, 8, 9, 16, 61, 64, 100])
def test_chunks_are_a_permutation(programs: int, xcds: int) -> None:
    logical = torch.full((programs,), -1, dtype=torch.int32)
    _chunked_kernel[(programs,)](logical, XCDS=xcds)
    assert sorted(logical.tolist()) == list(range(programs))
    for xcd in range(min(xcds, programs)):
        run = logical[xcd::xcds].tolist()
        assert run == list(range(run[0], run[0] + len(run)))


@pytest.mark.parametrize("columns_fastest", [False, True])
@pytest.mark.parametrize("xcds", [1, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 1), (1, 7), (5, 7), (8, 12)])
def test_every_tile_is_met_once(rows: int, columns: int, xcds: int, columns_fastest: bool) -> None:
    tiles = torch.full((rows * columns, 2), -1, dtype=torch.int32)
    _tile_kernel[(rows * columns,)](tiles, rows, columns, COLUMNS_FASTEST=columns_fastest, XCDS=xcds)
    assert sorted(map(tuple, tiles.tolist())) == [(row, column) for row in range(rows) for column in range(columns)]
    if xcds == 1 and columns > 1 and rows > 1:
        assert tiles[1].tolist() == ([0, 1] if columns_fastest else [1, 0])
