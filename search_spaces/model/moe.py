"""Modelled launches of the mixture-of-experts kernels: grouped GEMM for prefill, sort-free GEMV and tiles for decode."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..chip import Device
from .closed_form import Array, Columns, column
from .compiled import Compiled
from .constants import ModelConstants
from .gemm import GemmConfig, GemmShape, gemm_timing
from .gemv import GemvShape, gemv_timing
from .physics import Timing, chosen, stream_timing
from .routing import row_blocks

_SEARCH_INSTRUCTIONS = 6.0
"""Vector instructions per (pair, row) of the row search of an expert tile: compare, rank, select, sum (assumed)."""
_RESIDENT_PART = 0.8
_L2, _LAST_LEVEL, _HBM = 0.0, 1.0, 2.0


class MoeDims(Protocol):
    """What is read of a MoE problem."""

    @property
    def batch(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def inter(self) -> int: ...


def gate_up_shape(problem: MoeDims) -> GemmShape:
    """h = silu(gate) * up: two weights of [inter, hidden] per expert."""
    return GemmShape(
        tokens=problem.batch, n=problem.inter, k=problem.hidden, dtype=problem.dtype, itemsize=problem.itemsize,
        output_itemsize=problem.itemsize, experts=problem.experts, top_k=problem.top_k, weights=2,
    )  # fmt: skip


def down_shape(problem: MoeDims, output_itemsize: int) -> GemmShape:
    """One weight of [hidden, inter] per expert."""
    return GemmShape(
        tokens=problem.batch, n=problem.hidden, k=problem.inter, dtype=problem.dtype, itemsize=problem.itemsize,
        output_itemsize=output_itemsize, experts=problem.experts, top_k=problem.top_k,
    )  # fmt: skip


def grouped_launches(
    problem: MoeDims, device: Device, constants: ModelConstants, columns: Columns, compiled: Compiled
) -> dict[str, Timing]:
    """moe_grouped: count and scatter of the pairs, two GEMMs with one config, sum over each token's experts."""
    config = GemmConfig.of(columns, device)
    rows = len(config.block_m)
    pairs = problem.batch * problem.top_k
    result = {
        "align": stream_timing(8.0 * pairs, _programs(pairs, rows), rows, device, constants),
        "scatter": stream_timing(12.0 * pairs, _programs(pairs, rows), rows, device, constants),
    }
    for name, shape in (("gate_up", gate_up_shape(problem)), ("down", down_shape(problem, problem.itemsize))):
        grid = padded_blocks(shape, config.block_m) * np.ceil(shape.n / config.block_n)
        result[name] = gemm_timing(shape, config, compiled, device, constants, launched=grid)
    summed = (pairs + 2.0 * problem.batch) * problem.hidden * problem.itemsize
    result["sum"] = stream_timing(
        summed, _programs(problem.batch * problem.hidden / 4, rows), rows, device, constants
    )
    return result


def padded_blocks(shape: GemmShape, block_m: Array) -> Array:
    """Row blocks launched when every expert's rows are padded to whole blocks and the routing is not known."""
    padded = shape.rows + shape.experts * (block_m - 1)
    padded = np.where(shape.tokens < block_m, np.minimum(padded, shape.rows * block_m), padded)
    return np.ceil(padded / block_m)


def gate_up_launches(
    problem: MoeDims, device: Device, constants: ModelConstants, columns: Columns, compiled: Compiled
) -> dict[str, Timing]:
    """moe_gate_up: one program per pair and column block, or per expert tile."""
    shape = gate_up_shape(problem)
    expert = _expert_timing(problem, shape, columns, compiled, device, constants)
    pair = _gemv(problem, shape, float(shape.rows), 1, columns, compiled, device, constants)
    return {"gate_up": chosen(_is_expert(columns), expert, pair)}


