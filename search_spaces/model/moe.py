"""Modelled launches of the MoE kernels: grouped GEMM for prefill, GEMV and expert tiles for decode."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from .closed_form import Array, Columns
from .compiled import Candidates
from .gemm import GemmConfig, GemmShape, gemm_timing
from .gemv import HBM, L2, LAST_LEVEL, GemvConfig, GemvShape, gemv_timing
from .physics import Timing, chosen, nothing, stream_timing
from .routing import row_blocks

_SEARCH_INSTRUCTIONS = 6.0
"""Vector instructions per (pair, row) of an expert tile's row search: compare, rank, select, sum (assumed)."""
_ELEMENTS_PER_PROGRAM = 1024
"""Of the helper kernels: sort of the pairs, sum over a token's experts."""
_RESIDENT_PART = 0.8


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
        tokens=problem.batch, n=problem.inter, k=problem.hidden, dtype=problem.dtype,
        itemsize=problem.itemsize,
        output_itemsize=problem.itemsize, experts=problem.experts, top_k=problem.top_k, weights=2,
    )  # fmt: skip


def down_shape(problem: MoeDims, output_itemsize: int) -> GemmShape:
    """One weight of [hidden, inter] per expert."""
    return GemmShape(
        tokens=problem.batch, n=problem.hidden, k=problem.inter, dtype=problem.dtype,
        itemsize=problem.itemsize,
        output_itemsize=output_itemsize, experts=problem.experts, top_k=problem.top_k,
    )  # fmt: skip


def grouped_launches(problem: MoeDims, case: Candidates) -> dict[str, Timing]:
    """moe_grouped: count and scatter of the pairs, two GEMMs with one config, sum over each token's experts."""
    config = GemmConfig.of(case)
    pairs = problem.batch * problem.top_k
    result = {
        "count": stream_timing(4.0 * pairs, pairs / _ELEMENTS_PER_PROGRAM, case),
        "scatter": stream_timing(12.0 * pairs, pairs / _ELEMENTS_PER_PROGRAM, case),
    }
    for name, shape in grouped_shapes(problem).items():
        grid = padded_blocks(shape, config.block_m) * np.ceil(shape.n / config.block_n)
        result[name] = gemm_timing(shape, config, case, launched=grid)
    result["sum"] = _sum_of_choices(problem, problem.itemsize, case)
    return result


def grouped_shapes(problem: MoeDims) -> dict[str, GemmShape]:
    """The two GEMMs of moe_grouped, which loads its weights as [BLOCK_K, BLOCK_N]."""
    shapes = {"gate_up": gate_up_shape(problem), "down": down_shape(problem, problem.itemsize)}
    return {name: replace(shape, loads_rows=False) for name, shape in shapes.items()}


def padded_blocks(shape: GemmShape, block_m: Array) -> Array:
    """Row blocks launched when the routing is not known: every expert's rows padded to whole blocks."""
    padded = shape.rows + shape.experts * (block_m - 1)
    padded = np.where(shape.tokens < block_m, np.minimum(padded, shape.rows * block_m), padded)
    return np.ceil(padded / block_m)


def gate_up_launches(problem: MoeDims, case: Candidates) -> dict[str, Timing]:
    """moe_gate_up: one program per pair and column block, or per expert tile."""
    shape = gate_up_shape(problem)
    pair = gemv_timing(_gemv_shape(problem, shape, parts=1), _gemv_config(problem, shape, shape.rows, case), case)
    return {"gate_up": chosen(is_expert_form(case.columns), _expert_timing(problem, shape, case), pair)}


def down_launches(problem: MoeDims, case: Candidates) -> dict[str, Timing]:
    """moe_down: one program per token and column block, or per expert tile with a sum over each token's experts."""
    shape = down_shape(problem, problem.itemsize)
    config = _gemv_config(problem, shape, problem.batch, case)
    token = gemv_timing(_gemv_shape(problem, shape, parts=problem.top_k), config, case)
    expert = _expert_timing(problem, down_shape(problem, 4), case)
    is_expert = is_expert_form(case.columns)
    total = _sum_of_choices(problem, 4, case)
    return {"down": chosen(is_expert, expert, token), "sum": chosen(is_expert, total, nothing(case))}


