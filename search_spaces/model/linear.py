"""Modelled launches of the dense projections: a GEMV by multiply-add or a tile GEMM, either with split-K."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .compiled import Candidates
from .gemm import GemmConfig, GemmShape, gemm_timing
from .gemv import L2, LAST_LEVEL, GemvConfig, GemvShape, gemv_timing
from .physics import Timing, chosen, nothing, stream_timing

_ELEMENTS_PER_PROGRAM = 1024
"""Of the kernel that adds the parts of a split K."""


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


def linear_launches(problem: LinearDims, case: Candidates) -> dict[str, Timing]:
    """The main launch, and the reduction of the fp32 parts where K is split."""
    shape = linear_shape(problem)
    split_k = case.column("SPLIT_K", 1)
    main = chosen(
        case.column("DOT", 1),
        gemm_timing(shape, GemmConfig.of(case), case),
        gemv_timing(_gemv_shape(shape), _gemv_config(shape, case), case),
    )
    elements = problem.batch * shape.n
    parts = elements * (4.0 * shape.weights * split_k + shape.output_itemsize)
    reduction = stream_timing(parts, elements / _ELEMENTS_PER_PROGRAM, case)
    return {"projection": main, "reduction": chosen(split_k > 1, reduction, nothing(case))}


def _gemv_shape(shape: GemmShape) -> GemvShape:
    return GemvShape(
        n=shape.n, k=shape.k, parts=1, weights=shape.weights, itemsize=shape.itemsize,
        weight_bytes=float(shape.weights * shape.n * shape.k * shape.itemsize),
        input_bytes=float(shape.tokens * shape.k * shape.itemsize),
        output_bytes=float(shape.tokens * shape.n * shape.output_itemsize),
    )  # fmt: skip


def _gemv_config(shape: GemmShape, case: Candidates) -> GemvConfig:
    block_m, split_k = case.column("BLOCK_M", 1), case.column("SPLIT_K", 1)
    shares_l2 = (case.column("XCD_REMAP", 0) > 0) | (case.device.xcds == 1)
    return GemvConfig(
        units=np.ceil(shape.tokens / block_m), rows=np.minimum(block_m, shape.tokens), split_k=split_k,
        block_n=case.column("BLOCK_N", 8), block_k=case.column("BLOCK_K", 512), warps=case.warps,
        again=np.where(shares_l2, L2, LAST_LEVEL),
        output_itemsize=np.where(split_k > 1, 4.0 * shape.weights, shape.output_itemsize),
    )  # fmt: skip
