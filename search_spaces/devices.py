"""The catalogue: every known arch and device with its figures and where each was read. Data only.

To add a device, add a `Device` below with a source for every figure (a test holds that) and, for an arch that
is new, an `Arch`; then give it model constants in `search_spaces/model/constants.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from .chip import Arch, Device

KIB, MIB = 1024, 1024 * 1024

ROCM_TABLE = "ROCm documentation, AMD GPU specifications table"
CDNA_ISA = "AMD CDNA ISA guides (CDNA 2, 3, 4): vector registers, waves per SIMD"
TRITON = "Triton 3.7.1: compiler backends for HIP and CUDA"
CUDA_GUIDE = "NVIDIA CUDA C++ Programming Guide, technical specifications per compute capability"
LLVM = "LLVM AMDGPU usage guide: 512 unified VGPRs, allocation granule 8, at most 8 waves per SIMD"


def _amd_arch(name: str, *, lds: int, fp8: str | None, kpack: bool) -> Arch:
    return Arch(
        name=name, vendor="amd", wave_size=64, shared_limit_bytes=lds, registers_per_thread=512,
        registers_per_lane=512, max_waves_per_simd=8, max_threads_per_program=1024, fp8_dtype=fp8,
        triton_backend="hip", triton_target=name, has_tma=False, has_warp_specialize=False,
        allows_kpack=kpack, has_tensor_memory=False,
        sources={
            "wave_size": ROCM_TABLE, "shared_limit_bytes": ROCM_TABLE, "registers_per_thread": LLVM,
            "registers_per_lane": LLVM, "max_waves_per_simd": LLVM, "max_threads_per_program": CDNA_ISA,
            "fp8_dtype": TRITON, "triton_target": TRITON, "has_tma": TRITON, "has_warp_specialize": TRITON,
            "allows_kpack": TRITON, "has_tensor_memory": CDNA_ISA,
        },
    )  # fmt: skip


def _nvidia_arch(capability: int, *, shared: int, fp8: str | None, tma: bool, tensor_memory: bool = False) -> Arch:
    return Arch(
        name=f"sm_{capability}", vendor="nvidia", wave_size=32, shared_limit_bytes=shared,
        registers_per_thread=255, registers_per_lane=512, max_waves_per_simd=16,
        max_threads_per_program=1024, fp8_dtype=fp8,
        triton_backend="cuda", triton_target=capability, has_tma=tma, has_warp_specialize=tma,
        allows_kpack=False, has_tensor_memory=tensor_memory,
        sources={
            "wave_size": CUDA_GUIDE, "shared_limit_bytes": CUDA_GUIDE, "registers_per_thread": CUDA_GUIDE,
            "registers_per_lane": CUDA_GUIDE + "; derived: 65536 per SM / 4 quarters / 32 lanes",
            "max_waves_per_simd": CUDA_GUIDE + "; derived: 64 warps per SM / 4 quarters",
            "max_threads_per_program": CUDA_GUIDE, "fp8_dtype": TRITON, "triton_target": TRITON,
            "has_tma": CUDA_GUIDE,
            "has_warp_specialize": TRITON, "allows_kpack": TRITON, "has_tensor_memory": CUDA_GUIDE,
        },
    )  # fmt: skip


GFX90A = _amd_arch("gfx90a", lds=64 * KIB, fp8=None, kpack=True)
GFX942 = _amd_arch("gfx942", lds=64 * KIB, fp8="fp8e4b8", kpack=True)
GFX950 = _amd_arch("gfx950", lds=160 * KIB, fp8="fp8e4nv", kpack=False)
SM_80 = _nvidia_arch(80, shared=163 * KIB, fp8=None, tma=False)
SM_90 = _nvidia_arch(90, shared=227 * KIB, fp8="fp8e4nv", tma=True)
SM_100 = _nvidia_arch(100, shared=227 * KIB, fp8="fp8e4nv", tma=True, tensor_memory=True)
ARCHS = (GFX942, GFX950, GFX90A, SM_80, SM_90, SM_100)

# The product an arch name alone stands for. gfx942 is the MI300X, the most deployed; gfx950 the MI355X, the
# part AMD publishes its own results on; sm_90 the H100, the most deployed; the others have one product in the
# catalogue.
DEFAULT_DEVICE: Mapping[str, str] = {
    "gfx942": "MI300X", "gfx950": "MI355X", "gfx90a": "MI250X", "sm_80": "A100", "sm_90": "H100",
    "sm_100": "B200",
}  # fmt: skip


def _sources(sheet: str, **other: str) -> dict[str, str]:
    """Source per figure: the product's data sheet unless named otherwise."""
    figures = (
        "compute_units",
        "xcds",
        "clock_ghz",
        "memory_gib",
        "hbm_gbps",
        "l2_bytes",
        "last_level_bytes",
        "peak_tflops",
    )
    return {figure: other.get(figure, sheet) for figure in figures}


