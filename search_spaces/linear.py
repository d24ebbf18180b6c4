"""Skinny dense projections: y = x W^T with few rows of x, and their fused forms."""

from __future__ import annotations

from dataclasses import dataclass

from .problem import Problem


@dataclass(frozen=True, kw_only=True)
class LinearProblem(Problem):
    """[batch, k] x [n, k]^T -> [batch, n]; bias and residual are 0 or 1."""

    n: int
    k: int
    bias: int
    residual: int


@dataclass(frozen=True, kw_only=True)
class LinearSiluMulProblem(Problem):
    """silu(x Wg^T) * (x Wu^T): two [n, k] weights -> [batch, n]."""

    n: int
    k: int


@dataclass(frozen=True, kw_only=True)
class LinearQkvProblem(Problem):
    """Three projections of one x: [n_q, k], [n_kv, k], [n_kv, k] -> [batch, n_q + 2 n_kv]."""

    n_q: int
    n_kv: int
    k: int
    bias: int
