"""RMSNorm problem, with or without the residual add."""

from __future__ import annotations

from dataclasses import dataclass

from .problem import Problem


@dataclass(frozen=True, kw_only=True)
class NormProblem(Problem):
    """RMSNorm of [batch, hidden]; the kernel's name says whether a residual is added first."""

    hidden: int
