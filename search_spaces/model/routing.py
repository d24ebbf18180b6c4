"""How many rows each expert gets under uniform routing, and how many row blocks that makes (term A1)."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

_EXACT_BELOW = 5000
"""Tokens from which a normal law replaces the binomial, whose table grows with the tokens."""


class RowBlocks(NamedTuple):
    """Expectations over uniform routing of `tokens` to `top_k` of `experts`, in blocks of `block_m` rows."""

    blocks: float
    active: float
    """Experts with at least one row."""
    useful_rows: float
    """Rows of a block that hold a token."""


@functools.lru_cache(maxsize=4096)
def row_blocks(tokens: int, experts: int, top_k: int, block_m: int) -> RowBlocks:
    """Rows per expert follow Binomial(tokens, top_k / experts); a plain GEMM is one expert with top_k 1."""
    share = top_k / experts
    if share >= 1.0:
        per_expert = float(-(-tokens // block_m))
        active = float(experts)
    else:
        per_expert = _exact(tokens, share, block_m) if tokens < _EXACT_BELOW else _normal(tokens, share, block_m)
        active = experts * -math.expm1(tokens * math.log1p(-share))
    blocks = experts * per_expert
    return RowBlocks(blocks, active, min(block_m, tokens * top_k / max(blocks, 1e-9)))


def _exact(tokens: int, share: float, block_m: int) -> float:
    counts = np.arange(tokens + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, tokens + 1)))))
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    probability = np.exp(log_choose + counts * math.log(share) + (tokens - counts) * math.log1p(-share))
    return float((probability * np.ceil(counts / block_m)).sum())


def _normal(tokens: int, share: float, block_m: int) -> float:
    """E ceil(X / b) = sum over j >= 0 of P(X > j b), each by the normal law with continuity correction."""
    mean = tokens * share
    deviation = math.sqrt(mean * (1.0 - share))
    expected = 0.0
    for block in range(math.ceil(min(tokens, mean + 10.0 * deviation) / block_m)):
        expected += 0.5 * math.erfc((block * block_m + 0.5 - mean) / (deviation * math.sqrt(2.0)))
    return expected
