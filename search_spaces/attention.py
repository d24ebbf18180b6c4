"""Attention problems, and the search spaces of decode attention: one query per sequence, a KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arch import Device
from .config import Config
from .problem import InvalidProblem, Problem
from .space import Choices, Columns, Constraint, Mask, SearchSpace, vendor_knobs
from .work import Work

BLOCK_N_CHOICES = (16, 32, 64, 128, 256)
SPLIT_CHOICES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
WARP_CHOICES = (1, 2, 4, 8)
MIN_ROWS = 16
"""Rows of the smallest matrix instruction on both vendors; fewer query heads are padded."""
MAX_PROGRAMS_PER_UNIT = 8
MAX_TILE_ELEMENTS_PER_THREAD = {"amd": 64, "nvidia": 128}
"""Of the largest tile. AMD moves K and V through registers into LDS (gfx950, 128 a thread: 512 VGPRs and spills);
NVIDIA copies them asynchronously (sm_90, 128 a thread: 185 registers)."""
MAX_ACCUMULATORS_PER_THREAD = 128
VECTOR_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class AttentionProblem(Problem):
    """What decode and prefill share: grouped query heads; the sliding window (0 = all earlier tokens)."""

    q_heads: int
    kv_heads: int
    head_dim: int
    window: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_heads < 1 or self.q_heads < 1 or self.q_heads % self.kv_heads:
            raise InvalidProblem(f"q_heads={self.q_heads} is no multiple of kv_heads={self.kv_heads}")
        if not 8 <= self.head_dim <= 512 or self.head_dim % 8:
            raise InvalidProblem(f"head_dim={self.head_dim} is not a multiple of 8 in 8..512")

    @property
    def group(self) -> int:
        """Query heads that share one kv head."""
        return self.q_heads // self.kv_heads

    @property
    def block_d(self) -> int:
        """head_dim rounded up to what a tile can be."""
        return max(MIN_ROWS, 1 << (self.head_dim - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class AttentionDecodeProblem(AttentionProblem):
    """`batch` sequences, one query each; it sees `context` tokens with itself, or the last `window`."""

    context: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 1:
            raise InvalidProblem(f"context={self.context} is not a positive number")

    @property
    def seen(self) -> int:
        """Tokens that one query attends to."""
        return min(self.context, self.window) if self.window else self.context

    @property
    def rows(self) -> int:
        """Rows of the query tile: the group, padded to what the matrix unit takes."""
        return max(MIN_ROWS, 1 << (self.group - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class AttentionDecodeFusedProblem(AttentionDecodeProblem):
    """Decode attention with RoPE, KV write and (qk_norm = 1) RMSNorm of each q and k head inside."""

    qk_norm: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.qk_norm not in (0, 1):
            raise InvalidProblem(f"qk_norm={self.qk_norm} is neither 0 nor 1")


@dataclass(frozen=True, kw_only=True)
class AttentionPrefillProblem(AttentionProblem):
    """Causal attention of one prompt of `batch` tokens; window 0 = no sliding window."""


def _choices(problem: AttentionDecodeProblem, device: Device) -> Choices:
    stages = (1, 2, 3) if device.arch.is_amd else (1, 2, 3, 4, 5)
    return {
        "BLOCK_N": BLOCK_N_CHOICES,
        "SPLITS": SPLIT_CHOICES,
        "num_warps": WARP_CHOICES,
        "num_stages": stages,
        **vendor_knobs(device, has_dot=True),
    }


def _block_fits_context(columns: Columns, problem: AttentionDecodeProblem, device: Device) -> Mask:
    block = columns["BLOCK_N"]
    return np.asarray((block == BLOCK_N_CHOICES[0]) | (block < 2 * problem.seen), np.bool_)


def _splits_have_blocks(columns: Columns, problem: AttentionDecodeProblem, device: Device) -> Mask:
    return np.asarray((columns["SPLITS"] - 1) * columns["BLOCK_N"] < problem.seen, np.bool_)


def _programs_are_few(columns: Columns, problem: AttentionDecodeProblem, device: Device) -> Mask:
    splits = columns["SPLITS"]
    programs = splits * problem.kv_heads * problem.batch
    return np.asarray((splits == 1) | (programs <= MAX_PROGRAMS_PER_UNIT * device.compute_units), np.bool_)


def loads_are_wide(columns: Columns, problem: AttentionProblem, device: Device) -> Mask:
    """One 16-byte load of a K block, or more, for each thread."""
    threads = columns["num_warps"] * device.arch.wave_size
    block_bytes = columns["BLOCK_N"] * problem.block_d * problem.itemsize
    return np.asarray(block_bytes >= VECTOR_BYTES * threads, np.bool_)


def key_block_fits(columns: Columns, problem: AttentionProblem, device: Device) -> Mask:
    """A K or V block spread over the threads stays below the vendor's limit."""
    threads = columns["num_warps"] * device.arch.wave_size
    limit = MAX_TILE_ELEMENTS_PER_THREAD[device.arch.vendor]
    return np.asarray(columns["BLOCK_N"] * problem.block_d <= limit * threads, np.bool_)


