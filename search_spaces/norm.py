"""RMSNorm, with or without the residual add: its problem and its search space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arch import Device
from .config import Config
from .problem import Problem
from .space import Choices, Columns, Constraint, Mask, SearchSpace
from .work import Work

BLOCK_CHOICES = (512, 1024, 2048, 4096, 8192, 16384)
WARP_CHOICES = (1, 2, 4, 8, 16)
VECTOR_BYTES = 16
MAX_ELEMENTS_PER_THREAD = 64


@dataclass(frozen=True, kw_only=True)
class NormProblem(Problem):
    """RMSNorm of [batch, hidden]; the kernel's name says whether a residual is added first."""

    hidden: int


def _choices(problem: NormProblem, device: Device) -> Choices:
    """No vendor knob: one row per program leaves the registers far below where they limit occupancy."""
    return {"BLOCK_H": BLOCK_CHOICES, "num_warps": WARP_CHOICES}


def _block_needed(columns: Columns, problem: NormProblem, device: Device) -> Mask:
    block = columns["BLOCK_H"]
    return np.asarray((block == BLOCK_CHOICES[0]) | (block < 2 * problem.hidden), np.bool_)


def _loads_are_wide(columns: Columns, problem: NormProblem, device: Device) -> Mask:
    threads = columns["num_warps"] * device.arch.wave_size
    return np.asarray(columns["BLOCK_H"] * problem.itemsize >= VECTOR_BYTES * threads, np.bool_)


def _registers_fit(columns: Columns, problem: NormProblem, device: Device) -> Mask:
    threads = columns["num_warps"] * device.arch.wave_size
    return np.asarray(columns["BLOCK_H"] <= MAX_ELEMENTS_PER_THREAD * threads, np.bool_)


CONSTRAINTS = (
    Constraint("a block of columns must not pass the row by a power of two or more", _block_needed),
    Constraint("each thread must have at least one 16-byte load of a step", _loads_are_wide),
    Constraint(f"a thread must not hold more than {MAX_ELEMENTS_PER_THREAD} elements of a step", _registers_fit),
)


def _default(problem: NormProblem, device: Device) -> Config:
    """The whole row in one step up to 8192 columns, and one 16-byte load per thread up to 8 warps."""
    block = BLOCK_CHOICES[0]
    while block < min(problem.hidden, 8192):
        block *= 2
    warps = block * problem.itemsize // (VECTOR_BYTES * device.arch.wave_size)
    return Config.of(BLOCK_H=block, num_warps=max(1, min(warps, 8)))


def _rms_norm_work(problem: NormProblem) -> Work:
    return _work(problem, activations=2)


def _add_rms_norm_work(problem: NormProblem) -> Work:
    return _work(problem, activations=4)


def _work(problem: NormProblem, *, activations: int) -> Work:
    """x (and residual) in, y (and new residual) out, the weight once; 4 flops an element, 5 with the add."""
    elements = problem.batch * problem.hidden
    flops_per_element = 3 + activations // 2
    return Work(
        flops=float(flops_per_element * elements),
        bytes=float(problem.itemsize * (activations * elements + problem.hidden)),
    )


def _space(kernel: str, work: Any) -> SearchSpace:
    return SearchSpace(
        kernel=kernel,
        problem_type=NormProblem,
        choices=_choices,
        constraints=CONSTRAINTS,
        default=_default,
        work=work,
    )


RMS_NORM = _space("rms_norm", _rms_norm_work)
ADD_RMS_NORM = _space("add_rms_norm", _add_rms_norm_work)
