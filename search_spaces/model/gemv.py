"""Matrix times few vectors on the vector units: y = W x by multiply-add, loops unrolled so that loads run ahead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..chip import Device
from .closed_form import Array, stream_registers
from .compiled import Compiled, residency
from .constants import ModelConstants
from .physics import Loop, Timing, Traffic, kernel_timing

_LOAD_BYTES = 16.0
_OUTSTANDING_LOADS = 16.0
"""16-byte loads a thread has under way in an unrolled loop: 7 to 16 counted in compiled GEMV tiles (assumed for all)."""


@dataclass(frozen=True, kw_only=True)
class GemvShape:
    """Programs of `units` x column blocks; each goes through `parts` weights of [n, k] for its rows of x.

    `weight_bytes` are the distinct weight bytes of the whole kernel, `read_bytes` what the programs read in total;
    what is read again comes from `again`: "l2", "last_level" or "hbm", one entry per config.
    """

    n: int
    k: int
    parts: int
    weights: int
    itemsize: int
    weight_bytes: float
    input_bytes: float
    output_bytes: float


def gemv_timing(
    shape: GemvShape,
    units: Array,
    rows: Array,
    again: Array,
    tile: tuple[Array, Array, Array],
    split_k: Array,
    warps: Array,
    compiled: Compiled,
    device: Device,
    constants: ModelConstants,
) -> Timing:
    """Time of a GEMV launch.

    `units` programs share each column block, `rows` is the number of x rows in one program, `tile` (BLOCK_N, BLOCK_K,
    bytes written per output element), `again` where re-reads come from: 0 L2, 1 last-level cache, 2 HBM.
    """
    block_n, block_k, output_itemsize = tile
    lanes = device.arch.wave_size * warps
    columns = np.ceil(shape.n / block_n)
    per_part = np.ceil(shape.k / (split_k * block_k))
    iterations = shape.parts * per_part
    programs = units * columns * split_k
    fill = np.minimum(1.0, shape.k / (split_k * per_part * block_k)) * np.minimum(
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
    hbm = weight * first + np.where(again >= 2, re_read, 0.0)
    last = np.where(again == 1, re_read, 0.0)
    near = np.where(again == 0, re_read, 0.0) + x
    accumulators = elements * rows
    registers = stream_registers(elements, shape.itemsize, accumulators, warps, device.arch)
    reduction = np.where(warps > 1, block_n * rows * warps * 4.0, 0.0)
    fit = residency(compiled, registers, reduction, warps, device, constants)
    valu = elements / lanes * (1.25 + rows) + 10.0
    zeros = np.zeros_like(weight)
    loop = Loop(
        programs=programs, iterations=iterations, warps=warps, hbm_bytes=hbm, last_level_bytes=last, l2_bytes=near,
        mma_clk=zeros, valu=valu, loads=loads, spills=fit.spills, lds_bytes=zeros, depth=ahead,
        latency_ns=(constants.hbm_ns * weight + constants.l2_ns * x) / (weight + x),
        segment_bytes=np.minimum(block_k, shape.k) * shape.itemsize, output_bytes=block_n * rows * output_itemsize,
        mma_efficiency=zeros + 1.0, has_barrier=False, setup_us=zeros,
    )  # fmt: skip
    traffic = Traffic(
        hbm=np.maximum(steps * hbm, shape.weight_bytes) + shape.input_bytes + shape.output_bytes,
        last_level=steps * (hbm + last), l2=steps * (weight + x),
    )  # fmt: skip
    return kernel_timing(loop, traffic, fit.programs, programs, device, constants)
