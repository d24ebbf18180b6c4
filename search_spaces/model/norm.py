"""Modelled launches of the row kernels: RMSNorm, QK-norm with RoPE, and the router's softmax and top-k."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .closed_form import Array, stream_registers
from .compiled import Candidates, residency
from .constants import ModelConstants
from .physics import Loop, Timing, Traffic, kernel_timing

_NORM_INSTRUCTIONS = 6.0
"""Vector instructions per element of a norm: convert, square, add, scale, weight, convert back (assumed)."""
_ROPE_INSTRUCTIONS = 12.0
"""Per element of RoPE: two products and a sum, each rounded, converted in and out (assumed)."""
_ROUND_INSTRUCTIONS = 6.0
"""Per element and round of the router's top-k: compare, select, mask (assumed)."""
_REDUCTION_CLK = 20.0
"""Per step of a reduction across lanes (assumed)."""


class NormDims(Protocol):
    """What is read of a norm problem."""

    @property
    def kernel(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def hidden(self) -> int: ...


class QkNormRopeDims(Protocol):
    """What is read of a problem of QK-norm and RoPE."""

    @property
    def batch(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def q_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def qk_norm(self) -> int: ...
    @property
    def half_block(self) -> int: ...


class RouterDims(Protocol):
    """What is read of a router problem."""

    @property
    def batch(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...


def norm_launches(problem: NormDims, case: Candidates) -> dict[str, Timing]:
    """One program per row; a row wider than BLOCK_H is read twice, the second time from cache."""
    block, warps = case.column("BLOCK_H", 1024), case.warps
    streams = 2.0 if problem.kernel == "add_rms_norm" else 1.0
    steps = np.ceil(problem.hidden / block)
    passes = np.where(steps > 1, 2.0, 1.0)
    row_bytes = problem.hidden * problem.itemsize
    elements = block * (streams + 1)  # inputs and the weight
    arch, constants = case.device.arch, case.constants
    lanes = arch.wave_size * warps
    iterations = steps * passes
    loaded = streams * row_bytes / steps  # of one pass
    weight = row_bytes / steps
    registers = stream_registers(elements, problem.itemsize, block, warps, arch)
    fit = residency(case, registers, 4 * warps, warps)
    zeros = np.zeros(len(block))
    loop = Loop(
        programs=zeros + problem.batch, iterations=iterations, warps=warps, hbm_bytes=loaded / passes,
        last_level_bytes=zeros, l2_bytes=loaded - loaded / passes + weight / passes, mma_clk=zeros,
        valu=np.minimum(block, problem.hidden) / lanes * _NORM_INSTRUCTIONS * streams + 10,
        loads=np.maximum(elements * problem.itemsize / 16 / lanes, streams + 1), spills=fit.spills,
        lds_bytes=zeros,
        depth=zeros, latency_ns=zeros + constants.hbm_ns,
        segment_bytes=np.minimum(block, problem.hidden) * problem.itemsize,
        output_bytes=zeros + streams * row_bytes, mma_efficiency=zeros + 1, overlap=zeros, has_barrier=False,
        setup_us=_reduction_us(lanes, warps, constants),
    )  # fmt: skip
    moved = 2 * streams * problem.batch * row_bytes + row_bytes
    traffic = Traffic(hbm=zeros + moved, last_level=zeros + moved, l2=problem.batch * iterations * (loaded + weight))
    return {"norm": kernel_timing(loop, traffic, fit.programs, zeros + problem.batch, case)}


def qk_norm_rope_launches(problem: QkNormRopeDims, case: Candidates) -> dict[str, Timing]:
    """One program per BLOCK_H heads of consecutive tokens; cos and sin of a token come from HBM only once."""
    block, warps = case.column("BLOCK_H", 8), case.warps
    arch, constants = case.device.arch, case.constants
    lanes = arch.wave_size * warps
    head_bytes = problem.head_dim * problem.itemsize
    heads = problem.q_heads + problem.kv_heads
    programs = np.ceil(problem.batch * problem.q_heads / block) + np.ceil(problem.batch * problem.kv_heads / block)
    rows = problem.batch * heads / programs  # of the mean program
    angles = 2.0 * head_bytes  # cos and sin of a token
    operands = 3.0 + problem.qk_norm
    # A program is busy with whole rows even where the last of them do not exist.
    held = np.maximum(2.0 * block * problem.half_block / lanes, 1.0)
    # fp32 heads beside packed operands: 60 and 100 on gfx942 with 16 and 32 elements, as compiled.
    registers = held * (1 + (operands - 1) * problem.itemsize / 4) + 20
    zeros = np.zeros(case.rows)
    fit = residency(case, registers, zeros, warps)
    once = problem.batch * angles + problem.qk_norm * 2.0 * head_bytes
    loop = Loop(
        programs=programs, iterations=zeros + 1, warps=warps, hbm_bytes=rows * head_bytes + once / programs,
        last_level_bytes=zeros, l2_bytes=np.maximum(rows * (operands - 1) * head_bytes - once / programs, 0.0),
        mma_clk=zeros, valu=held * (_ROPE_INSTRUCTIONS + _NORM_INSTRUCTIONS * problem.qk_norm) + 20,
        loads=np.maximum(held * operands * problem.itemsize / 16, 2 * operands), spills=fit.spills, lds_bytes=zeros,
        depth=zeros, latency_ns=zeros + constants.hbm_ns, segment_bytes=np.minimum(block, heads) * head_bytes,
        output_bytes=rows * head_bytes, mma_efficiency=zeros + 1, overlap=zeros, has_barrier=False,
        setup_us=problem.qk_norm * _reduction_us(np.minimum(lanes, problem.half_block), zeros + 1, constants),
    )  # fmt: skip
    moved = 2.0 * problem.batch * heads * head_bytes + once
    traffic = Traffic(hbm=zeros + moved, last_level=zeros + moved, l2=zeros + moved + programs * angles)
    return {"qk_norm_rope": kernel_timing(loop, traffic, fit.programs, programs, case)}


def router_launches(problem: RouterDims, case: Candidates) -> dict[str, Timing]:
    """One program per BLOCK_T tokens holds their logits in registers and takes the maximum top_k times."""
    block, warps = case.column("BLOCK_T", 1), case.column("num_warps", 1)
    arch, constants = case.device.arch, case.constants
    lanes = arch.wave_size * warps
    padded = 2.0 ** np.ceil(np.log2(problem.experts))
    elements = block * padded
    programs = np.ceil(problem.batch / block)
    row_bytes = problem.experts * problem.itemsize
    choice_bytes = problem.top_k * (problem.itemsize + 8.0)  # a weight and an int64 id each
    # A program is busy with whole rows even where the last of them do not exist.
    held = np.maximum(elements / lanes, 1.0)
    registers = stream_registers(elements, problem.itemsize, 2 * elements, warps, arch)
    fit = residency(case, registers, 8 * warps, warps)
    zeros = np.zeros(len(block))
    loop = Loop(
        programs=programs, iterations=zeros + 1, warps=warps, hbm_bytes=block * row_bytes,
        last_level_bytes=zeros,
        l2_bytes=zeros, mma_clk=zeros, valu=held * (10 + _ROUND_INSTRUCTIONS * problem.top_k) + 20,
        loads=np.maximum(held * problem.itemsize / 16, 1), spills=fit.spills, lds_bytes=zeros, depth=zeros,
        latency_ns=zeros + constants.hbm_ns, segment_bytes=zeros + row_bytes,
        output_bytes=block * choice_bytes, mma_efficiency=zeros + 1, overlap=zeros, has_barrier=False,
        setup_us=(problem.top_k + 2) * _reduction_us(np.minimum(lanes, padded), warps, constants),
    )  # fmt: skip
    moved = problem.batch * (row_bytes + choice_bytes)
    traffic = Traffic(hbm=zeros + moved, last_level=zeros + moved, l2=zeros + moved)
    return {"router": kernel_timing(loop, traffic, fit.programs, programs, case)}


def _reduction_us(lanes: Array, warps: Array, constants: ModelConstants) -> Array:
    """A reduction over the lanes of a program: steps inside a wave, then one exchange between waves."""
    steps = np.log2(np.maximum(lanes, 1))
    clk = steps * _REDUCTION_CLK + np.where(warps > 1, constants.sync_clk, 0.0)
    return np.asarray(clk / (constants.clk_ghz * 1e3), np.float64)
