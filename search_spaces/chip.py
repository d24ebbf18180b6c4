"""What is known of a GPU: `Arch` is the instruction set a compiler targets, `Device` a product with it.

The split matters because one binary for gfx942 runs on an MI300X and on an MI325X, but its time differs: a
stored answer is keyed by both. The catalogue of both is in `devices.py`, the parser that finds one in
`arch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Arch:
    """Facts of one instruction set, true for every product that carries it.

    `registers_per_lane` is what one SIMD (AMD) or SM quarter (NVIDIA) holds for each lane, shared by the
    waves resident there; `registers_per_thread` is the most one thread may use (on CDNA architectural and
    accumulation registers together). `shared_limit_bytes` is the most one program may use: LDS on AMD, opt-in
    shared memory on NVIDIA.
    """

    name: str
    vendor: Literal["amd", "nvidia"]
    wave_size: int
    shared_limit_bytes: int
    registers_per_thread: int
    registers_per_lane: int
    max_waves_per_simd: int
    max_threads_per_program: int
    fp8_dtype: str | None
    """Triton's name of the 8-bit float (4 exponent bits) this arch multiplies natively, None without one."""
    triton_backend: Literal["hip", "cuda"]
    triton_target: str | int
    """The arch as `triton.backends.compiler.GPUTarget` takes it: "gfx942" or 90."""
    has_tma: bool
    has_warp_specialize: bool
    allows_kpack: bool
    """Whether `kpack` changes the code; Triton forces it to 1 on gfx950, NVIDIA has no such option."""
    has_tensor_memory: bool
    sources: Mapping[str, str] = field(hash=False, compare=False)

    @property
    def is_amd(self) -> bool:
        return self.vendor == "amd"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class Device:
    """Published figures of one product as one Triton device sees it (an MI250X is two devices: one GCD each).

    `peak_tflops` holds dense peaks by dtype; a dtype without matrix units there is absent. `sources` says for
    every figure where it was read; "derived" marks arithmetic on published figures and "reported" what the
    driver says.
    """

    name: str
    arch: Arch
    compute_units: int
    xcds: int
    """Compute dies with an L2 of their own; 1 where all compute units share one L2."""
    clock_ghz: float
    """Highest clock at which the matrix peak is quoted, so peak = compute_units x flop/clk x clock_ghz."""
    memory_gib: float
    hbm_gbps: float
    l2_bytes: int
    last_level_bytes: int
    """The cache in front of HBM shared by all compute units: the Infinity Cache (MALL), else the L2."""
    peak_tflops: Mapping[str, float] = field(hash=False)
    sources: Mapping[str, str] = field(hash=False, compare=False)

    @property
    def l2_bytes_per_xcd(self) -> int:
        return self.l2_bytes // self.xcds

    def __str__(self) -> str:
        return f"{self.name} ({self.arch.name})"
