"""Program order: which tile a program id stands for."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def chunked_by_xcd(pid, num_programs, XCDS: tl.constexpr):
    """Program id -> logical id, a permutation of 0..num_programs-1 for any number of programs.

    The hardware deals program ids to the XCDs of an AMD GPU round robin (pid % XCDS), and each XCD has an L2 of its
    own. After the remap each XCD works on one contiguous run of logical ids, so that neighbours which share operands
    share an L2. The first num_programs % XCDS dies get one program more. XCDS = 1 changes nothing.
    """
    if XCDS == 1:
        return pid
    xcd = pid % XCDS
    return xcd * (num_programs // XCDS) + tl.minimum(xcd, num_programs % XCDS) + pid // XCDS


@triton.jit
def row_and_column(num_rows, num_columns, COLUMNS_FASTEST: tl.constexpr, XCDS: tl.constexpr):
    """The (row, column) tile of this program in a one-dimensional grid of num_rows x num_columns programs."""
    logical = chunked_by_xcd(tl.program_id(0), tl.num_programs(0), XCDS)
    if COLUMNS_FASTEST:
        return logical // num_columns, logical % num_columns
    return logical % num_rows, logical // num_rows
