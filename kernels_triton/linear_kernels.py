"""The jitted functions of the skinny projections: one tile of x W^T by FMA or by tl.dot, split over k or not."""

from __future__ import annotations

import triton
import triton.language as tl

from .program_order import chunked_by_xcd


@triton.jit
def _load_weights(w_ptr, columns, k, columns_left, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr):
    """[BLOCK_N, BLOCK_K] of a weight whose first row is at w_ptr; EVEN where the blocks cover N and K exactly."""
    offsets = columns[:, None] * K + k[None, :]
    if EVEN:
        weights = tl.load(w_ptr + offsets)
    else:
        weights = tl.load(w_ptr + offsets, mask=(columns < columns_left)[:, None] & (k < K)[None, :], other=0.0)
    return weights


@triton.jit
def _fma(acc, weights, x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, VECTOR: tl.constexpr):
    """acc [BLOCK_M, BLOCK_N, BLOCK_K / VECTOR] += weights x x, summed over the VECTOR elements of a thread's load."""
    products = weights.to(tl.float32)[None, :, :] * x
    return acc + tl.sum(tl.reshape(products, [BLOCK_M, BLOCK_N, BLOCK_K // VECTOR, VECTOR]), axis=3)


@triton.jit
def _fma_step(
    gate, up, x_ptr, w_ptr, up_ptr, rows, columns, rows_left, columns_left, x_row_stride, k_start,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    k = k_start + tl.arange(0, BLOCK_K)
    weights = _load_weights(w_ptr, columns, k, columns_left, N, K, EVEN)
    mask = (rows < rows_left)[:, None, None] & (k < K)[None, None, :]
    x = tl.load(x_ptr + rows[:, None, None] * x_row_stride + k[None, None, :], mask=mask, other=0.0).to(tl.float32)
    gate = _fma(gate, weights, x, BLOCK_M, BLOCK_N, BLOCK_K, VECTOR)
    if up_ptr is not None:
        up_weights = _load_weights(up_ptr, columns, k, columns_left, N, K, EVEN)
        up = _fma(up, up_weights, x, BLOCK_M, BLOCK_N, BLOCK_K, VECTOR)
    return gate, up


@triton.jit
def _fma_tile(
    x_ptr, w_ptr, up_ptr, rows, columns, rows_left, columns_left, x_row_stride, k_start,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr, UNROLL: tl.constexpr, VECTOR: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A loop without tl.dot is not pipelined, so UNROLL steps are laid out flat: their loads are in flight together."""
    gate = tl.zeros([BLOCK_M, BLOCK_N, BLOCK_K // VECTOR], tl.float32)
    up = gate
    for group in range(STEPS // UNROLL):
        for step in tl.static_range(UNROLL):
            gate, up = _fma_step(
                gate, up, x_ptr, w_ptr, up_ptr, rows, columns, rows_left, columns_left, x_row_stride,
                k_start + (group * UNROLL + step) * BLOCK_K, N, K, BLOCK_M, BLOCK_N, BLOCK_K, VECTOR, EVEN,
            )  # fmt: skip
    for step in tl.static_range(STEPS % UNROLL):
        gate, up = _fma_step(
            gate, up, x_ptr, w_ptr, up_ptr, rows, columns, rows_left, columns_left, x_row_stride,
            k_start + (STEPS // UNROLL * UNROLL + step) * BLOCK_K, N, K, BLOCK_M, BLOCK_N, BLOCK_K, VECTOR, EVEN,
        )  # fmt: skip
    return tl.sum(gate, axis=2), tl.sum(up, axis=2)


@triton.jit
def _dot_tile(
    x_ptr, w_ptr, up_ptr, rows, columns, rows_left, columns_left, x_row_stride, k_start,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = gate
    for step in range(STEPS):
        k = k_start + step * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = (rows < rows_left)[:, None]
        if not EVEN:
            mask = mask & (k < K)[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_row_stride + k[None, :], mask=mask, other=0.0)
        weights = _load_weights(w_ptr, columns, k, columns_left, N, K, EVEN)
        gate = tl.dot(x, tl.trans(weights), gate, input_precision="ieee")
        if up_ptr is not None:
            up_weights = _load_weights(up_ptr, columns, k, columns_left, N, K, EVEN)
            up = tl.dot(x, tl.trans(up_weights), up, input_precision="ieee")
    return gate, up


@triton.jit(do_not_specialize=["num_rows"])
def _linear_kernel(
    x_ptr, w_ptr, up_ptr, k_weight_ptr, v_weight_ptr, bias_ptr, k_bias_ptr, v_bias_ptr, residual_ptr, out_ptr,
    num_rows, x_row_stride, residual_row_stride,
    N: tl.constexpr, N_KV: tl.constexpr, K: tl.constexpr, DOT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
    VECTOR: tl.constexpr, EVEN: tl.constexpr, XCDS: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M, BLOCK_N] tile of x W^T over one split of k, for one weight, two (SiLU * mul) or three (q, k, v).

    Blocks of rows vary fastest, so programs that share a weight tile run together; a block of columns lies in one
    of the three weights. Without a split out_ptr is the result; with one it is the fp32 workspace
    [SPLIT_K, rows, columns] and the first split carries bias and residual.
    """
    pid = chunked_by_xcd(tl.program_id(0), tl.num_programs(0), XCDS)
    row_blocks = tl.cdiv(num_rows, BLOCK_M)
    row_start = (pid % row_blocks) * BLOCK_M
    pid = pid // row_blocks
    BLOCKS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    KV_BLOCKS: tl.constexpr = (N_KV + BLOCK_N - 1) // BLOCK_N
    block = pid % (BLOCKS + 2 * KV_BLOCKS)
    split = pid // (BLOCKS + 2 * KV_BLOCKS)

    segment_start = 0
    segment_columns = N
    if k_weight_ptr is not None:
        is_k = (block >= BLOCKS) & (block < BLOCKS + KV_BLOCKS)
        is_v = block >= BLOCKS + KV_BLOCKS
        # Selected, not assigned in branches: the AMD backend of Triton 3.6 fails on pointers that leave an `if`.
        w_ptr = tl.where(is_v, v_weight_ptr, tl.where(is_k, k_weight_ptr, w_ptr))
        if bias_ptr is not None:
            bias_ptr = tl.where(is_v, v_bias_ptr, tl.where(is_k, k_bias_ptr, bias_ptr))
        segment_start = tl.where(is_v, N + N_KV, tl.where(is_k, N, 0))
        segment_columns = tl.where(is_v | is_k, N_KV, N)
        block -= tl.where(is_v, BLOCKS + KV_BLOCKS, tl.where(is_k, BLOCKS, 0))
    column_start = block * BLOCK_N
    rows_left = num_rows - row_start
    columns_left = segment_columns - column_start
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    x_ptr += row_start.to(tl.int64) * x_row_stride
    w_ptr += column_start.to(tl.int64) * K
    if up_ptr is not None:
        up_ptr += column_start.to(tl.int64) * K
    k_start = split * (STEPS * BLOCK_K)
    if DOT:
        gate, up = _dot_tile(
            x_ptr, w_ptr, up_ptr, rows, columns, rows_left, columns_left, x_row_stride, k_start,
            N, K, BLOCK_M, BLOCK_N, BLOCK_K, STEPS, EVEN,
        )  # fmt: skip
    else:
        gate, up = _fma_tile(
            x_ptr, w_ptr, up_ptr, rows, columns, rows_left, columns_left, x_row_stride, k_start,
            N, K, BLOCK_M, BLOCK_N, BLOCK_K, STEPS, UNROLL, VECTOR, EVEN,
        )  # fmt: skip

    mask = (rows < rows_left)[:, None] & (columns < columns_left)[None, :]
    if bias_ptr is not None:
        if split == 0:
            bias = tl.load(bias_ptr + column_start + columns, mask=columns < columns_left, other=0.0)
            gate += bias.to(tl.float32)[None, :]
    if residual_ptr is not None:
        if split == 0:
            residual_ptr += row_start.to(tl.int64) * residual_row_stride + column_start
            residual = tl.load(
                residual_ptr + rows[:, None] * residual_row_stride + columns[None, :], mask=mask, other=0.0
            )
            gate += residual.to(tl.float32)
    WIDTH: tl.constexpr = (2 * N if up_ptr is not None and SPLIT_K > 1 else N) + 2 * N_KV
    out_ptr += (split.to(tl.int64) * num_rows + row_start) * WIDTH + segment_start + column_start
    out = out_ptr + rows[:, None] * WIDTH + columns[None, :]
    if up_ptr is not None:
        if SPLIT_K > 1:
            tl.store(out + N, up, mask=mask)
        else:
            gate = gate * tl.sigmoid(gate) * up
    tl.store(out, gate.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _linear_reduce_kernel(
    workspace_ptr, out_ptr, num_rows,
    N: tl.constexpr, SPLIT_K: tl.constexpr, SILU_MUL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of the splits in ascending order, so every call gives the same bits; SiLU(gate) * up after the sum."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < N
    WIDTH: tl.constexpr = 2 * N if SILU_MUL else N
    gate = tl.zeros([BLOCK], tl.float32)
    up = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLIT_K):
        partial_ptr = workspace_ptr + (row + split * num_rows) * WIDTH
        gate += tl.load(partial_ptr + columns, mask=mask, other=0.0)
        if SILU_MUL:
            up += tl.load(partial_ptr + N + columns, mask=mask, other=0.0)
    if SILU_MUL:
        gate = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * N + columns, gate.to(out_ptr.dtype.element_ty), mask=mask)
