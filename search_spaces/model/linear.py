"""Modelled launches of the dense projections: a GEMV by multiply-add or a tile GEMM, either with split-K."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..chip import Device
from .closed_form import Columns, column
from .compiled import Compiled, rows_of
from .constants import ModelConstants
from .gemm import GemmConfig, GemmShape, gemm_timing
from .gemv import GemvShape, gemv_timing
from .moe import nothing
from .physics import Timing, chosen, stream_timing


class LinearDims(Protocol):
    """What is read of every linear problem; `n` and `k`, or `n_q` and `n_kv`, are attributes of its own."""

    @property
    def kernel(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def itemsize(self) -> int: ...
    def dims(self) -> dict[str, int]: ...


def linear_shape(problem: LinearDims) -> GemmShape:
    """The projection of linear, linear_silu_mul (two weights) or linear_qkv (three weights, one output)."""
    dims = problem.dims()
    n = dims["n"] if "n" in dims else dims["n_q"] + 2 * dims["n_kv"]
    return GemmShape(
        tokens=problem.batch, n=n, k=dims["k"], dtype=problem.dtype, itemsize=problem.itemsize,
        output_itemsize=problem.itemsize, weights=2 if problem.kernel == "linear_silu_mul" else 1,
    )  # fmt: skip


def linear_launches(
    problem: LinearDims, device: Device, constants: ModelConstants, columns: Columns, compiled: Compiled
) -> dict[str, Timing]:
    """The main launch, and the reduction of the fp32 parts where K is split."""
    shape = linear_shape(problem)
    rows = rows_of(columns)
    split_k = column(columns, "SPLIT_K", 1)
    uses_dot = column(columns, "DOT", 1)
    config = GemmConfig.of(columns, device)
    main = chosen(
        uses_dot,
        gemm_timing(shape, config, compiled, device, constants),
        _gemv(shape, columns, compiled, device, constants),
    )
    parts = problem.batch * shape.n * shape.weights * (4.0 * split_k + shape.output_itemsize)
    programs = np.full(rows, max(1.0, np.ceil(problem.batch * shape.n / 1024)))
    reduction = stream_timing(parts, programs, rows, device, constants)
    return {"projection": main, "reduction": chosen(split_k > 1, reduction, nothing(rows))}


def _gemv(
    shape: GemmShape, columns: Columns, compiled: Compiled, device: Device, constants: ModelConstants
) -> Timing:
    block_m = column(columns, "BLOCK_M", 1)
    split_k = column(columns, "SPLIT_K", 1)
    gemv = GemvShape(
        n=shape.n, k=shape.k, parts=1, weights=shape.weights, itemsize=shape.itemsize,
        weight_bytes=float(shape.weights * shape.n * shape.k * shape.itemsize),
        input_bytes=float(shape.tokens * shape.k * shape.itemsize),
        output_bytes=float(shape.tokens * shape.n * shape.output_itemsize),
    )  # fmt: skip
    shares_l2 = (column(columns, "XCD_REMAP", 0) > 0) | (device.xcds == 1)
    output = np.where(split_k > 1, 4.0 * shape.weights, shape.output_itemsize)
    return gemv_timing(
        gemv, np.ceil(shape.tokens / block_m), np.minimum(block_m, shape.tokens), np.where(shares_l2, 0.0, 1.0),
        (column(columns, "BLOCK_N", 8), column(columns, "BLOCK_K", 512), output), split_k,
        column(columns, "num_warps", 4), compiled, device, constants,
    )  # fmt: skip
