"""QK-norm and rotary position embedding of a step's query and key heads: the problem and its search space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arch import Device
from .config import Config
from .problem import InvalidProblem, Problem
from .space import Choices, Columns, Constraint, Mask, SearchSpace
from .work import Work

BLOCK_CHOICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WARP_CHOICES = (1, 2, 4, 8)
VECTOR_BYTES = 16
MAX_ELEMENTS_PER_THREAD = 16
"""Of one half of the heads; a thread also holds the other half, and cos, sin and the weight of both."""


@dataclass(frozen=True, kw_only=True)
class QkNormRopeProblem(Problem):
    """Heads [batch, q_heads + kv_heads, head_dim]: RMSNorm of each (qk_norm = 1), then RoPE."""

    q_heads: int
    kv_heads: int
    head_dim: int
    qk_norm: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q_heads < 1 or self.kv_heads < 1:
            raise InvalidProblem(f"q_heads={self.q_heads} and kv_heads={self.kv_heads} must be positive")
        if self.qk_norm not in (0, 1):
            raise InvalidProblem(f"qk_norm={self.qk_norm} is neither 0 nor 1")
        if not 8 <= self.head_dim <= 512 or self.head_dim % 8:
            raise InvalidProblem(f"head_dim={self.head_dim} is not a multiple of 8 in 8..512")

    @property
    def half_block(self) -> int:
        """Half of head_dim, rounded up to what a tile can be."""
        return 1 << (self.head_dim // 2 - 1).bit_length()


def _choices(problem: QkNormRopeProblem, device: Device) -> Choices:
    """No vendor knob: the elements of a thread are few, which leaves the registers below where they limit occupancy."""
    return {"BLOCK_H": BLOCK_CHOICES, "num_warps": WARP_CHOICES}


def _heads_needed(columns: Columns, problem: QkNormRopeProblem, device: Device) -> Mask:
    block = columns["BLOCK_H"]
    return np.asarray((block == 1) | (block < 2 * problem.batch * problem.q_heads), np.bool_)


def _loads_are_wide(columns: Columns, problem: QkNormRopeProblem, device: Device) -> Mask:
    threads = columns["num_warps"] * device.arch.wave_size
    half_bytes = columns["BLOCK_H"] * problem.half_block * problem.itemsize
    return np.asarray((columns["num_warps"] == 1) | (half_bytes >= VECTOR_BYTES * threads), np.bool_)


def _registers_fit(columns: Columns, problem: QkNormRopeProblem, device: Device) -> Mask:
    threads = columns["num_warps"] * device.arch.wave_size
    elements = columns["BLOCK_H"] * problem.half_block
    return np.asarray((columns["BLOCK_H"] == 1) | (elements <= MAX_ELEMENTS_PER_THREAD * threads), np.bool_)


CONSTRAINTS = (
    Constraint("BLOCK_H must not pass the heads of all tokens by a power of two or more", _heads_needed),
    Constraint("each thread must have a 16-byte load of half a head, or the program one warp", _loads_are_wide),
    Constraint(f"a thread must not hold more than {MAX_ELEMENTS_PER_THREAD} elements of half a head", _registers_fit),
)


def _default(problem: QkNormRopeProblem, device: Device) -> Config:
    """One 16-byte load of each half per thread; a warp per program until every unit has two, then four."""
    heads_per_warp = max(1, VECTOR_BYTES * device.arch.wave_size // (problem.half_block * problem.itemsize))
    heads = problem.batch * (problem.q_heads + problem.kv_heads)
    warps = 4 if heads > 2 * device.compute_units * heads_per_warp else 1
    return Config.of(BLOCK_H=warps * heads_per_warp, num_warps=warps)


def qk_norm_rope_work(problem: QkNormRopeProblem) -> Work:
    """q and k in and out, cos, sin and the weights once; 3 flops an element, 7 with the norm."""
    elements = problem.batch * (problem.q_heads + problem.kv_heads) * problem.head_dim
    once = 2 * problem.head_dim * (problem.batch + problem.qk_norm)
    return Work(
        flops=float((3 + 4 * problem.qk_norm) * elements), bytes=float(problem.itemsize * (2 * elements + once))
    )


QK_NORM_ROPE = SearchSpace(
    kernel="qk_norm_rope", problem_type=QkNormRopeProblem, choices=_choices, constraints=CONSTRAINTS,
    default=_default, work=qk_norm_rope_work,
)  # fmt: skip
