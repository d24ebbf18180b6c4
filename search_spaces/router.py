"""Router problem: softmax over expert logits, top-k, optional renormalisation."""

from __future__ import annotations

from dataclasses import dataclass

from .problem import InvalidProblem, Problem


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
