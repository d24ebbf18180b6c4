"""Time of one kernel from what one program does per iteration (terms A3 to A7 of docs/model.md).

Every array has one entry per config. Times are in microseconds, bandwidths in GB/s, latencies in ns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ..chip import Device
from .closed_form import Array, Mask
from .compiled import Candidates
from .constants import ModelConstants, hbm_gbps


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The main loop of a kernel: how many programs run it, how often, and what one iteration asks for.

    Bytes are per program and iteration by where they come from: `hbm_bytes` are first touches,
    `last_level_bytes` were touched before by another part of the chip (Infinity Cache, or L2), `l2_bytes` by
    a neighbour that shares the L2.
    """

    programs: Array
    iterations: Array
    warps: Array
    hbm_bytes: Array
    last_level_bytes: Array
    l2_bytes: Array
    mma_clk: Array
    """Matrix-unit cycles per wave."""
    valu: Array
    """Vector instructions per wave."""
    loads: Array
    """Global load instructions per wave."""
    spills: Array
    lds_bytes: Array
    """Read from shared memory by the whole program."""
    depth: Array
    """Iterations whose loads run ahead of the one computed on; 0 where each iteration waits for its own."""
    latency_ns: Array
    """Mean loaded latency of the loads of one iteration."""
    segment_bytes: Array
    """Contiguous bytes of one row."""
    output_bytes: Array
    """Written by a program at its end."""
    mma_efficiency: Array
    setup_us: Array
    """Spent by a program before its loop, beyond the usual prologue."""
    overlap: Array
    """Waves of a SIMD within one program that may be in different phases; 0 where a barrier keeps them together."""
    has_barrier: bool


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes the whole kernel moves at each level, an array over configs each."""

    hbm: Array
    last_level: Array
    l2: Array


@dataclass(frozen=True)
class Timing:
    """Modelled time of one kernel and its parts, arrays over configs; `total_us` is inf where it cannot
    launch.

    The parts from `matrix_us` to `bandwidth_share_us` are lower bounds of `loop_us` that overlap, not
    summands.
    """

    total_us: Array
    loop_us: Array
    """Programs running in waves over the compute units."""
    traffic_us: Array
    """All bytes of the kernel at the achievable bandwidth of each level."""
    launch_us: Array
    matrix_us: Array
    issue_us: Array
    shared_memory_us: Array
    latency_us: Array
    bandwidth_share_us: Array
    programs: Array
    programs_per_unit: Array
    waves: Array


@dataclass(frozen=True)
class _ProgramTime:
    total: Array
    matrix: Array
    issue: Array
    shared: Array
    latency: Array
    share: Array


def program_us(loop: Loop, resident: Array, running: Array, device: Device, constants: ModelConstants) -> _ProgramTime:
    """Terms A3 and A4: time of a program when `resident` of them share a unit and `running` run in all."""
    amd = device.arch.is_amd
    clk_per_us = constants.clk_ghz * 1e3
    loaded = loop.hbm_bytes + loop.last_level_bytes + loop.l2_bytes
    waves = np.ceil(loop.warps / 4)
    matrix = loop.mma_clk * waves / loop.mma_efficiency
    issue = waves * (
        4.0 * (loop.valu + 4 * loop.loads + 2 * loop.spills) if amd else (loop.valu + 4 * loop.loads + 16 * loop.spills)
    )
    lds = np.where(loop.lds_bytes > 0, (loop.lds_bytes + loaded) / constants.lds_bytes_per_clk, 0.0)
    l1 = loaded / constants.l1_bytes_per_clk
    sync = constants.sync_clk if loop.has_barrier else 0.0
    lds_alone = lds if amd else np.zeros_like(lds)
    overlapped = np.maximum(matrix, issue) + (np.minimum(matrix, issue) + lds_alone) / np.maximum(loop.overlap, 1)
    one_phase = matrix + lds_alone + np.where(matrix > 0, np.minimum(issue, matrix), issue)
    alone = np.where(loop.overlap > 0, overlapped, one_phase) + sync
    shared = np.maximum.reduce([matrix, issue, lds, l1])
    gap = 1 + constants.issue_gap / np.maximum(resident * waves, 1)

    latency = loop.latency_ns * 1e-3
    outstanding = np.minimum(resident * np.maximum(loop.depth, 1) * loaded, constants.inflight_bytes)
    by_latency = resident * loaded * latency / np.maximum(outstanding, 1)
    burst = loop.segment_bytes / (loop.segment_bytes + constants.segment_bytes)
    by_share = (
        running / 1e3
        * (loop.hbm_bytes / burst / hbm_gbps(device, constants) + loop.last_level_bytes / constants.last_level_gbps)
    )  # fmt: skip
    exposed = np.select(
        [loop.depth < 1, loop.depth <= 1],
        [latency + alone / clk_per_us, latency + (lds + sync) / clk_per_us],
        (latency + alone / clk_per_us) / np.maximum(loop.depth, 1),
    )
    iteration = np.maximum.reduce(
        [alone / clk_per_us, resident * shared * gap / clk_per_us, by_latency, by_share, exposed]
    )
    store = loop.output_bytes * resident / constants.l1_bytes_per_clk / clk_per_us
    total = (
        constants.prologue_us + loop.setup_us + latency + loop.iterations * iteration + constants.epilogue_us + store
    )
    times = loop.iterations
    return _ProgramTime(
        total, times * resident * matrix / clk_per_us, times * resident * issue / clk_per_us,
        times * resident * lds / clk_per_us, times * np.maximum(by_latency, exposed), times * by_share,
    )  # fmt: skip


def kernel_timing(loop: Loop, traffic: Traffic, resident: Array, launched: Array, case: Candidates) -> Timing:
    """Terms A5 and A7: whole waves of programs and a last one, at least the traffic, plus the cost of
    launching.

    `resident` is the number of programs one unit holds (0: cannot launch), `launched` the size of the grid,
    of which those beyond `loop.programs` exit at once.
    """
    device, constants = case.device, case.constants
    fits = resident >= 1
    resident = np.maximum(resident, 1)
    units = float(device.compute_units)
    slots = units * resident
    whole = np.floor(loop.programs / slots + 1e-9)
    rest = np.maximum(loop.programs - whole * slots, 0.0)
    full = program_us(loop, resident, slots, device, constants)
    last = program_us(loop, np.maximum(1.0, np.ceil(rest / units)), np.maximum(rest, 1.0), device, constants)
    has_last = rest > 1e-6

    def in_waves(part: str) -> Array:
        remainder = np.where(has_last, np.asarray(getattr(last, part)), 0.0)
        return np.asarray(whole * np.asarray(getattr(full, part)) + remainder, np.float64)

    loop_us = in_waves("total")
    traffic_us = traffic_time_us(loop, traffic, device, constants)
    launch = (
        constants.launch_us + launched * constants.program_launch_us
        + np.maximum(launched - loop.programs, 0.0) * constants.empty_us / slots
    )  # fmt: skip
    total = (loop_us**4 + traffic_us**4) ** 0.25 + launch
    return Timing(
        np.where(fits, total, np.inf), loop_us, traffic_us, launch, in_waves("matrix"), in_waves("issue"),
        in_waves("shared"), in_waves("latency"), in_waves("share"), loop.programs, np.where(fits, resident, 0.0),
        loop.programs / slots,
    )  # fmt: skip


def traffic_time_us(loop: Loop, traffic: Traffic, device: Device, constants: ModelConstants) -> Array:
    """Term A6: the slowest level of the memory system when every byte streams through it."""
    burst = loop.segment_bytes / (loop.segment_bytes + constants.segment_bytes)
    levels = [
        traffic.hbm / burst / hbm_gbps(device, constants),
        traffic.last_level / constants.last_level_gbps,
        traffic.l2 / constants.l2_gbps,
    ]
    return np.asarray(np.maximum.reduce(levels) / 1e3, np.float64)


def stream_timing(moved: float | Array, programs: float | Array, case: Candidates) -> Timing:
    """A small helper kernel that reads and writes `moved` bytes of contiguous, recently written memory once."""
    ones = np.ones(case.rows)
    grid = np.maximum(np.ceil(programs), 1.0) * ones
    zeros = 0.0 * ones
    each = moved / grid
    loop = Loop(
        programs=grid, iterations=ones, warps=4 * ones, hbm_bytes=zeros, last_level_bytes=each, l2_bytes=zeros,
        mma_clk=zeros, valu=20 * ones, loads=4 * ones, spills=zeros, lds_bytes=zeros, depth=ones,
        latency_ns=case.constants.last_level_ns * ones, segment_bytes=512 * ones, output_bytes=zeros,
        mma_efficiency=ones, setup_us=zeros, overlap=zeros, has_barrier=False,
    )  # fmt: skip
    traffic = Traffic(hbm=zeros, last_level=moved * ones, l2=moved * ones)
    return kernel_timing(loop, traffic, 8 * ones, grid, case)


def nothing(case: Candidates) -> Timing:
    """A launch that no config needs."""
    zeros = np.zeros(case.rows)
    return Timing(*(zeros for _ in fields(Timing)))


def chosen(mask: Array | Mask, yes: Timing, no: Timing) -> Timing:
    """Per config one of two timings."""
    where = np.asarray(mask, np.bool_)
    return Timing(*(np.where(where, getattr(yes, each.name), getattr(no, each.name)) for each in fields(Timing)))
