"""Tolerances by element type: one table for the tests and for the check of every measured candidate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """|actual - expected| <= absolute + relative x |expected|, elementwise."""

    relative: float
    absolute: float


# bf16 has 8 bits of mantissa (half an ulp is 2^-9 = 0.2 %), fp16 11 bits, fp32 24 bits. Kernels accumulate in fp32
# and round intermediate activations once, so a few ulps of the output type are allowed; the absolute part covers
# cancellation in sums of values of order 1.
TOLERANCES = {
    "bf16": Tolerance(relative=1.6e-2, absolute=1.6e-2),
    "fp16": Tolerance(relative=2e-3, absolute=2e-3),
    "fp32": Tolerance(relative=2e-5, absolute=2e-5),
}
