"""Shared memory, registers and occupancy of a program before it is compiled.

Shared memory of a pipelined tl.dot loop: exact on the prototype's grouped GEMM (1 584 gfx942, 99 gfx950, 38 gfx942 fp8,
150 sm_90 configs; Triton 3.7.1). In our kernels the AMD backend also keeps the right operand out of LDS where it can,
so `least_shared_bytes` is what may reject and `shared_bytes` what occupancy is estimated from. Registers order configs
(correlation 0.95) and are no verdict. Facts of the compiler replace all of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..chip import Arch

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Columns = dict[str, npt.NDArray[Any]]

_WGMMA_ROWS, _WGMMA_WARPS = 64, 4
_REGISTER_GRANULE = 8
_MAX_FRAGMENT = 96


def column(columns: Columns, name: str, neutral: float) -> Array:
    """A config parameter as floats; the neutral value in every row where the space does not have it."""
    if name in columns:
        return np.asarray(columns[name], np.float64)
    return np.full(rows_of(columns), float(neutral))


def rows_of(columns: Columns) -> int:
    """Number of configs in the columns."""
    return len(next(iter(columns.values()))) if columns else 1


@dataclass(frozen=True)
class DotTile:
    """Operands of the tl.dot in a main loop: [rows, depth] x [depth, columns], arrays over configs.

    `left` and `right` count operands of each side (a gate and an up weight make two, each with an
    accumulator).
    """

    rows: Array
    columns: Array
    depth: Array
    warps: Array
    stages: Array
    itemsize: int
    left: int = 1
    right: int = 1

    @property
    def left_bytes(self) -> Array:
        return self.rows * self.depth * self.itemsize * self.left

    @property
    def right_bytes(self) -> Array:
        return self.columns * self.depth * self.itemsize * self.right

    @property
    def accumulators(self) -> Array:
        """Elements of all accumulators."""
        return self.rows * self.columns * max(self.left, self.right)

    def wave_grid(self) -> tuple[Array, Array, Array]:
        """Waves along rows and columns, and how often the rest repeats work (term A2)."""
        along_columns = 2.0 ** np.round(np.log2(np.sqrt(self.warps * self.columns / self.rows)))
        along_columns = np.clip(along_columns, 1.0, np.minimum(self.warps, np.maximum(self.columns / 16, 1)))
        along_rows = np.clip(self.warps / along_columns, 1.0, np.maximum(self.rows / 16, 1))
        return along_rows, along_columns, self.warps / (along_rows * along_columns)

    def wave_operand_bytes(self) -> Array:
        """Bytes of operands one wave needs for one iteration."""
        along_rows, along_columns, _ = self.wave_grid()
        return self.left_bytes / along_rows + self.right_bytes / along_columns


def uses_wgmma(tile: DotTile, arch: Arch) -> Mask:
    """Whether Triton emits wgmma (sm_90) or tcgen05 (sm_100): at least 64 rows and 4 warps."""
    has_it = arch.vendor == "nvidia" and arch.has_tma
    return (tile.rows >= _WGMMA_ROWS) & (tile.warps >= _WGMMA_WARPS) & has_it


def mfma_rows_of_waves(tile: DotTile, instruction: Array) -> Array:
    """Waves along the rows of the output in Triton's MFMA layout; waves are dealt to the longer side first.

    Follows `warpsPerTile` of Triton 3.7.1's AMD backend for a dot that feeds no other dot.
    """
    down, across = np.ones_like(tile.rows), np.ones_like(tile.rows)
    high, wide = tile.rows / instruction, tile.columns / instruction
    while (open_ := down * across < tile.warps).any():
        takes_rows = open_ & (np.floor(high / 2) / down >= wide / across) & (down < high)
        down, across = np.where(takes_rows, 2 * down, down), np.where(open_ & ~takes_rows, 2 * across, across)
    return np.where(across > wide, across, down)


def shared_bytes(tile: DotTile, arch: Arch, bypasses: Mask | bool = False) -> Array:
    """Expected shared memory of a pipelined dot loop; `bypasses`: the right operand goes from memory to registers."""
    left, right = tile.left_bytes, np.where(bypasses, 0.0, tile.right_bytes)
    if not arch.is_amd:
        buffers = np.where(uses_wgmma(tile, arch), tile.stages, tile.stages - 1)
        return np.where(buffers >= 1, buffers * (left + right), np.maximum(left, right))
    one_element_per_lane = np.maximum(tile.rows, tile.columns) * tile.depth <= arch.wave_size * tile.warps
    # Without a pipeline each operand passes through the same buffer in turn.
    in_turn = np.maximum(left / tile.left, right / tile.right)
    pipelined = np.where(one_element_per_lane, np.maximum(left, right), (tile.stages - 1) * (left + right))
    return np.where(tile.stages <= 1, in_turn, pipelined)


def least_shared_bytes(tile: DotTile, arch: Arch, may_bypass: Mask) -> Array:
    """What a pipelined loop needs in any case, so that more than the limit can be rejected without compiling.

    Without a pipeline the AMD backend converts layouts in pieces of its own choice: nothing is sure.
    """
    sure = shared_bytes(tile, arch, may_bypass)
    return np.where(tile.stages <= 1, 0.0, sure)


def dot_registers(tile: DotTile, arch: Arch) -> Array:
    """Estimated registers per thread of a dot loop, not limited by what a thread may use."""
    lanes = arch.wave_size * tile.warps
    accumulator = tile.accumulators / lanes
    if not arch.is_amd:
        return accumulator + 44.0
    fragment = tile.wave_operand_bytes() / 4 / arch.wave_size
    return accumulator + np.minimum(fragment, _MAX_FRAGMENT) + staged_registers(tile, arch) + 28.0


def staged_registers(tile: DotTile, arch: Arch) -> Array:
    """Registers per lane that one iteration's loads pass through."""
    return (tile.left_bytes + tile.right_bytes) / 4 / (arch.wave_size * tile.warps)


def stream_registers(elements: Array, itemsize: int, accumulators: Array, warps: Array, arch: Arch) -> Array:
    """Estimated registers of a loop without tl.dot: loaded elements, fp32 forms, accumulators, addresses."""
    lanes = arch.wave_size * warps
    return elements * (itemsize / 4 + 0.5) / lanes + accumulators / lanes + 30.0


def register_limit(warps: Array, arch: Arch) -> Array:
    """Registers a thread may use: its own limit, and an even share of the file for that many warps."""
    per_simd = np.maximum(np.ceil(warps / 4), 1)
    share = np.floor(arch.registers_per_lane / per_simd / _REGISTER_GRANULE) * _REGISTER_GRANULE
    return np.asarray(np.minimum(share, arch.registers_per_thread), np.float64)


def waves_per_simd(registers: Array, arch: Arch) -> Array:
    """Waves one SIMD holds at that many registers; equals LLVM's `; Occupancy:` on 1 584 configs."""
    granted = np.ceil(np.maximum(registers, 1) / _REGISTER_GRANULE) * _REGISTER_GRANULE
    return np.asarray(np.minimum(arch.max_waves_per_simd, np.floor(arch.registers_per_lane / granted)), np.float64)


def programs_per_unit(registers: Array, shared: Array, warps: Array, max_programs: float, arch: Arch) -> Array:
    """Programs resident on one compute unit; 0 where registers or shared memory allow none."""
    by_registers = np.floor(4 * waves_per_simd(registers, arch) / warps)
    by_shared = np.floor(arch.shared_limit_bytes / np.maximum(shared, 1))
    return np.asarray(np.minimum(np.minimum(by_registers, by_shared), max_programs), np.float64)
