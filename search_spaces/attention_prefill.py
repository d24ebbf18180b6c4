"""The search space of prefill attention: causal flash attention of one prompt."""

from __future__ import annotations

import numpy as np

from .arch import Device
from .attention import KEY_BLOCK_FITS, MIN_ROWS, WIDE_LOADS, AttentionPrefillProblem
from .config import Config
from .space import Choices, Columns, Constraint, Mask, SearchSpace, vendor_knobs
from .work import Work

BLOCK_M_CHOICES = (16, 32, 64, 128, 256)
BLOCK_N_CHOICES = (16, 32, 64, 128)
WARP_CHOICES = (1, 2, 4, 8)
MAX_ACCUMULATORS_PER_THREAD = {"amd": 96, "nvidia": 160}
"""Scores and sums; Q and the K and V operands come on top. AMD: 256 x 128 with 8 warps (128 a thread, at most 256
VGPRs) spills 285 on gfx942. NVIDIA: wgmma reads K and V from shared memory."""


def _choices(problem: AttentionPrefillProblem, device: Device) -> Choices:
    """Tile, warps, stages and the vendor's knobs.

    Warp specialisation is left out. The kernel loads through pointers, and Triton 3.7.1 then aborts on sm_90 with 4
    warps ("unsupported load type for producer commit"), ignores the request with 8, and spills on sm_100 (480 bytes
    of stack at 128 x 64 with 4 warps): it would take TMA descriptors.
    """
    stages = (1, 2, 3) if device.arch.is_amd else (1, 2, 3, 4)
    return {
        "BLOCK_M": BLOCK_M_CHOICES,
        "BLOCK_N": BLOCK_N_CHOICES,
        "num_warps": WARP_CHOICES,
        "num_stages": stages,
        **vendor_knobs(device, has_dot=True, limits_registers=False),
    }


def _blocks_fit_prompt(columns: Columns, problem: AttentionPrefillProblem, device: Device) -> Mask:
    fits = np.ones(len(columns["BLOCK_M"]), np.bool_)
    for name in ("BLOCK_M", "BLOCK_N"):
        fits &= (columns[name] == MIN_ROWS) | (columns[name] < 2 * problem.batch)
    return fits


def _warps_have_rows(columns: Columns, problem: AttentionPrefillProblem, device: Device) -> Mask:
    side = columns.get("matrix_instr_nonkdim", MIN_ROWS)
    return np.asarray(columns["BLOCK_M"] >= side * columns["num_warps"], np.bool_)


def _matrix_instruction_fits(columns: Columns, problem: AttentionPrefillProblem, device: Device) -> Mask:
    side = columns.get("matrix_instr_nonkdim", MIN_ROWS)
    return np.asarray((side <= columns["BLOCK_N"]) & (side <= problem.block_d), np.bool_)


def _accumulators_fit(columns: Columns, problem: AttentionPrefillProblem, device: Device) -> Mask:
    threads = columns["num_warps"] * device.arch.wave_size
    elements = columns["BLOCK_M"] * (problem.block_d + columns["BLOCK_N"])
    return np.asarray(elements <= MAX_ACCUMULATORS_PER_THREAD[device.arch.vendor] * threads, np.bool_)


CONSTRAINTS = (
    Constraint("a block must not pass the prompt by a power of two or more", _blocks_fit_prompt),
    Constraint(
        "every warp must own as many rows as its matrix instruction has (the softmax runs along rows)",
        _warps_have_rows,
    ),
    Constraint("the matrix instruction must not be wider than a tile", _matrix_instruction_fits),
    Constraint("a thread must not hold more than 96 (AMD) or 160 (NVIDIA) scores and sums", _accumulators_fit),
    WIDE_LOADS,
    KEY_BLOCK_FITS,
)


def _default(problem: AttentionPrefillProblem, device: Device) -> Config:
    """128 queries; by 32 keys with 4 warps on AMD, by 64 with 8 on NVIDIA. Smaller for short prompts, wide heads.

    128 x 64 with 4 warps needs 296 VGPRs on gfx942 at head_dim 128, one wave per SIMD; 128 x 32 needs 210, two waves.
    """
    row_bytes = problem.block_d * problem.itemsize
    block_m = 128
    while block_m > MIN_ROWS and (block_m >= 2 * problem.batch or block_m * row_bytes > 128 * 256):
        block_m //= 2
    block_n = min(32 if device.arch.is_amd or row_bytes > 256 else 64, block_m)
    warps = max(1, min(4 if device.arch.is_amd else 8, block_m // MIN_ROWS))
    config = Config.of(BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps, num_stages=1)
    if not device.arch.is_amd:
        return config.replace(num_stages=3 if row_bytes <= 256 else 2 if row_bytes <= 512 else 1)
    config = config.replace(waves_per_eu=2, matrix_instr_nonkdim=16)
    return config.replace(kpack=1) if device.arch.allows_kpack else config


def _work(problem: AttentionPrefillProblem) -> Work:
    """q K^T and P V over the seen pairs; q, k and v in, the result out, each once."""
    tokens = problem.batch
    window = min(problem.window or tokens, tokens)
    pairs = window * (window + 1) // 2 + (tokens - window) * window
    elements = 2 * tokens * (problem.q_heads + problem.kv_heads) * problem.head_dim
    return Work(flops=4.0 * pairs * problem.q_heads * problem.head_dim, bytes=float(elements * problem.itemsize))


ATTENTION_PREFILL = SearchSpace(
    kernel="attention_prefill",
    problem_type=AttentionPrefillProblem,
    choices=_choices,
    constraints=CONSTRAINTS,
    default=_default,
    work=_work,
)
