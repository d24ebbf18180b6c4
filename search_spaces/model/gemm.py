"""Grouped and plain tile GEMM: y = x W^T by tl.dot over K (terms A1, A2, A6 of docs/model.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..chip import Device
from .closed_form import (
    Array,
    DotTile,
    Mask,
    dot_registers,
    least_shared_bytes,
    mfma_rows_of_waves,
    shared_bytes,
    staged_registers,
    uses_wgmma,
)
from .compiled import Candidates, LoopCounts, counted, residency
from .constants import flop_per_clk
from .physics import Loop, Timing, Traffic, kernel_timing
from .routing import row_blocks

_RESIDENT_PART = 0.8
"""A working set up to this part of the last-level cache is found there by the next identical run."""
_RESIDENT_MISSES = 0.15


@dataclass(frozen=True, kw_only=True)
class GemmShape:
    """`tokens` rows, each times the [n, k] weight of `top_k` of `experts`; a plain GEMM is one expert.

    `weights` counts operands of that size with one accumulator each (2: gate and up of a fused SiLU·mul).
    `loads_rows`: the kernel loads weights as [BLOCK_N, BLOCK_K] tiles, the form that may bypass LDS on AMD.
    """

    tokens: int
    n: int
    k: int
    dtype: str
    itemsize: int
    output_itemsize: int
    experts: int = 1
    top_k: int = 1
    weights: int = 1
    loads_rows: bool = True

    @property
    def is_grouped(self) -> bool:
        return self.experts > 1

    @property
    def rows(self) -> int:
        return self.tokens * self.top_k


@dataclass(frozen=True, kw_only=True)
class GemmConfig:
    """The tile parameters of a GEMM, arrays over configs."""

    block_m: Array
    block_n: Array
    block_k: Array
    group_m: Array
    split_k: Array
    warps: Array
    stages: Array
    remaps_xcd: Array
    is_swapped: Array

    @classmethod
    def of(cls, case: Candidates, group_m: Array | None = None) -> GemmConfig:
        """Read the columns; absent parameters are neutral. `group_m` replaces the parameter of that name."""
        return cls(
            block_m=np.maximum(case.column("BLOCK_M", 16), 16), block_n=case.column("BLOCK_N", 64),
            block_k=case.column("BLOCK_K", 64), split_k=case.column("SPLIT_K", 1),
            group_m=case.column("GROUP_M", 1) if group_m is None else group_m, warps=case.warps,
            stages=case.stages, remaps_xcd=case.column("XCD_REMAP", 0), is_swapped=case.column("SWAP", 0),
        )  # fmt: skip

    def tile(self, shape: GemmShape) -> DotTile:
        """The tl.dot of the main loop; swapped, the weights are the left operand."""
        swapped = self.is_swapped > 0
        rows = np.where(swapped, self.block_n, self.block_m)
        columns = np.where(swapped, self.block_m, self.block_n)
        return DotTile(rows, columns, self.block_k, self.warps, self.stages, shape.itemsize)


def gemm_timing(
    shape: GemmShape,
    config: GemmConfig,
    case: Candidates,
    *,
    launched: Array | None = None,
    setup_us: Array | None = None,
    warm_bytes: float | None = None,
) -> Timing:
    """Time of one GEMM launch.

    `launched` is the grid where it is larger than the programs with work. `warm_bytes` is the working set of
    identical runs back to back, as tuners without a cache flush time them; None means weights come from HBM,
    as in a model.
    """
    device, constants = case.device, case.constants
    tile = config.tile(shape)
    arch = device.arch
    w = shape.weights
    registers = dot_registers(tile, arch) + (w - 1) * (tile.accumulators / (arch.wave_size * tile.warps))
    fit = residency(case, registers, gemm_shared_bytes(shape, config, case), config.warps)
    blocks, active, useful = _rows(shape, config)
    column_blocks = np.ceil(shape.n / config.block_n)
    programs = blocks * column_blocks * config.split_k
    iterations = np.ceil(shape.k / (config.split_k * config.block_k))
    depth_fill = np.minimum(1.0, shape.k / (config.split_k * iterations * config.block_k))
    column_fill = np.minimum(1.0, shape.n / (column_blocks * config.block_n))
    a = useful * config.block_k * shape.itemsize * depth_fill
    b = w * config.block_n * config.block_k * shape.itemsize * column_fill * depth_fill

    resident = warm_bytes is not None and warm_bytes < _RESIDENT_PART * device.last_level_bytes
    in_flight = np.minimum(fit.programs.clip(1) * device.compute_units, programs) / device.xcds
    b_share, a_share = _sharing(config, blocks, active, column_blocks, in_flight, device)
    first = np.minimum(active / np.maximum(blocks, 1e-9), 1.0)
    b_hbm = b * first
    b_last = np.maximum(b / b_share - b_hbm, 0.0)
    if resident:
        b_hbm, b_last = 0.0 * b, b_hbm + b_last
    weight_ns = constants.last_level_ns if resident else constants.hbm_ns

    counts = _counts(tile, shape, case)
    small = ~uses_wgmma(tile, arch) if arch.has_tma else np.zeros(len(b), np.bool_)
    loop = Loop(
        programs=programs, iterations=iterations, warps=config.warps,
        hbm_bytes=b_hbm, last_level_bytes=b_last, l2_bytes=a + b - b_hbm - b_last,
        mma_clk=counts.mma_clk, valu=counts.valu, loads=counts.loads, spills=fit.spills, lds_bytes=counts.lds_bytes,
        depth=config.stages - 1, latency_ns=(weight_ns * b + constants.l2_ns * a) / (a + b),
        segment_bytes=np.minimum(config.block_k, shape.k) * shape.itemsize,
        output_bytes=config.block_m * config.block_n * np.where(config.split_k > 1, 4, shape.output_itemsize),
        mma_efficiency=np.where(small, constants.small_mma_efficiency, constants.mma_efficiency),
        setup_us=np.zeros(len(b)) if setup_us is None else setup_us, overlap=np.zeros(len(b)), has_barrier=True,
    )  # fmt: skip
    unique = (
        active * shape.n * shape.k * w * shape.itemsize + shape.tokens * shape.k * shape.itemsize
        + shape.rows * shape.n * shape.output_itemsize
    )  # fmt: skip
    steps = programs * iterations
    traffic = Traffic(
        hbm=unique * (_RESIDENT_MISSES if resident else 1.0), last_level=steps * (b / b_share + a / a_share),
        l2=steps * (a + b),
    )  # fmt: skip
    grid = programs if launched is None else np.maximum(launched, programs)
    return kernel_timing(loop, traffic, fit.programs, grid, case)


def gemm_shared_bytes(shape: GemmShape, config: GemmConfig, case: Candidates) -> Array:
    """Expected shared memory of the loop, with the buffers of every weight."""
    bypasses = may_bypass(shape, config, case) & shape.loads_rows
    return _by_order(shape, config, lambda tile: shared_bytes(tile, case.device.arch, bypasses))


def least_gemm_shared_bytes(shape: GemmShape, config: GemmConfig, case: Candidates) -> Array:
    """Shared memory the loop needs in any case."""
    bypasses = may_bypass(shape, config, case)
    return _by_order(shape, config, lambda tile: least_shared_bytes(tile, case.device.arch, bypasses))


def may_bypass(shape: GemmShape, config: GemmConfig, case: Candidates) -> Mask:
    """Whether the right operand can be loaded into place: whole vectors, and no two waves need the same part (AMD)."""
    waves_down = mfma_rows_of_waves(config.tile(shape), case.column("matrix_instr_nonkdim", 16))
    return np.asarray(case.loads_whole_vectors() & (waves_down == 1), np.bool_)


def _by_order(shape: GemmShape, config: GemmConfig, size: Callable[[DotTile], Array]) -> Array:
    """A size in bytes, with the weights on the right, or on the left where the config swaps."""
    tile = config.tile(shape)
    plain, swapped = replace(tile, right=shape.weights), replace(tile, left=shape.weights)
    return np.where(config.is_swapped > 0, size(swapped), size(plain))


def _rows(shape: GemmShape, config: GemmConfig) -> tuple[Array, Array, Array]:
    """Row blocks, active experts and useful rows per block of every config."""
    values, inverse = np.unique(config.block_m, return_inverse=True)
    table = np.array([row_blocks(shape.tokens, shape.experts, shape.top_k, int(value)) for value in values])
    picked = table[inverse.reshape(-1)]
    return picked[:, 0], picked[:, 1], picked[:, 2]


def _sharing(
    config: GemmConfig, blocks: Array, active: Array, column_blocks: Array, in_flight: Array, device: Device
) -> tuple[Array, Array]:
    """How many concurrent programs of one L2 use the same weight tile, and the same activation tile.

    Program ids go round-robin to the XCDs, so neighbours in a group share an L2 only where the order is
    remapped.
    """
    spread = np.where(config.remaps_xcd > 0, 1.0, device.xcds)
    concurrent = np.maximum(in_flight, 1.0)
    block_rows = np.clip(config.group_m / spread, 1.0, concurrent)
    block_rows = np.minimum(block_rows, np.maximum(blocks, 1.0))
    block_columns = np.maximum(concurrent / block_rows, 1.0)
    b_share = np.maximum(np.minimum(block_rows, blocks / np.maximum(active, 1.0)), 1.0)
    return b_share, np.maximum(np.minimum(block_columns, column_blocks), 1.0)


def _counts(tile: DotTile, shape: GemmShape, case: Candidates) -> LoopCounts:
    """Term A2: one iteration of the main loop."""
    _, _, repeated = tile.wave_grid()
    flops = 2 * tile.rows * tile.columns * tile.depth * shape.weights * repeated
    mma = flops / (tile.warps * flop_per_clk(case.device, shape.dtype) / 4)
    staged = staged_registers(tile, case.device.arch)
    lds = tile.warps * tile.wave_operand_bytes()
    return counted(LoopCounts(mma, 10 + staged / 2, staged / 4, lds), tile.warps, case)