def down_launches(
    problem: MoeDims, device: Device, constants: ModelConstants, columns: Columns, compiled: Compiled
) -> dict[str, Timing]:
    """moe_down: one program per token and column block, or per expert tile with a sum over each token's experts."""
    token = _gemv(
        problem, down_shape(problem, problem.itemsize), float(problem.batch), problem.top_k, columns, compiled,
        device, constants,
    )  # fmt: skip
    expert = _expert_timing(problem, down_shape(problem, 4), columns, compiled, device, constants)
    is_expert = _is_expert(columns)
    rows = len(is_expert)
    summed = problem.batch * problem.hidden * (4.0 * problem.top_k + 2.0 * problem.itemsize)
    total = stream_timing(
        summed, _programs(problem.batch * problem.hidden / 2, rows), rows, device, constants
    )
    return {"down": chosen(is_expert, expert, token), "sum": chosen(is_expert, total, nothing(rows))}


def nothing(rows: int) -> Timing:
    """A launch that a config does not need."""
    zeros = np.zeros(rows)
    return Timing(*(zeros for _ in range(12)))


def _is_expert(columns: Columns) -> Array:
    return np.asarray(np.asarray(columns["FORM"]) == "expert", np.float64)


def _programs(elements: float, rows: int) -> Array:
    """A helper kernel's grid: about 256 elements per program."""
    return np.full(rows, max(1.0, np.ceil(elements / 256)))


def _expert_timing(
    problem: MoeDims,
    shape: GemmShape,
    columns: Columns,
    compiled: Compiled,
    device: Device,
    constants: ModelConstants,
) -> Timing:
    """The expert-tile form: every program finds its expert's rows among all pairs, those without rows exit."""
    config = GemmConfig.of({**columns, "GROUP_M": _blocks_of_an_expert(columns, problem)}, device)
    grid = problem.experts * np.ceil(problem.batch / config.block_m) * np.ceil(shape.n / config.block_n)
    instructions = shape.rows * config.block_m * _SEARCH_INSTRUCTIONS / (device.arch.wave_size * config.warps)
    clk_each = 4.0 if device.arch.is_amd else 1.0
    search = instructions * np.ceil(config.warps / 4) * clk_each / (constants.clk_ghz * 1e3)
    search = search + 2 * constants.l2_ns * 1e-3
    return gemm_timing(shape, config, compiled, device, constants, launched=grid, setup_us=search)


def _blocks_of_an_expert(columns: Columns, problem: MoeDims) -> Array:
    """Row blocks of one expert that run side by side: all of them when rows are the fastest axis of the grid."""
    block_m = np.maximum(column(columns, "BLOCK_M", 16), 16)
    rows_fastest = np.asarray(columns["ORDER"]) == "rows"
    return np.where(rows_fastest, np.ceil(problem.batch / block_m), 1.0)


def _gemv(
    problem: MoeDims,
    shape: GemmShape,
    units: float,
    parts: int,
    columns: Columns,
    compiled: Compiled,
    device: Device,
    constants: ModelConstants,
) -> Timing:
    active = row_blocks(problem.batch, problem.experts, problem.top_k, 16).active
    weight_bytes = active * shape.weights * shape.n * shape.k * shape.itemsize
    gemv = GemvShape(
        n=shape.n, k=shape.k, parts=parts, weights=shape.weights, itemsize=shape.itemsize, weight_bytes=weight_bytes,
        input_bytes=float(shape.rows * shape.k * shape.itemsize if parts > 1 else problem.batch * shape.k * shape.itemsize),
        output_bytes=float((problem.batch if parts > 1 else shape.rows) * shape.n * shape.output_itemsize),
    )  # fmt: skip
    block_n, block_k = column(columns, "BLOCK_N", 8), column(columns, "BLOCK_K", 512)
    ones = np.ones(len(block_n))
    # Programs that use the same expert run side by side when rows are the fastest axis, and share an L2 when all
    # programs do or the order is remapped; otherwise a weight is read again much later.
    side_by_side = np.asarray(columns["ORDER"]) == "rows"
    one_l2 = (column(columns, "XCD_REMAP", 0) > 0) | (device.xcds == 1)
    stays = weight_bytes < _RESIDENT_PART * device.last_level_bytes
    far = _LAST_LEVEL if stays else _HBM
    again = np.where(side_by_side, np.where(one_l2, _L2, _LAST_LEVEL), far)
    return gemv_timing(
        gemv, units * ones, ones, again, (block_n, block_k, shape.output_itemsize * ones), ones,
        column(columns, "num_warps", 4), compiled, device, constants,
    )  # fmt: skip
