"""Search space of moe_grouped, the whole mixture-of-experts layer for many tokens; the parameters are those of vLLM's
`fused_moe`, one config for both of its GEMMs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .arch import Device
from .config import Config, Value
from .moe import ID_BYTES, MoeProblem
from .space import Choices, Columns, Constraint, Mask, SearchSpace, vendor_knobs
from .work import Work

MIN_BLOCK_M = 16
MIN_BLOCK_N = 32
MIN_BLOCK_K = 32
MAX_ROW_BLOCKS_PER_EXPERT = 4
"""Row blocks of an expert re-read its weights from the L2, so many small ones lose to fewer large ones."""
MAX_PADDING_FACTOR = 4
MAX_ACCUMULATORS_PER_THREAD = 128
"""gate and up tile together; half of a thread's registers on NVIDIA, and room for two waves per SIMD on CDNA."""
NVIDIA_REGISTERS = 192
CDNA_REGISTER_SHARE = 0.625
"""Accumulators plus one step's tiles, per thread: beyond this nearly all configs compiled for sm_90, gfx942 spilled."""
SIMDS = 4
"""SIMDs of a compute unit, over which a program's waves are spread."""
MAX_FMA_PER_THREAD = 4096
"""fp32 without matrix units: the multiply-adds of one step, which Triton unrolls."""
LOAD_BYTES = 16


def _power_above(size: float) -> int:
    """The smallest power of two >= size."""
    return 1 << max(0, int(np.ceil(np.log2(size))))


def rows_per_expert(problem: MoeProblem) -> float:
    """Mean rows of an expert that has any, under uniform routing."""
    return problem.pairs / problem.distinct_experts


def _choices(problem: MoeProblem, device: Device) -> Choices:
    result: Choices = {
        "BLOCK_M": (16, 32, 64, 128, 256),
        "BLOCK_N": (32, 64, 128, 256),
        "BLOCK_K": (32, 64, 128, 256),
        "GROUP_M": (1, 4, 8, 16, 32),
        "num_warps": (2, 4, 8),
        "num_stages": (1, 2) if device.arch.is_amd else (2, 3, 4, 5),
    }
    if device.xcds > 1:
        result["XCD_REMAP"] = (0, 1)
    return {**result, **vendor_knobs(device, has_dot=True)}


def _threads(columns: Columns, device: Device) -> npt.NDArray[np.int64]:
    return np.asarray(columns["num_warps"] * device.arch.wave_size, np.int64)


def _accumulators(columns: Columns, device: Device) -> npt.NDArray[np.float64]:
    return np.asarray(2 * columns["BLOCK_M"] * columns["BLOCK_N"] / _threads(columns, device), np.float64)


