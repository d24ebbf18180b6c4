"""Modelled launches of attention: split-KV decode, and causal prefill.

Untested against any published winner: treat the ranking as a hint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from ..chip import Device
from .closed_form import Array, DotTile, uses_wgmma
from .compiled import Candidates, LoopCounts, Residency, counted, residency
from .constants import flop_per_clk
from .physics import Loop, Timing, Traffic, chosen, kernel_timing, nothing, stream_timing

_SOFTMAX_INSTRUCTIONS = 10.0
"""Vector instructions per score: scale, mask, maximum, exponential, sum, convert (assumed)."""
_FUSED_SETUP_US = 0.6
"""Norm and rotation of the query heads, and of the new key (assumed)."""
MIN_ROWS = 16


class AttentionDims(Protocol):
    """What is read of every attention problem; decode has `context` besides."""

    @property
    def kernel(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def q_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def window(self) -> int: ...
    def dims(self) -> dict[str, int]: ...


def padded_head(problem: AttentionDims) -> int:
    """head_dim as a tile has it, a power of two."""
    return max(MIN_ROWS, 1 << (problem.head_dim - 1).bit_length())


def score_tile(problem: AttentionDims, case: Candidates) -> DotTile:
    """The q k^T of the main loop: [query rows, head_dim] x [head_dim, BLOCK_N]; decode packs the heads."""
    block_n = case.column("BLOCK_N", 64)
    group = max(MIN_ROWS, 1 << (problem.q_heads // problem.kv_heads - 1).bit_length())
    rows = case.column("BLOCK_M", group)
    depth = np.full(len(block_n), float(padded_head(problem)))
    return DotTile(rows, block_n, depth, case.warps, case.stages, problem.itemsize)


def attention_shared_bytes(tile: DotTile, case: Candidates) -> Array:
    """Expected shared memory: buffers of K and V, which have one size, and what turns operands into place.

    AMD: the query passes through the same memory once, and a lone wave of a pipelined loop takes K from memory into
    place when it loads whole vectors. NVIDIA: the query stays; the weights of V are exchanged between several warps.
    """
    arch, one = case.device.arch, tile.right_bytes
    if arch.is_amd:
        keeps_k_out = case.loads_whole_vectors() & (tile.warps == 1)
        buffers = np.where(tile.stages <= 1, one, (tile.stages - 1) * np.where(keeps_k_out, one, 2 * one))
        return np.maximum(buffers, tile.left_bytes)
    is_wgmma = uses_wgmma(tile, arch)
    count = np.where(is_wgmma, tile.stages, tile.stages - 1)
    exchanged = np.where(is_wgmma | (tile.warps == 1), 0.0, tile.rows * tile.columns * tile.itemsize)
    return tile.left_bytes + exchanged + np.where(tile.stages > 1, 2 * count * one, one)


def least_attention_shared_bytes(tile: DotTile, case: Candidates) -> Array:
    """What is sure of a pipelined loop: the buffers of one operand."""
    return tile.right_bytes * np.maximum(tile.stages - 1, 0)


def decode_launches(problem: AttentionDims, case: Candidates) -> dict[str, Timing]:
    """One program per sequence, kv head and split; a second launch combines the splits."""
    tile = score_tile(problem, case)
    splits = case.column("SPLITS", 1)
    context = problem.dims()["context"]
    seen = min(context, problem.window) if problem.window > 0 else context
    blocks = np.ceil(seen / tile.columns)
    run = np.ceil(blocks / splits)
    busy = np.ceil(blocks / run)
    heads = problem.batch * problem.kv_heads
    programs = heads * busy
    fill = seen / (busy * run * tile.columns)
    group = problem.q_heads / problem.kv_heads
    kv = 2 * tile.columns * problem.head_dim * problem.itemsize * fill
    part = np.where(splits > 1, 4.0, problem.itemsize) * group * problem.head_dim
    zeros = np.zeros(len(kv))
    fused = problem.kernel == "attention_decode_fused"
    loop = replace(
        _attention_loop(problem, tile, zeros, case),
        programs=programs, iterations=run, hbm_bytes=kv, latency_ns=zeros + case.constants.hbm_ns,
        output_bytes=part,
        setup_us=zeros + (_FUSED_SETUP_US if fused else 0.0),
    )  # fmt: skip
    query = problem.batch * problem.q_heads * problem.head_dim * problem.itemsize
    cache = 2.0 * heads * seen * problem.head_dim * problem.itemsize
    traffic = Traffic(hbm=zeros + cache + 2 * query, last_level=programs * run * kv, l2=programs * run * kv)
    fit = _residency(tile, case).programs
    main = kernel_timing(loop, traffic, fit, heads * splits, case)
    parts = problem.batch * problem.q_heads * (splits * (problem.head_dim + 1) * 4.0) + query
    combine = stream_timing(parts, problem.batch * problem.q_heads, case)
    return {"attention": main, "combine": chosen(splits > 1, combine, nothing(case))}


def prefill_launches(problem: AttentionDims, case: Candidates) -> dict[str, Timing]:
    """One program per query head and row block; later rows see more keys, the longest sets the tail."""
    tile = score_tile(problem, case)
    tokens = problem.batch
    row_blocks = np.ceil(tokens / tile.rows)
    mean, longest = _causal_steps(tokens, problem.window, tile)
    programs = problem.q_heads * row_blocks
    kv = 2 * tile.columns * problem.head_dim * problem.itemsize
    distinct = 2.0 * problem.kv_heads * tokens * problem.head_dim * problem.itemsize
    first = np.minimum(distinct / (programs * mean * kv), 1.0)
    output = tile.rows * problem.head_dim * problem.itemsize
    zeros = np.zeros(len(output))
    loop = replace(
        _attention_loop(problem, tile, case.column("WARP_SPECIALIZE", 0), case),
        programs=programs, iterations=mean, hbm_bytes=kv * first, l2_bytes=kv * (1 - first),
        latency_ns=case.constants.hbm_ns * first + case.constants.l2_ns * (1 - first), output_bytes=output,
    )  # fmt: skip
    query = problem.q_heads * tokens * problem.head_dim * problem.itemsize
    reads = programs * mean * kv
    traffic = Traffic(hbm=zeros + distinct + 2.0 * query, last_level=reads / case.device.xcds + distinct, l2=reads)
    fit = _residency(tile, case).programs
    average = kernel_timing(loop, traffic, fit, programs, case)
    one_wave = np.minimum(programs, np.maximum(fit, 1) * case.device.compute_units)
    slowest = kernel_timing(replace(loop, programs=one_wave, iterations=longest), traffic, fit, programs, case)
    return {"attention": chosen(slowest.total_us > average.total_us, slowest, average)}


def _causal_steps(tokens: int, window: int, tile: DotTile) -> tuple[Array, Array]:
    """Mean and largest number of key blocks that a row block goes through."""
    mean, longest = np.zeros_like(tile.rows), np.zeros_like(tile.rows)
    pairs = np.stack([tile.rows, tile.columns], axis=1)
    for rows, columns in np.unique(pairs, axis=0):
        ends = np.minimum(np.arange(1, np.ceil(tokens / rows) + 1) * rows, tokens)
        starts = np.maximum(ends - rows - window, 0) if window > 0 else np.zeros_like(ends)
        steps = np.ceil(ends / columns) - np.floor(starts / columns)
        where = (tile.rows == rows) & (tile.columns == columns)
        mean[where], longest[where] = steps.mean(), steps.max()
    return mean, longest


def _attention_loop(problem: AttentionDims, tile: DotTile, specialised: Array, case: Candidates) -> Loop:
    """One block of keys: two dots and a softmax; how many programs, and where bytes come from, is the caller's."""
    arch, constants = case.device.arch, case.constants
    lanes = arch.wave_size * tile.warps
    values = replace(tile, columns=tile.depth, depth=tile.columns)
    mma = _matrix_clk(tile, problem, case) + _matrix_clk(values, problem, case)
    valu = tile.rows * tile.columns / lanes * _SOFTMAX_INSTRUCTIONS + tile.rows * tile.depth / lanes + 20
    # Waves own their rows, so one's softmax runs beside another's dot; warp specialisation makes two such groups.
    overlap = np.maximum(np.ceil(tile.warps / 4), np.where(specialised > 0, 2.0, 1.0))
    loads = 2 * tile.right_bytes / 16 / lanes
    lds = tile.warps * (tile.right_bytes / tile.wave_grid()[1] + values.right_bytes / values.wave_grid()[1])
    counts = counted(LoopCounts(mma, valu, loads, lds), tile.warps, case)
    is_small = ~uses_wgmma(tile, arch) if arch.has_tma else np.zeros(len(lanes), np.bool_)
    zeros = np.zeros(len(lanes))
    return Loop(
        programs=zeros, iterations=zeros, warps=tile.warps, hbm_bytes=zeros, last_level_bytes=zeros, l2_bytes=zeros,
        mma_clk=counts.mma_clk, valu=counts.valu, loads=counts.loads, spills=_residency(tile, case).spills,
        lds_bytes=counts.lds_bytes, depth=tile.stages - 1, latency_ns=zeros,
        segment_bytes=zeros + problem.head_dim * problem.itemsize, output_bytes=zeros,
        mma_efficiency=np.where(is_small, constants.small_mma_efficiency, constants.mma_efficiency), setup_us=zeros,
        overlap=overlap, has_barrier=True,
    )  # fmt: skip


def _matrix_clk(tile: DotTile, problem: AttentionDims, case: Candidates) -> Array:
    flops = 2 * tile.rows * tile.columns * tile.depth * tile.wave_grid()[2]
    return flops / (tile.warps * flop_per_clk(case.device, problem.dtype) / 4)


def attention_registers(tile: DotTile, device: Device) -> Array:
    """Estimated registers: output and score accumulators, the query, a block of keys and values."""
    lanes = device.arch.wave_size * tile.warps
    accumulators = tile.rows * (tile.depth + tile.columns) / lanes
    operands = (tile.left_bytes + 2 * tile.right_bytes / tile.wave_grid()[1]) / 4 / lanes
    return accumulators + operands + 40.0


def _residency(tile: DotTile, case: Candidates) -> Residency:
    shared = attention_shared_bytes(tile, case)
    return residency(case, attention_registers(tile, case.device), shared, tile.warps)
