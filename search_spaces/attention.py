"""Attention problems: one new token against a KV cache (decode), and a causal prompt (prefill)."""

from __future__ import annotations

from dataclasses import dataclass

from .problem import InvalidProblem, Problem


@dataclass(frozen=True, kw_only=True)
class _AttentionProblem(Problem):
    q_heads: int
    kv_heads: int
    head_dim: int
    window: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_heads < 1 or self.q_heads % self.kv_heads:
            raise InvalidProblem(f"q_heads={self.q_heads} is no multiple of kv_heads={self.kv_heads}")


@dataclass(frozen=True, kw_only=True)
class AttentionDecodeProblem(_AttentionProblem):
    """`batch` sequences, one query token each, `context` cached tokens; window 0 = all of them are seen."""

    context: int


@dataclass(frozen=True, kw_only=True)
class AttentionDecodeFusedProblem(AttentionDecodeProblem):
    """Decode attention with RoPE, KV write and (qk_norm = 1) RMSNorm of each q and k head inside the kernel."""

    qk_norm: int


@dataclass(frozen=True, kw_only=True)
class AttentionPrefillProblem(_AttentionProblem):
    """Causal attention of one prompt of `batch` tokens; window 0 = no sliding window."""
