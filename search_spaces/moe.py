"""Mixture-of-experts problems: what the decode and prefill expert kernels compute."""

from __future__ import annotations

from dataclasses import dataclass

from .problem import InvalidProblem, Problem


@dataclass(frozen=True, kw_only=True)
class MoeProblem(Problem):
    """`batch` tokens, each to `top_k` of `experts` experts of size hidden -> inter -> hidden (SwiGLU)."""

    experts: int
    top_k: int
    hidden: int
    inter: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.top_k <= self.experts:
            raise InvalidProblem(f"top_k={self.top_k} is outside 1..experts={self.experts}")
