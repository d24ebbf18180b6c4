"""Constants of the static model per device, each with its basis and source.

Basis: S published specification; D a published peak times a derating we chose; A our assumption, without a
source. Every D and A is a candidate for a measured value. None is fitted to tuned tables (docs/model.md says
why).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..chip import Device

MODEL_VERSION = "2"
"""Part of every stored estimate: raise it when a formula or a constant changes."""


class Constant(NamedTuple):
    """One value with its basis and where it comes from."""

    value: float
    basis: Literal["S", "D", "A"]
    source: str


@dataclass(frozen=True, kw_only=True)
class ModelConstants:
    """What the formulas need beside the catalogue figures; GB/s equal bytes per ns."""

    clk_ghz: float
    hbm_fraction: float
    """Achievable part of the published HBM bandwidth."""
    last_level_gbps: float
    l2_gbps: float
    hbm_ns: float
    last_level_ns: float
    l2_ns: float
    lds_bytes_per_clk: float
    l1_bytes_per_clk: float
    sync_clk: float
    mma_efficiency: float
    small_mma_efficiency: float
    """Where the fast path of the matrix unit (wgmma) needs more rows than the tile has."""
    inflight_bytes: float
    """Most bytes of loads one compute unit keeps outstanding."""
    max_programs: float
    """Most programs resident on one compute unit."""
    launch_us: float
    program_launch_us: float
    empty_us: float
    """A program that finds no work and exits."""
    prologue_us: float
    epilogue_us: float
    issue_gap: float
    """Issue slots lost per resident wave when few waves are there to fill them."""
    segment_bytes: float
    """DRAM burst lost at each end of a contiguous row segment."""
    basis: Mapping[str, Constant] = field(hash=False, compare=False)


_LOADED = "meant as loaded latency"
_RESIDUAL = "added after residuals were seen, 0 in the first version"
_HEADROOM = "derating of the peak"

_CDNA3: dict[str, Constant] = {
    "clk_ghz": Constant(2.1, "S", "peak engine clock"),
    "hbm_fraction": Constant(4200 / 5300, "D", "0.79 of 5300 GB/s"),
    "last_level_gbps": Constant(10500.0, "D", "0.61 of 17 200 GB/s, the Infinity Cache peak of the CDNA 3 white paper"),
    "l2_gbps": Constant(17000.0, "D", "0.49 of 34 400 GB/s = 8 XCDs x 2 KiB/clk x 2.1 GHz"),
    "hbm_ns": Constant(800.0, "A", _LOADED),
    "last_level_ns": Constant(520.0, "A", _LOADED),
    "l2_ns": Constant(250.0, "A", _LOADED),
    "lds_bytes_per_clk": Constant(128.0, "S", "32 banks x 4 bytes"),
    "l1_bytes_per_clk": Constant(64.0, "A", "the CDNA 2 figure, not confirmed for CDNA 3"),
    "sync_clk": Constant(140.0, "A", "barrier and wait at the end of an iteration"),
    "mma_efficiency": Constant(0.80, "A", _HEADROOM),
    "small_mma_efficiency": Constant(0.80, "A", "no slower path for small tiles on CDNA"),
    "inflight_bytes": Constant(24000.0, "A", "outstanding misses of one compute unit"),
    "max_programs": Constant(16.0, "S", "LLVM AMDGPU usage: workgroups per compute unit with barriers"),
    "launch_us": Constant(3.0, "A", "kernel in a graph, ramp and tail included"),
    "program_launch_us": Constant(0.0006, "A", "dispatcher"),
    "empty_us": Constant(0.9, "A", "load of one index, test, exit"),
    "prologue_us": Constant(1.6, "A", "arguments, addresses, first loads issued"),
    "epilogue_us": Constant(0.8, "A", "last stores"),
    "issue_gap": Constant(0.5, "A", _RESIDUAL),
    "segment_bytes": Constant(64.0, "A", _RESIDUAL),
}
_CDNA4: dict[str, Constant] = {
    **_CDNA3,
    "clk_ghz": Constant(2.4, "S", "peak engine clock of the MI355X"),
    "hbm_fraction": Constant(0.80, "A", "the derating of the MI325X; nothing is known of gfx950"),
    "last_level_gbps": Constant(
        10500.0, "A", "the CDNA 3 value: same size of Infinity Cache, no published bandwidth used"
    ),
    "l2_gbps": Constant(19300.0, "D", "0.49 of 39 300 GB/s = 8 XCDs x 2 KiB/clk x 2.4 GHz"),
    "lds_bytes_per_clk": Constant(128.0, "A", "CDNA 4 white paper: 128 bytes/clk read"),
}
_CDNA2: dict[str, Constant] = {
    **_CDNA3,
    "clk_ghz": Constant(1.7, "S", "peak engine clock"),
    "hbm_fraction": Constant(0.79, "D", "the derating of the MI300X"),
    "last_level_gbps": Constant(3400.0, "D", "no memory-side cache: the L2"),
    "l2_gbps": Constant(3400.0, "D", "0.49 of 6960 GB/s = 32 channels x 128 B/clk x 1.7 GHz (CDNA 2 white paper)"),
    "hbm_ns": Constant(700.0, "A", "one die, no Infinity Fabric between L2 and memory; " + _LOADED),
    "last_level_ns": Constant(250.0, "A", "the L2"),
}
_HOPPER: dict[str, Constant] = {
    "clk_ghz": Constant(1.70, "A", "sustained; the peak figures stand for 1.83"),
    "hbm_fraction": Constant(2900 / 3350, "D", "0.87 of 3350 GB/s"),
    "last_level_gbps": Constant(5500.0, "A", "the L2"),
    "l2_gbps": Constant(5500.0, "A", "read bandwidth of the L2"),
    "hbm_ns": Constant(600.0, "A", _LOADED),
    "last_level_ns": Constant(270.0, "A", "the L2"),
    "l2_ns": Constant(270.0, "A", _LOADED),
    "lds_bytes_per_clk": Constant(128.0, "S", "32 banks x 4 bytes"),
    "l1_bytes_per_clk": Constant(64.0, "A", "L2 to SM"),
    "sync_clk": Constant(60.0, "A", "barrier and wait at the end of an iteration"),
    "mma_efficiency": Constant(0.85, "A", _HEADROOM),
    "small_mma_efficiency": Constant(0.55, "A", "mma.sync instead of wgmma below 64 rows or 4 warps"),
    "inflight_bytes": Constant(64000.0, "A", "outstanding misses of one SM"),
    "max_programs": Constant(32.0, "S", "CUDA guide: thread blocks per SM"),
    "launch_us": Constant(2.5, "A", "kernel in a graph, ramp and tail included"),
    "program_launch_us": Constant(0.0006, "A", "dispatcher"),
    "empty_us": Constant(0.7, "A", "load of one index, test, exit"),
    "prologue_us": Constant(1.2, "A", "arguments, addresses, first loads issued"),
    "epilogue_us": Constant(0.6, "A", "last stores"),
    "issue_gap": Constant(0.15, "A", _RESIDUAL),
    "segment_bytes": Constant(32.0, "A", _RESIDUAL),
}
_AMPERE: dict[str, Constant] = {
    **_HOPPER,
    "clk_ghz": Constant(1.35, "A", "sustained; the peak figures stand for 1.41"),
    "hbm_fraction": Constant(0.87, "D", "the derating of the H100"),
    "last_level_gbps": Constant(4000.0, "A", "the L2"),
    "l2_gbps": Constant(4000.0, "A", "0.55 of 7200 GB/s = 5120 B/clk x 1.41 GHz (A100 white paper)"),
    "mma_efficiency": Constant(0.75, "A", "mma.sync is the only path"),
    "small_mma_efficiency": Constant(0.75, "A", "mma.sync is the only path"),
}
_BLACKWELL: dict[str, Constant] = {
    **_HOPPER,
    "hbm_fraction": Constant(6800 / 7700, "D", "0.88 of 7700 GB/s"),
    "last_level_gbps": Constant(9000.0, "A", "the L2"),
    "l2_gbps": Constant(9000.0, "A", "read bandwidth of the L2"),
}

_BY_ARCH = {
    "gfx942": _CDNA3, "gfx950": _CDNA4, "gfx90a": _CDNA2, "sm_80": _AMPERE, "sm_90": _HOPPER, "sm_100": _BLACKWELL,
}  # fmt: skip
_BY_DEVICE: dict[str, dict[str, Constant]] = {
    "MI300A": {"l2_gbps": Constant(12700.0, "D", "0.49 of 25 800 GB/s = 6 XCDs x 2 KiB/clk x 2.1 GHz")},
    "MI325X": {"hbm_fraction": Constant(0.80, "D", "0.80 of 6000 GB/s")},
    "MI350X": {
        "clk_ghz": Constant(2.2, "S", "peak engine clock"),
        "l2_gbps": Constant(17700.0, "D", "0.49 of 36 000 GB/s = 8 XCDs x 2 KiB/clk x 2.2 GHz"),
    },
    "H200": {"hbm_fraction": Constant(4200 / 4800, "D", "0.875 of 4800 GB/s")},
}


def constants_of(device: Device) -> ModelConstants:
    """The constants of a device; a product without its own takes those of its arch."""
    table = {**_BY_ARCH[device.arch.name], **_BY_DEVICE.get(device.name, {})}
    return ModelConstants(**{name: constant.value for name, constant in table.items()}, basis=table)


def hbm_gbps(device: Device, constants: ModelConstants) -> float:
    """Achievable HBM bandwidth."""
    return device.hbm_gbps * constants.hbm_fraction


def flop_per_clk(device: Device, dtype: str) -> float:
    """Dense matrix flops of one compute unit per clock; without a figure for the dtype, that of fp32."""
    peak = device.peak_tflops.get(dtype, device.peak_tflops["fp32"])
    return peak * 1e3 / (device.compute_units * device.clock_ghz)