MI300X_SHEET = "AMD Instinct MI300X data sheet"
MI300A_SHEET = "AMD Instinct MI300A data sheet"
MI325X_SHEET = "AMD Instinct MI325X data sheet"
MI350X_SHEET = "AMD Instinct MI350X data sheet"
MI355X_SHEET = "AMD Instinct MI355X data sheet"
MI250X_SHEET = "AMD Instinct MI250X data sheet; derived: one of its two GCDs, half of the published module"
A100_SHEET = "NVIDIA A100 80GB data sheet (SXM4)"
H100_SHEET = "NVIDIA H100 data sheet (SXM5), dense = half of the figures with sparsity"
H200_SHEET = "NVIDIA H200 data sheet (SXM5), dense = half of the figures with sparsity"
B200_SHEET = "NVIDIA Blackwell data sheet, HGX B200 column, dense = half of the figures with sparsity"
HOPPER_PAPER = "NVIDIA H100 Tensor Core GPU Architecture white paper"
ONE_L2 = "derived: all compute units share one L2"
L2_IS_LAST = "derived: no memory-side cache, so the L2"

DEVICES = (
    Device(
        name="MI300X", arch=GFX942, compute_units=304, xcds=8, clock_ghz=2.1, memory_gib=192, hbm_gbps=5300.0,
        l2_bytes=32 * MIB, last_level_bytes=256 * MIB,
        peak_tflops={"bf16": 1307.4, "fp16": 1307.4, "fp8": 2614.9, "tf32": 653.7, "fp32": 163.4},
        sources=_sources(MI300X_SHEET, xcds=ROCM_TABLE, l2_bytes=ROCM_TABLE, last_level_bytes=ROCM_TABLE),
    ),
    Device(
        name="MI300A", arch=GFX942, compute_units=228, xcds=6, clock_ghz=2.1, memory_gib=128, hbm_gbps=5300.0,
        l2_bytes=24 * MIB, last_level_bytes=256 * MIB,
        peak_tflops={"bf16": 980.6, "fp16": 980.6, "fp8": 1961.2, "tf32": 490.3, "fp32": 122.6},
        sources=_sources(MI300A_SHEET, xcds=ROCM_TABLE, l2_bytes=ROCM_TABLE, last_level_bytes=ROCM_TABLE),
    ),
    Device(
        name="MI325X", arch=GFX942, compute_units=304, xcds=8, clock_ghz=2.1, memory_gib=256, hbm_gbps=6000.0,
        l2_bytes=32 * MIB, last_level_bytes=256 * MIB,
        peak_tflops={"bf16": 1307.4, "fp16": 1307.4, "fp8": 2614.9, "tf32": 653.7, "fp32": 163.4},
        sources=_sources(MI325X_SHEET, xcds=ROCM_TABLE, l2_bytes=ROCM_TABLE, last_level_bytes=ROCM_TABLE),
    ),
    Device(
        name="MI350X", arch=GFX950, compute_units=256, xcds=8, clock_ghz=2.2, memory_gib=288, hbm_gbps=8000.0,
        l2_bytes=32 * MIB, last_level_bytes=256 * MIB,
        peak_tflops={"bf16": 2306.9, "fp16": 2306.9, "fp8": 4613.7, "fp32": 144.2},
        sources=_sources(MI350X_SHEET, xcds=ROCM_TABLE, l2_bytes=ROCM_TABLE, last_level_bytes=ROCM_TABLE),
    ),
    Device(
        name="MI355X", arch=GFX950, compute_units=256, xcds=8, clock_ghz=2.4, memory_gib=288, hbm_gbps=8000.0,
        l2_bytes=32 * MIB, last_level_bytes=256 * MIB,
        peak_tflops={"bf16": 2516.6, "fp16": 2516.6, "fp8": 5033.2, "fp32": 157.3},
        sources=_sources(MI355X_SHEET, xcds=ROCM_TABLE, l2_bytes=ROCM_TABLE, last_level_bytes=ROCM_TABLE),
    ),
    Device(  # Triton, HIP and rocminfo see an MI250X as two GPUs; this is one of them
        name="MI250X", arch=GFX90A, compute_units=110, xcds=1, clock_ghz=1.7, memory_gib=64, hbm_gbps=1638.4,
        l2_bytes=8 * MIB, last_level_bytes=8 * MIB,
        peak_tflops={"bf16": 191.5, "fp16": 191.5, "fp32": 23.9},
        sources=_sources(MI250X_SHEET, xcds=ONE_L2, l2_bytes=ROCM_TABLE, last_level_bytes=L2_IS_LAST),
    ),
    Device(
        name="A100", arch=SM_80, compute_units=108, xcds=1, clock_ghz=1.41, memory_gib=80, hbm_gbps=2039.0,
        l2_bytes=40 * MIB, last_level_bytes=40 * MIB,
        peak_tflops={"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "fp32": 19.5},
        sources=_sources(
            A100_SHEET, compute_units="NVIDIA A100 Tensor Core GPU Architecture white paper", xcds=ONE_L2,
            clock_ghz="NVIDIA A100 Tensor Core GPU Architecture white paper", last_level_bytes=L2_IS_LAST,
            l2_bytes="NVIDIA A100 Tensor Core GPU Architecture white paper",
        ),
    ),
    Device(
        name="H100", arch=SM_90, compute_units=132, xcds=1, clock_ghz=1.83, memory_gib=80, hbm_gbps=3350.0,
        l2_bytes=50 * MIB, last_level_bytes=50 * MIB,
        peak_tflops={"bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "tf32": 494.7, "fp32": 66.9},
        sources=_sources(
            H100_SHEET, compute_units=HOPPER_PAPER, xcds=ONE_L2, last_level_bytes=L2_IS_LAST,
            l2_bytes=HOPPER_PAPER,
            clock_ghz="derived: 989.4 TFLOP/s / (132 SM x 4096 flop/clk); the boost limit is 1.98 GHz",
        ),
    ),
    Device(
        name="H200", arch=SM_90, compute_units=132, xcds=1, clock_ghz=1.83, memory_gib=141, hbm_gbps=4800.0,
        l2_bytes=50 * MIB, last_level_bytes=50 * MIB,
        peak_tflops={"bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "tf32": 494.7, "fp32": 66.9},
        sources=_sources(
            H200_SHEET, compute_units=HOPPER_PAPER, xcds=ONE_L2, last_level_bytes=L2_IS_LAST,
            l2_bytes=HOPPER_PAPER + " (same die; some H200 drivers report 60 MiB)",
            clock_ghz="derived: 989.4 TFLOP/s / (132 SM x 4096 flop/clk); the boost limit is 1.98 GHz",
        ),
    ),
    Device(
        name="B200", arch=SM_100, compute_units=148, xcds=1, clock_ghz=1.85, memory_gib=180, hbm_gbps=7700.0,
        l2_bytes=126 * MIB, last_level_bytes=126 * MIB,
        peak_tflops={"bf16": 2250.0, "fp16": 2250.0, "fp8": 4500.0, "tf32": 1100.0, "fp32": 75.0},
        sources=_sources(
            B200_SHEET, compute_units="reported: multiProcessorCount of a B200", xcds=ONE_L2,
            l2_bytes="NVIDIA Blackwell Tuning Guide: 126 MB of L2", last_level_bytes=L2_IS_LAST,
            clock_ghz="derived: 2250 TFLOP/s / (148 SM x 8192 flop/clk)",
        ),
    ),
)  # fmt: skip