def _accumulators_fit(columns: Columns, problem: AttentionDecodeProblem, device: Device) -> Mask:
    threads = columns["num_warps"] * device.arch.wave_size
    block = columns["BLOCK_N"]
    elements = problem.rows * (block + problem.block_d)
    return np.asarray(elements <= MAX_ACCUMULATORS_PER_THREAD * threads, np.bool_)


def _matrix_instruction_fits(columns: Columns, problem: AttentionDecodeProblem, device: Device) -> Mask:
    if "matrix_instr_nonkdim" not in columns:
        return np.ones(len(columns["BLOCK_N"]), np.bool_)
    side = columns["matrix_instr_nonkdim"]
    return np.asarray((side <= problem.rows) & (side <= columns["BLOCK_N"]) & (side <= problem.block_d), np.bool_)


WIDE_LOADS = Constraint("each thread must have at least one 16-byte load of a K block", loads_are_wide)
KEY_BLOCK_FITS = Constraint("a thread must not hold more than 64 (AMD) or 128 (NVIDIA) elements of K", key_block_fits)

CONSTRAINTS = (
    Constraint("a block of tokens must not pass the tokens seen by a power of two or more", _block_fits_context),
    Constraint("every split must have a block of tokens at the problem's context", _splits_have_blocks),
    Constraint(
        f"splits must not start more than {MAX_PROGRAMS_PER_UNIT} programs per compute unit",
        _programs_are_few,
    ),
    WIDE_LOADS,
    KEY_BLOCK_FITS,
    Constraint(f"a thread must not hold more than {MAX_ACCUMULATORS_PER_THREAD} scores and sums", _accumulators_fit),
    Constraint("the matrix instruction must not be larger than the query tile", _matrix_instruction_fits),
)


def _default(problem: AttentionDecodeProblem, device: Device) -> Config:
    """Blocks of 64 tokens (16 KiB of K); splits for one program per compute unit, each of two blocks or more."""
    row_bytes = problem.block_d * problem.itemsize
    block = 64 if row_bytes <= 256 else 32 if row_bytes <= 512 else 16
    while block > BLOCK_N_CHOICES[0] and block >= 2 * problem.seen:
        block //= 2
    wanted = device.compute_units // (problem.batch * problem.kv_heads)
    useful = max(1, problem.seen // (2 * block))
    splits = max(choice for choice in SPLIT_CHOICES if choice <= max(1, min(wanted, useful)))
    config = Config.of(BLOCK_N=block, SPLITS=splits, num_warps=4, num_stages=2)
    if not device.arch.is_amd:
        return config.replace(num_stages=3, maxnreg=0)
    config = config.replace(waves_per_eu=0, matrix_instr_nonkdim=16)
    return config.replace(kpack=1) if device.arch.allows_kpack else config


def decode_work(problem: AttentionDecodeProblem) -> Work:
    """q K^T and P V for every query head; the seen K and V once, q in, the result out."""
    kv_elements = 2 * problem.batch * problem.kv_heads * problem.seen * problem.head_dim
    q_elements = problem.batch * problem.q_heads * problem.head_dim
    return Work(
        flops=4.0 * q_elements * problem.seen,
        bytes=float((kv_elements + 2 * q_elements) * problem.itemsize),
    )


def _fused_work(problem: AttentionDecodeFusedProblem) -> Work:
    """As decode; norm and RoPE are 10 flops an element of q and k; new k and v are read and written once."""
    base = decode_work(problem)
    q_elements = problem.batch * problem.q_heads * problem.head_dim
    k_elements = problem.batch * problem.kv_heads * problem.head_dim
    return Work(
        flops=base.flops + 10.0 * (q_elements + k_elements),
        bytes=base.bytes + 2.0 * k_elements * problem.itemsize,
    )


def _space(kernel: str, problem_type: type[Problem], work: Any) -> SearchSpace:
    return SearchSpace(
        kernel=kernel,
        problem_type=problem_type,
        choices=_choices,
        constraints=CONSTRAINTS,
        default=_default,
        work=work,
    )


ATTENTION_DECODE = _space("attention_decode", AttentionDecodeProblem, decode_work)
ATTENTION_DECODE_FUSED = _space("attention_decode_fused", AttentionDecodeFusedProblem, _fused_work)
