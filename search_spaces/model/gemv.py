"""Matrix times few vectors on the vector units: y = W x, loops unrolled so that loads run ahead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .closed_form import Array, stream_registers
from .compiled import Candidates, residency
from .physics import Loop, Timing, Traffic, kernel_timing

L2, LAST_LEVEL, HBM = 0.0, 1.0, 2.0
_LOAD_BYTES = 16.0
_OUTSTANDING_LOADS = 16.0
"""16-byte loads a thread has under way in an unrolled loop; 7 to 16 were counted in compiled tiles."""


@dataclass(frozen=True, kw_only=True)
class GemvShape:
    """`parts` weights of [n, k] that every program goes through, `weights` of them at a time.

    `weight_bytes` are the distinct weight bytes of the whole kernel; what programs read beyond is read again.
    """

    n: int
    k: int
    parts: int
    weights: int
    itemsize: int
    weight_bytes: float
    input_bytes: float
    output_bytes: float


@dataclass(frozen=True, kw_only=True)
class GemvConfig:
    """How the work is cut, arrays over configs."""

    units: Array
    """Programs that share each column block and part of K: pairs, tokens or blocks of rows."""
    rows: Array
    """Rows of x that one program multiplies its weights with."""
    block_n: Array
    block_k: Array
    split_k: Array
    warps: Array
    again: Array
    """Where weights that are read again come from: `L2`, `LAST_LEVEL` or `HBM`."""
    output_itemsize: Array


def gemv_timing(shape: GemvShape, config: GemvConfig, case: Candidates) -> Timing:
    """Time of a GEMV launch."""
    device, constants = case.device, case.constants
    rows, block_n, block_k, warps = config.rows, config.block_n, config.block_k, config.warps
    lanes = device.arch.wave_size * warps
    columns = np.ceil(shape.n / block_n)
    per_part = np.ceil(shape.k / (config.split_k * block_k))
    iterations = shape.parts * per_part
    programs = config.units * columns * config.split_k
    fill = np.minimum(1.0, shape.k / (config.split_k * per_part * block_k)) * np.minimum(
        1.0, shape.n / (columns * block_n)
    )
    elements = shape.weights * block_n * block_k
    weight = elements * shape.itemsize * fill
    x = rows * block_k * shape.itemsize
    loads = np.maximum(elements * shape.itemsize / _LOAD_BYTES / lanes, shape.weights)
    ahead = np.clip(_OUTSTANDING_LOADS / loads, 1.0, iterations)

    steps = programs * iterations
    first = np.minimum(shape.weight_bytes / np.maximum(steps * weight, 1.0), 1.0)
    re_read = weight * (1.0 - first)
    hbm = weight * first + np.where(config.again == HBM, re_read, 0.0)
    last = np.where(config.again == LAST_LEVEL, re_read, 0.0)
    near = np.where(config.again == L2, re_read, 0.0) + x
    accumulators = elements * rows
    registers = stream_registers(elements, shape.itemsize, accumulators, warps, device.arch)
    reduction = np.where(warps > 1, block_n * rows * warps * 4.0, 0.0)
    fit = residency(case, registers, reduction, warps)
    valu = elements / lanes * (1.25 + rows) + 10.0
    zeros = np.zeros_like(weight)
    loop = Loop(
        programs=programs, iterations=iterations, warps=warps, hbm_bytes=hbm, last_level_bytes=last,
        l2_bytes=near,
        mma_clk=zeros, valu=valu, loads=loads, spills=fit.spills, lds_bytes=zeros, depth=ahead,
        latency_ns=(constants.hbm_ns * weight + constants.l2_ns * x) / (weight + x),
        segment_bytes=np.minimum(block_k, shape.k) * shape.itemsize,
        output_bytes=block_n * rows * config.output_itemsize,
        mma_efficiency=zeros + 1.0, overlap=zeros, has_barrier=False, setup_us=zeros,
    )  # fmt: skip
    traffic = Traffic(
        hbm=np.maximum(steps * hbm, shape.weight_bytes) + shape.input_bytes + shape.output_bytes,
        last_level=steps * (hbm + last), l2=steps * (weight + x),
    )  # fmt: skip
    return kernel_timing(loop, traffic, fit.programs, programs, case)
