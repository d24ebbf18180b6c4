"""The router: softmax over expert logits, top-k, optional renormalisation; its problem and its search space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arch import Device
from .config import Config
from .problem import InvalidProblem, Problem
from .space import Choices, Columns, Constraint, Mask, SearchSpace
from .work import Work


@dataclass(frozen=True, kw_only=True)
class RouterProblem(Problem):
    """Logits [batch, experts] -> weights and ids [batch, top_k]; renormalize = 1 makes the weights sum to 1."""

    experts: int
    top_k: int
    renormalize: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.top_k <= self.experts:
            raise InvalidProblem(f"top_k={self.top_k} is outside 1..experts={self.experts}")


BLOCK_CHOICES = (1, 2, 4, 8, 16, 32)
WARP_CHOICES = (1, 2, 4, 8)
MAX_LOGITS_PER_THREAD = 32


def _row_width(problem: RouterProblem) -> int:
    """A row of logits in registers: the power of two above the number of experts."""
    return 1 << (problem.experts - 1).bit_length()


def _choices(problem: RouterProblem, device: Device) -> Choices:
    """No vendor knob: a few logits per thread leave the registers far below where they limit occupancy."""
    return {"BLOCK_T": BLOCK_CHOICES, "num_warps": WARP_CHOICES}


def _tokens_needed(columns: Columns, problem: RouterProblem, device: Device) -> Mask:
    return np.asarray((columns["BLOCK_T"] == 1) | (columns["BLOCK_T"] < 2 * problem.batch), np.bool_)


def _threads_busy(columns: Columns, problem: RouterProblem, device: Device) -> Mask:
    threads = columns["num_warps"] * device.arch.wave_size
    return np.asarray((columns["num_warps"] == 1) | (columns["BLOCK_T"] * _row_width(problem) >= threads), np.bool_)


def _registers_fit(columns: Columns, problem: RouterProblem, device: Device) -> Mask:
    threads = columns["num_warps"] * device.arch.wave_size
    logits = columns["BLOCK_T"] * _row_width(problem)
    return np.asarray((logits <= MAX_LOGITS_PER_THREAD * threads) | (columns["BLOCK_T"] == 1), np.bool_)


CONSTRAINTS = (
    Constraint("BLOCK_T must not pass the tokens by a power of two or more", _tokens_needed),
    Constraint("every thread must have a logit of its own", _threads_busy),
    Constraint(f"a thread must not hold more than {MAX_LOGITS_PER_THREAD} logits", _registers_fit),
)


def _default(problem: RouterProblem, device: Device) -> Config:
    """A token per warp, so that its maximum needs no other warp, and up to four tokens per program."""
    tokens = min(4, 1 << (problem.batch - 1).bit_length())
    if tokens * _row_width(problem) < tokens * device.arch.wave_size:
        return Config.of(BLOCK_T=tokens, num_warps=1)
    return Config.of(BLOCK_T=tokens, num_warps=tokens)


def router_work(problem: RouterProblem) -> Work:
    """Logits in, weights and int64 ids out; exp and sum of every logit, and top_k passes for the maximum."""
    logits = problem.batch * problem.experts
    flops = float(logits * (4 + problem.top_k))
    return Work(flops, float(logits * problem.itemsize + (problem.itemsize + 8) * problem.batch * problem.top_k))


ROUTER = SearchSpace(
    kernel="router", problem_type=RouterProblem, choices=_choices, constraints=CONSTRAINTS, default=_default,
    work=router_work,
)  # fmt: skip