def _little_padding(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    largest = max(MIN_BLOCK_M, MAX_PADDING_FACTOR * _power_above(rows_per_expert(problem)) // 2)
    return np.asarray(columns["BLOCK_M"] <= largest, np.bool_)


def _few_row_blocks(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    smallest = min(64, rows_per_expert(problem) / MAX_ROW_BLOCKS_PER_EXPERT)
    return np.asarray(columns["BLOCK_M"] >= smallest, np.bool_)


def _no_wider_than_weights(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    depth = _power_above(min(problem.hidden, problem.inter))
    fits = columns["BLOCK_N"] <= max(MIN_BLOCK_N, _power_above(problem.inter))
    return np.asarray(fits & (columns["BLOCK_K"] <= max(MIN_BLOCK_K, depth)), np.bool_)


def _wide_loads(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    tile_bytes = columns["BLOCK_N"] * columns["BLOCK_K"] * problem.itemsize
    return np.asarray(tile_bytes >= LOAD_BYTES * _threads(columns, device), np.bool_)


def _wide_instruction(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    width = columns.get("matrix_instr_nonkdim", np.full(len(columns["BLOCK_M"]), 16))
    return np.asarray((columns["BLOCK_M"] >= width) & (columns["BLOCK_N"] >= width), np.bool_)


def _busy_warps(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    # One matrix instruction makes 16 x 16 or 32 x 32 outputs on CDNA, 16 x 8 on NVIDIA.
    each = columns["matrix_instr_nonkdim"] ** 2 if "matrix_instr_nonkdim" in columns else 128
    return np.asarray(columns["BLOCK_M"] * columns["BLOCK_N"] >= each * columns["num_warps"], np.bool_)


def _small_accumulators(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    return np.asarray(_accumulators(columns, device) <= MAX_ACCUMULATORS_PER_THREAD, np.bool_)


def _registers_fit(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    threads = _threads(columns, device)
    tile_bytes = (columns["BLOCK_M"] + 2 * columns["BLOCK_N"]) * columns["BLOCK_K"] * problem.itemsize
    demand = _accumulators(columns, device) + tile_bytes / 4 / threads
    if not device.arch.is_amd:
        return np.asarray(demand <= NVIDIA_REGISTERS, np.bool_)
    waves = np.maximum(columns["waves_per_eu"], np.ceil(columns["num_warps"] / SIMDS))
    return np.asarray(demand * waves <= CDNA_REGISTER_SHARE * device.arch.registers_per_lane, np.bool_)


def _waves_of_one_program(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    waves = columns.get("waves_per_eu", np.zeros(len(columns["BLOCK_M"]), np.int64))
    return np.asarray((waves == 0) | (SIMDS * waves >= columns["num_warps"]), np.bool_)


def _shared_weights(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    return np.asarray((columns["GROUP_M"] == 1) | (columns["BLOCK_M"] < rows_per_expert(problem)), np.bool_)


def _group_needed(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    blocks = np.ceil(rows_per_expert(problem) / columns["BLOCK_M"])
    return np.asarray((columns["GROUP_M"] <= 4) | (columns["GROUP_M"] <= 4 * blocks), np.bool_)


def _short_fma_code(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    if problem.dtype != "fp32" or device.arch.is_amd:
        return np.ones(len(columns["BLOCK_M"]), np.bool_)
    return np.asarray(_accumulators(columns, device) * columns["BLOCK_K"] <= MAX_FMA_PER_THREAD, np.bool_)


CONSTRAINTS = (
    Constraint("BLOCK_M must not be mostly padding at the mean number of rows per expert", _little_padding),
    Constraint(
        f"an expert's mean rows must fit {MAX_ROW_BLOCKS_PER_EXPERT} blocks, or BLOCK_M be 64 (weights are re-read)",
        _few_row_blocks,
    ),
    Constraint("BLOCK_N and BLOCK_K must not pass the power of two above the weights", _no_wider_than_weights),
    Constraint("a weight tile must give every thread a load of 16 bytes", _wide_loads),
    Constraint("blocks must hold the matrix instruction, matrix_instr_nonkdim wide", _wide_instruction),
    Constraint("no two warps may compute the same output", _busy_warps),
    Constraint(
        f"a thread holds at most {MAX_ACCUMULATORS_PER_THREAD} accumulators of gate and up", _small_accumulators
    ),
    Constraint("accumulators and one step's tiles must fit the registers of a thread", _registers_fit),
    Constraint(
        f"waves_per_eu must hold the waves of one program, num_warps / {SIMDS} on each SIMD", _waves_of_one_program
    ),
    Constraint("GROUP_M shares weights among an expert's row blocks: 1 where its mean rows fit one", _shared_weights),
    Constraint("GROUP_M must not reach over the row blocks of more than four experts", _group_needed),
    Constraint(
        f"fp32 has no matrix units on NVIDIA: at most {MAX_FMA_PER_THREAD} unrolled multiply-adds", _short_fma_code
    ),
)


def moe_grouped_work(problem: MoeProblem) -> Work:
    """Three matrices of every touched expert once, x, out, ids and weights once; 6 flops a pair and weight."""
    weights = problem.distinct_experts * 3 * problem.inter * problem.hidden
    activations = 2 * problem.batch * problem.hidden
    flops = 6.0 * problem.pairs * problem.inter * problem.hidden
    return Work(flops, (weights + activations + problem.pairs) * problem.itemsize + ID_BYTES * problem.pairs)


def _default(problem: MoeProblem, device: Device) -> Config:
    """Blocks of the mean rows per expert; a deep step while weights stream, a square tile when there are many rows."""
    rows = rows_per_expert(problem)
    block_m = max(MIN_BLOCK_M, min(128, _power_above(rows)))
    is_wide = block_m >= 64
    step_bytes = 128 if is_wide else 256
    block_k = min(step_bytes // problem.itemsize, _power_above(min(problem.hidden, problem.inter)))
    config: dict[str, Value] = {
        "BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": max(MIN_BLOCK_K, block_k),
        "GROUP_M": 8 if rows > 2 * block_m else 1,
        "num_warps": 8 if block_m == 128 and not device.arch.is_amd else 4,
        "num_stages": 2 if device.arch.is_amd else 3,
    }  # fmt: skip
    if problem.dtype == "fp32" and not device.arch.is_amd:
        config |= {"BLOCK_M": min(64, block_m), "BLOCK_N": 32, "BLOCK_K": 32}
    if device.xcds > 1:
        config["XCD_REMAP"] = 1 if is_wide else 0
    for name, values in vendor_knobs(device, has_dot=True).items():
        config[name] = values[0]
    return Config(config)


MOE_GROUPED = SearchSpace(
    kernel="moe_grouped", problem_type=MoeProblem, choices=_choices, constraints=CONSTRAINTS, default=_default,
    work=moe_grouped_work,
)  # fmt: skip
