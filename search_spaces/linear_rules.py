"""The rules of the skinny projections' search space, each over whole columns of configs and with its reason."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .arch import Device
from .space import Columns, Constraint, Mask

VECTOR_BYTES = 16
MAX_FMA_ROWS = 8
MIN_DOT = 16
MAX_TENSOR_ELEMENTS = 1 << 20
ADDRESS_REGISTERS = 24
"""Offsets, masks and loop state of the compiled tiles: 20-30 registers, Triton 3.7.1 on gfx942 and sm_90."""


class Projection(Protocol):
    """What the rules read of a problem: its rows, its depth and the columns of each weight."""

    @property
    def batch(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def segments(self) -> tuple[int, ...]: ...
    @property
    def weights_per_column(self) -> int: ...


def _threads(columns: Columns, device: Device) -> npt.NDArray[Any]:
    return np.asarray(columns["num_warps"] * device.arch.wave_size)


def _uses_dot(columns: Columns) -> Mask:
    return np.asarray(columns["DOT"] == 1, np.bool_)


def _row_blocks_of(columns: Columns, problem: Projection) -> npt.NDArray[Any]:
    return np.asarray(-(-problem.batch // columns["BLOCK_M"]))


def _tiles(columns: Columns, problem: Projection) -> npt.NDArray[Any]:
    """Programs of one split."""
    column_blocks = sum(-(-segment // columns["BLOCK_N"]) for segment in problem.segments)
    return np.asarray(column_blocks * _row_blocks_of(columns, problem))


def _form_has_rows(columns: Columns, problem: Projection, device: Device) -> Mask:
    return np.asarray(_uses_dot(columns) == (columns["BLOCK_M"] >= MIN_DOT), np.bool_)


def _form_has_columns(columns: Columns, problem: Projection, device: Device) -> Mask:
    return np.where(_uses_dot(columns), columns["BLOCK_N"] >= MIN_DOT, columns["BLOCK_N"] <= 16)


def _dot_depth(columns: Columns, problem: Projection, device: Device) -> Mask:
    return ~_uses_dot(columns) | (columns["BLOCK_K"] <= 512)


def _fma_warps_along_k(columns: Columns, problem: Projection, device: Device) -> Mask:
    row_bytes = columns["BLOCK_K"] * problem.itemsize
    return _uses_dot(columns) | (row_bytes >= VECTOR_BYTES * _threads(columns, device))


def _fma_registers(columns: Columns, problem: Projection, device: Device) -> Mask:
    """Per thread: the loads of one step, and one accumulator per row of x and 16-byte load."""
    loads = columns["BLOCK_N"] * columns["BLOCK_K"] * problem.itemsize / (VECTOR_BYTES * _threads(columns, device))
    loads = loads * problem.weights_per_column
    return np.asarray(_uses_dot(columns) | ((loads <= 16) & (loads * columns["BLOCK_M"] <= 64)), np.bool_)


def _dot_loads_are_wide(columns: Columns, problem: Projection, device: Device) -> Mask:
    tile_bytes = columns["BLOCK_N"] * columns["BLOCK_K"] * problem.itemsize
    return ~_uses_dot(columns) | (tile_bytes >= VECTOR_BYTES * _threads(columns, device))


def _dot_tile_is_balanced(columns: Columns, problem: Projection, device: Device) -> Mask:
    narrow = columns["BLOCK_N"] * 4 < columns["BLOCK_M"]
    deep = (columns["BLOCK_M"] >= 64) & (columns["BLOCK_K"] > 256)
    return np.asarray(~_uses_dot(columns) | ~(narrow | deep), np.bool_)


def _log2(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(np.log2(np.maximum(values, 1)), np.int64)


def _dot_operand_bytes(columns: Columns, problem: Projection, device: Device) -> npt.NDArray[Any]:
    """Bytes of x and of weights that one warp multiplies in a step, with warps laid over the tile as Triton does."""
    block_m, block_n, warps = columns["BLOCK_M"], columns["BLOCK_N"], _log2(columns["num_warps"])
    along_m = np.clip((warps + _log2(block_m) - _log2(block_n)) // 2, 0, np.minimum(warps, _log2(block_m // MIN_DOT)))
    rows = block_m // 2**along_m
    weights = np.maximum(MIN_DOT, block_n // 2 ** (warps - along_m)) * problem.weights_per_column
    return np.asarray((rows + weights) * columns["BLOCK_K"] * problem.itemsize)


def _dot_registers_fit(columns: Columns, problem: Projection, device: Device) -> Mask:
    """Accumulators, operands and, on AMD, the loads in flight, against what a thread may have.

    Measured with Triton 3.7.1 on random configs: what this rejects spills, up to thousands of registers. wgmma and
    tcgen05 read their operands from shared memory; NVIDIA's loads go there directly.
    """
    arch = device.arch
    threads = _threads(columns, device)
    accumulators = columns["BLOCK_M"] * columns["BLOCK_N"] * problem.weights_per_column / threads
    operands = _dot_operand_bytes(columns, problem, device) / (4 * arch.wave_size)
    if arch.is_amd:
        tile_rows = columns["BLOCK_M"] + columns["BLOCK_N"] * problem.weights_per_column
        loads = tile_rows * columns["BLOCK_K"] * problem.itemsize / (4 * threads)
        used = accumulators + operands + loads * np.maximum(1, columns["num_stages"] - 1)
        waves = np.maximum(np.maximum(1, columns["waves_per_eu"]), columns["num_warps"] // 4)
        available = arch.registers_per_lane // waves
    else:
        from_shared = (columns["BLOCK_M"] >= 64) & (columns["num_warps"] >= 4) & (problem.itemsize == 2) & arch.has_tma
        used = accumulators + np.where(from_shared, 0, operands)
        available = np.full(len(columns["DOT"]), arch.registers_per_thread)
    return np.asarray(~_uses_dot(columns) | (used + ADDRESS_REGISTERS <= available), np.bool_)


def _dot_warps_have_work(columns: Columns, problem: Projection, device: Device) -> Mask:
    fragments = columns["BLOCK_M"] * columns["BLOCK_N"] // (MIN_DOT * MIN_DOT)
    return ~_uses_dot(columns) | (columns["num_warps"] <= 2 * fragments)


def _tensors_fit(columns: Columns, problem: Projection, device: Device) -> Mask:
    """The FMA form multiplies a [BLOCK_M, BLOCK_N, BLOCK_K] tensor, the dot form loads two matrices."""
    product = columns["BLOCK_M"] * columns["BLOCK_N"] * columns["BLOCK_K"]
    matrix = np.maximum(columns["BLOCK_M"], columns["BLOCK_N"]) * columns["BLOCK_K"]
    return np.asarray(np.where(_uses_dot(columns), matrix, product) <= MAX_TENSOR_ELEMENTS, np.bool_)


def _matrix_instruction_fits(columns: Columns, problem: Projection, device: Device) -> Mask:
    if "matrix_instr_nonkdim" not in columns:
        return np.ones(len(columns["DOT"]), np.bool_)
    smaller = np.minimum(columns["BLOCK_M"], columns["BLOCK_N"])
    return np.asarray((columns["matrix_instr_nonkdim"] <= 16) | (smaller >= 32), np.bool_)


def _dot_knobs_pinned(columns: Columns, problem: Projection, device: Device) -> Mask:
    """The loop without tl.dot is not pipelined and has no matrix instruction."""
    pinned = columns["num_stages"] == (1 if device.arch.is_amd else 2)
    if "kpack" in columns:
        pinned = pinned & (columns["kpack"] == 1)
    if "matrix_instr_nonkdim" in columns:
        pinned = pinned & (columns["matrix_instr_nonkdim"] == 16)
    return np.asarray(_uses_dot(columns) | pinned, np.bool_)


def _remap_has_effect(columns: Columns, problem: Projection, device: Device) -> Mask:
    if "XCD_REMAP" not in columns:
        return np.ones(len(columns["DOT"]), np.bool_)
    return np.asarray((columns["XCD_REMAP"] == 0) | (_row_blocks_of(columns, problem) > 1), np.bool_)


def _blocks_needed(columns: Columns, problem: Projection, device: Device) -> Mask:
    too_wide = columns["BLOCK_N"] >= 2 * max(MIN_DOT, min(problem.segments))
    too_deep = columns["BLOCK_K"] >= 2 * max(512, problem.k)
    return np.asarray(~(too_wide | too_deep), np.bool_)


def _splits_have_work(columns: Columns, problem: Projection, device: Device) -> Mask:
    """At least two steps a split in the pipelined form and one in the other, and no split left empty."""
    steps = -(-problem.k // columns["BLOCK_K"])
    steps_per_split = -(-steps // columns["SPLIT_K"])
    filled = -(-steps // steps_per_split) == columns["SPLIT_K"]
    least = np.where(_uses_dot(columns), 2, 1)
    return np.asarray((columns["SPLIT_K"] == 1) | (filled & (steps_per_split >= least)), np.bool_)


def _splits_fill_device(columns: Columns, problem: Projection, device: Device) -> Mask:
    programs = _tiles(columns, problem) * columns["SPLIT_K"]
    return np.asarray((columns["SPLIT_K"] == 1) | (programs <= 3 * device.compute_units), np.bool_)


CONSTRAINTS = (
    Constraint("tl.dot takes 16 rows or more, the FMA form 8 or fewer", _form_has_rows),
    Constraint("tl.dot takes 16 columns or more, the FMA form has registers for at most 16", _form_has_columns),
    Constraint(
        "the dot form must not step more than 512 deep: a longer step only delays the first product", _dot_depth
    ),
    Constraint(
        "the FMA form needs a 16-byte load per thread along k, else x moves through shared memory", _fma_warps_along_k
    ),
    Constraint("the FMA form must not hold more than 16 loads or 64 accumulators per thread and step", _fma_registers),
    Constraint("each thread must have at least one 16-byte load of the weight tile", _dot_loads_are_wide),
    Constraint(
        "with 64 rows or more a tile is at least a quarter as wide as high and at most 256 deep", _dot_tile_is_balanced
    ),
    Constraint("accumulators, operands and loads in flight must fit the registers of a thread", _dot_registers_fit),
    Constraint("each warp of the dot form must own at least half a 16x16 fragment of the tile", _dot_warps_have_work),
    Constraint("no tensor may pass Triton's limit of 1048576 elements", _tensors_fit),
    Constraint("a 32-wide matrix instruction needs BLOCK_M and BLOCK_N of at least 32", _matrix_instruction_fits),
    Constraint(
        "stages, kpack and matrix instruction have no effect without tl.dot and stay at one value", _dot_knobs_pinned
    ),
    Constraint("XCD_REMAP has an effect only where several blocks of rows share a weight tile", _remap_has_effect),
    Constraint("a block must not pass the problem's size by a power of two or more", _blocks_needed),
    Constraint("every split of k must have work: two steps with tl.dot, one without", _splits_have_work),
    Constraint("k is split only to fill the device: at most 3 programs per compute unit", _splits_fill_device),
)
