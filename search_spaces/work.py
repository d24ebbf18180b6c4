"""Work: the least a problem has to compute and move, stated once and read by model, roofline and report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes that must cross device memory at least once."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Flops per byte."""
        return self.flops / self.bytes
