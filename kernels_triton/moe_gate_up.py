"""Mixture-of-experts gate and up projections of decode: h[p] = silu(x[t] Wg[e]^T) * (x[t] Wu[e]^T), e = ids[p].

Sort-free: FORM "pair" gives each (token, expert) pair its own programs, FORM "expert" gives each expert its programs,
which find their rows themselves; see `expert_rows`. The weights are the Hugging Face layout, gate rows first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.moe import MOE_GATE_UP, MoeProblem
from .expert_rows import (
    SEARCH_ELEMENTS,
    check_experts,
    count_rows,
    find_pairs,
    load_activations,
    load_weights,
    random_expert_ids,
    row_spans_program,
)
from .launch import Argument, Launch, Plan, compile_options
from .program_order import row_and_column
from .spec import TORCH_DTYPES, KernelSpec, make_generator, random_tensor


@triton.jit(do_not_specialize=["batch"])
def _moe_gate_up_pair_kernel(
    x_ptr, w13_ptr, ids_ptr, h_ptr, batch, x_row_stride, w13_expert_stride, w13_row_stride,
    TOP_K: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ROW_SPANS: tl.constexpr, COLUMNS_FASTEST: tl.constexpr,
    XCDS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N elements of h of one pair, by FMA. Grid batch x TOP_K x cdiv(INTER, BLOCK_N)."""
    pair, block = row_and_column(batch * TOP_K, tl.cdiv(INTER, BLOCK_N), COLUMNS_FASTEST, XCDS)
    expert = tl.load(ids_ptr + pair).to(tl.int64)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    x_row_ptr = x_ptr + (pair // TOP_K) * x_row_stride
    gate_ptr = w13_ptr + expert * w13_expert_stride
    up_ptr = gate_ptr + INTER * w13_row_stride
    gate = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    # Unrolled: a loop without tl.dot is not pipelined, and unrolled loads can all be in flight.
    for start in tl.static_range(0, HIDDEN, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        x = load_activations(x_row_ptr, columns, HIDDEN, BLOCK_N, ROW_SPANS).to(tl.float32)
        offsets = rows[:, None] * w13_row_stride + columns[None, :]
        gate += load_weights(gate_ptr + offsets, rows, INTER, columns, HIDDEN, BLOCK_N, BLOCK_K).to(tl.float32) * x
        up += load_weights(up_ptr + offsets, rows, INTER, columns, HIDDEN, BLOCK_N, BLOCK_K).to(tl.float32) * x
    gate_sum = tl.sum(gate, 1)
    h = gate_sum * tl.sigmoid(gate_sum) * tl.sum(up, 1)
    tl.store(h_ptr + pair * INTER + rows, h.to(h_ptr.dtype.element_ty), mask=rows < INTER)


@triton.jit(do_not_specialize=["batch"])
def _moe_gate_up_expert_kernel(
    x_ptr, w13_ptr, ids_ptr, h_ptr, batch, x_row_stride, w13_expert_stride, w13_row_stride,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr,
    SWAP: tl.constexpr, COLUMNS_FASTEST: tl.constexpr, XCDS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M rows of one expert x BLOCK_N elements of h, by tl.dot; exits where the expert has none.

    Grid EXPERTS x cdiv(batch, BLOCK_M) x cdiv(INTER, BLOCK_N). SWAP computes W x^T, the weights on the long side of
    the matrix instruction.
    """
    blocks_m = tl.cdiv(batch, BLOCK_M)
    tile, block = row_and_column(EXPERTS * blocks_m, tl.cdiv(INTER, BLOCK_N), COLUMNS_FASTEST, XCDS)
    expert = tile // blocks_m
    first_row = (tile % blocks_m) * BLOCK_M
    num_rows = count_rows(ids_ptr, batch * TOP_K, expert, CHUNK)
    if first_row >= num_rows:
        return
    pairs = find_pairs(ids_ptr, batch * TOP_K, expert, first_row, BLOCK_M, CHUNK)
    is_row = first_row + tl.arange(0, BLOCK_M) < num_rows
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    x_rows = (pairs // TOP_K)[:, None] * x_row_stride
    gate_ptr = w13_ptr + expert.to(tl.int64) * w13_expert_stride
    up_ptr = gate_ptr + INTER * w13_row_stride
    if SWAP:
        gate = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        x_inside = is_row[:, None] & (columns < HIDDEN)[None, :]
        x = tl.load(x_ptr + x_rows + columns[None, :], mask=x_inside, other=0.0)
        offsets = rows[:, None] * w13_row_stride + columns[None, :]
        w_gate = load_weights(gate_ptr + offsets, rows, INTER, columns, HIDDEN, BLOCK_N, BLOCK_K)
        w_up = load_weights(up_ptr + offsets, rows, INTER, columns, HIDDEN, BLOCK_N, BLOCK_K)
        if SWAP:
            gate = tl.dot(w_gate, tl.trans(x), gate, input_precision="ieee")
            up = tl.dot(w_up, tl.trans(x), up, input_precision="ieee")
        else:
            gate = tl.dot(x, tl.trans(w_gate), gate, input_precision="ieee")
            up = tl.dot(x, tl.trans(w_up), up, input_precision="ieee")
    h = gate * tl.sigmoid(gate) * up
    if SWAP:
        h = tl.trans(h)
    inside = is_row[:, None] & (rows < INTER)[None, :]
    tl.store(h_ptr + pairs[:, None] * INTER + rows[None, :], h.to(h_ptr.dtype.element_ty), mask=inside)


def plan_moe_gate_up(x: torch.Tensor, w13: torch.Tensor, ids: torch.Tensor, *, config: Config, device: Device) -> Plan:
    """Plan of h = silu(gate) * up for every (token, expert) pair.

    x [B, H], w13 [E, 2 I, H] with the gate rows first, ids [B, k] int32 or int64 with distinct experts in each row;
    all with a contiguous last axis. Gives h [B k, I] in x's dtype, row p = token * k + choice. Raises ValueError.
    """
    check_experts(x, w13, ids)
    batch, top_k = ids.shape
    experts, inter = w13.shape[0], w13.shape[1] // 2
    if w13.shape[1] % 2 or x.shape[0] != batch:
        raise ValueError(f"x {tuple(x.shape)}, w13 {tuple(w13.shape)} and ids {tuple(ids.shape)} do not fit together")
    h = torch.empty(batch * top_k, inter, dtype=x.dtype, device=x.device)
    args: dict[str, Argument] = {
        "x_ptr": x, "w13_ptr": w13, "ids_ptr": ids, "h_ptr": h, "batch": batch, "x_row_stride": x.stride(0),
        "w13_expert_stride": w13.stride(0), "w13_row_stride": w13.stride(1),
    }  # fmt: skip
    constexprs: dict[str, int | str | bool] = {
        "TOP_K": top_k, "HIDDEN": x.shape[1], "INTER": inter,
        "BLOCK_N": config.integer("BLOCK_N"), "BLOCK_K": config.integer("BLOCK_K"),
        "COLUMNS_FASTEST": config.word("ORDER") == "cols",
        "XCDS": device.xcds if config.integer("XCD_REMAP", 0) else 1,
    }  # fmt: skip
    blocks_n = triton.cdiv(inter, config.integer("BLOCK_N"))
    if config.word("FORM") == "pair":
        fn, grid = _moe_gate_up_pair_kernel, (batch * top_k * blocks_n,)
        constexprs["ROW_SPANS"] = row_spans_program(x.dtype, config, device)
    else:
        block_m = config.integer("BLOCK_M")
        fn, grid = _moe_gate_up_expert_kernel, (experts * triton.cdiv(batch, block_m) * blocks_n,)
        constexprs |= {"EXPERTS": experts, "BLOCK_M": block_m, "CHUNK": SEARCH_ELEMENTS // block_m}
        constexprs["SWAP"] = config.integer("SWAP")
    return Plan((Launch(fn, grid, args, constexprs, compile_options(config)),), (h,))


def moe_gate_up(
    x: torch.Tensor, w13: torch.Tensor, ids: torch.Tensor, *, config: Config, device: Device
) -> torch.Tensor:
    """h [B k, I]; see `plan_moe_gate_up`."""
    return plan_moe_gate_up(x, w13, ids, config=config, device=device).run()[0]


def moe_gate_up_reference(x: torch.Tensor, w13: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor]:
    """The same in fp32, one expert at a time."""
    batch, top_k = ids.shape
    inter = w13.shape[1] // 2
    h = torch.zeros(batch * top_k, inter, dtype=torch.float32, device=x.device)
    for expert in ids.unique().tolist():
        pairs = (ids.flatten() == expert).nonzero()[:, 0]
        both = x[pairs // top_k].float() @ w13[expert].float().T
        h[pairs] = torch.nn.functional.silu(both[:, :inter]) * both[:, inter:]
    return (h.to(x.dtype),)


def make_moe_gate_up_inputs(
    problem: MoeProblem, *, torch_device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, w13, ids) with outputs of order 1 and independent uniform routing."""
    generator = make_generator(torch_device, seed)
    dtype = TORCH_DTYPES[problem.dtype]
    x = random_tensor(problem.batch, problem.hidden, dtype=dtype, torch_device=torch_device, generator=generator)
    w13 = random_tensor(
        problem.experts, 2 * problem.inter, problem.hidden, dtype=dtype, torch_device=torch_device,
        generator=generator, scale=problem.hidden**-0.5,
    )  # fmt: skip
    ids = random_expert_ids(
        problem.batch, problem.experts, problem.top_k, torch_device=torch_device, generator=generator
    )
    return x, w13, ids


MOE_GATE_UP_SPEC = KernelSpec(
    "moe_gate_up", MOE_GATE_UP, plan_moe_gate_up, moe_gate_up_reference, make_moe_gate_up_inputs
)