def is_expert_form(columns: Columns) -> Array:
    """1 where a decode config works by expert tiles with tl.dot, 0 where by pair or token without."""
    return np.asarray(np.asarray(columns["FORM"]) == "expert", np.float64)


def _sum_of_choices(problem: MoeDims, itemsize: int, case: Candidates) -> Timing:
    elements = problem.batch * problem.hidden
    moved = elements * (itemsize * problem.top_k + 2.0 * problem.itemsize)
    return stream_timing(moved, elements / _ELEMENTS_PER_PROGRAM, case)


def _expert_timing(problem: MoeDims, shape: GemmShape, case: Candidates) -> Timing:
    """The expert-tile form: a program finds its expert's rows among all pairs, or exits."""
    block_m = np.maximum(case.column("BLOCK_M", 16), 16)
    blocks_of_expert = np.ceil(problem.batch / block_m)
    # All row blocks of an expert run side by side when rows are the fastest axis of the grid.
    config = GemmConfig.of(case, group_m=np.where(_rows_fastest(case), blocks_of_expert, 1.0))
    grid = problem.experts * blocks_of_expert * np.ceil(shape.n / config.block_n)
    arch, constants = case.device.arch, case.constants
    instructions = shape.rows * block_m * _SEARCH_INSTRUCTIONS / (arch.wave_size * config.warps)
    clk = instructions * np.ceil(config.warps / 4) * (4.0 if arch.is_amd else 1.0)
    search_us = clk / (constants.clk_ghz * 1e3) + 2 * constants.l2_ns * 1e-3
    return gemm_timing(shape, config, case, launched=grid, setup_us=search_us)


def _rows_fastest(case: Candidates) -> Array:
    return np.asarray(np.asarray(case.columns["ORDER"]) == "rows", np.float64)


def _gemv_shape(problem: MoeDims, shape: GemmShape, parts: int) -> GemvShape:
    """The GEMV form; with several parts a program sums over them and writes one row per token."""
    rows_in, rows_out = (shape.rows, problem.batch) if parts > 1 else (problem.batch, shape.rows)
    return GemvShape(
        n=shape.n, k=shape.k, parts=parts, weights=shape.weights, itemsize=shape.itemsize,
        weight_bytes=_weight_bytes(problem, shape), input_bytes=float(rows_in * shape.k * shape.itemsize),
        output_bytes=float(rows_out * shape.n * shape.output_itemsize),
    )  # fmt: skip


def _weight_bytes(problem: MoeDims, shape: GemmShape) -> float:
    active = row_blocks(problem.batch, problem.experts, problem.top_k, 16).active
    return active * shape.weights * shape.n * shape.k * shape.itemsize


def _gemv_config(problem: MoeDims, shape: GemmShape, units: int, case: Candidates) -> GemvConfig:
    ones = np.ones(case.rows)
    # Programs that use the same expert run side by side when rows are the fastest axis, and share an L2 when all
    # programs do or the order is remapped; otherwise a weight is read again much later.
    one_l2 = (case.column("XCD_REMAP", 0) > 0) | (case.device.xcds == 1)
    stays = _weight_bytes(problem, shape) < _RESIDENT_PART * case.device.last_level_bytes
    again = np.where(_rows_fastest(case) > 0, np.where(one_l2, L2, LAST_LEVEL), LAST_LEVEL if stays else HBM)
    return GemvConfig(
        units=units * ones, rows=ones, block_n=case.column("BLOCK_N", 8), block_k=case.column("BLOCK_K", 512),
        split_k=ones, warps=case.warps, again=again, output_itemsize=shape.output_itemsize * ones,
    )  # fmt: skip
