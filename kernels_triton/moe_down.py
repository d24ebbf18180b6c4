"""Mixture-of-experts down projection of decode: out[t] = residual[t] + sum_j s[p] (h[p] W2[e]^T).

p = t top_k + j is a pair and e = ids[p] its expert. Deterministic, without atomics: FORM "token" sums a token's experts
in registers; FORM "expert" writes each pair's weighted row in fp32 and adds the rows of a token in a second, small
launch in the order of its choices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.moe import MOE_DOWN, MoeProblem
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

SUM_BLOCK = 512
SUM_WARPS = 4


@triton.jit(do_not_specialize=["batch"])
def _moe_down_token_kernel(
    h_ptr, w2_ptr, ids_ptr, weights_ptr, residual_ptr, out_ptr, batch,
    h_row_stride, w2_expert_stride, w2_row_stride, residual_row_stride,
    TOP_K: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ROW_SPANS: tl.constexpr, COLUMNS_FASTEST: tl.constexpr,
    XCDS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of one token over its TOP_K experts. Grid batch x cdiv(HIDDEN, BLOCK_N)."""
    token, block = row_and_column(batch, tl.cdiv(HIDDEN, BLOCK_N), COLUMNS_FASTEST, XCDS)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    # Unrolled: the loads of all experts can be in flight together.
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        expert_ptr = w2_ptr + tl.load(ids_ptr + pair).to(tl.int64) * w2_expert_stride
        weight = tl.load(weights_ptr + pair).to(tl.float32)
        for start in tl.static_range(0, INTER, BLOCK_K):
            columns = start + tl.arange(0, BLOCK_K)
            h = load_activations(h_ptr + pair * h_row_stride, columns, INTER, BLOCK_N, ROW_SPANS)
            pointers = expert_ptr + rows[:, None] * w2_row_stride + columns[None, :]
            w2 = load_weights(pointers, rows, HIDDEN, columns, INTER, BLOCK_N, BLOCK_K)
            sums += w2.to(tl.float32) * (h.to(tl.float32) * weight)
    out = tl.sum(sums, 1)
    if residual_ptr is not None:
        residual = tl.load(
            residual_ptr + token.to(tl.int64) * residual_row_stride + rows, mask=rows < HIDDEN, other=0.0
        )
        out += residual.to(tl.float32)
    tl.store(out_ptr + token * HIDDEN + rows, out.to(out_ptr.dtype.element_ty), mask=rows < HIDDEN)


@triton.jit(do_not_specialize=["batch"])
def _moe_down_expert_kernel(
    h_ptr, w2_ptr, ids_ptr, weights_ptr, pair_sums_ptr, batch, h_row_stride, w2_expert_stride, w2_row_stride,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr,
    SWAP: tl.constexpr, COLUMNS_FASTEST: tl.constexpr, XCDS: tl.constexpr,
):  # fmt: skip
    """One program: pair_sums[p] = s[p] (h[p] W2[e]^T) for BLOCK_M pairs of one expert x BLOCK_N outputs, in fp32.

    Grid EXPERTS x cdiv(batch, BLOCK_M) x cdiv(HIDDEN, BLOCK_N).
    """
    blocks_m = tl.cdiv(batch, BLOCK_M)
    tile, block = row_and_column(EXPERTS * blocks_m, tl.cdiv(HIDDEN, BLOCK_N), COLUMNS_FASTEST, XCDS)
    expert = tile // blocks_m
    first_row = (tile % blocks_m) * BLOCK_M
    num_rows = count_rows(ids_ptr, batch * TOP_K, expert, CHUNK)
    if first_row >= num_rows:
        return
    pairs = find_pairs(ids_ptr, batch * TOP_K, expert, first_row, BLOCK_M, CHUNK)
    is_row = first_row + tl.arange(0, BLOCK_M) < num_rows
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    expert_ptr = w2_ptr + expert.to(tl.int64) * w2_expert_stride
    if SWAP:
        sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, INTER, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        h_inside = is_row[:, None] & (columns < INTER)[None, :]
        h = tl.load(h_ptr + pairs[:, None] * h_row_stride + columns[None, :], mask=h_inside, other=0.0)
        pointers = expert_ptr + rows[:, None] * w2_row_stride + columns[None, :]
        w2 = load_weights(pointers, rows, HIDDEN, columns, INTER, BLOCK_N, BLOCK_K)
        if SWAP:
            sums = tl.dot(w2, tl.trans(h), sums, input_precision="ieee")
        else:
            sums = tl.dot(h, tl.trans(w2), sums, input_precision="ieee")
    if SWAP:
        sums = tl.trans(sums)
    sums *= tl.load(weights_ptr + pairs, mask=is_row, other=0.0).to(tl.float32)[:, None]
    inside = is_row[:, None] & (rows < HIDDEN)[None, :]
    tl.store(pair_sums_ptr + pairs[:, None] * HIDDEN + rows[None, :], sums, mask=inside)


@triton.jit(do_not_specialize=["batch"])
def _moe_sum_kernel(
    pair_sums_ptr, residual_ptr, out_ptr, batch, residual_row_stride,
    TOP_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[t] = residual[t] + the TOP_K rows of token t, added in the order of its choices. Grid batch x columns."""
    token, block = row_and_column(batch, tl.cdiv(HIDDEN, BLOCK), True, 1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    out = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(TOP_K):
        out += tl.load(pair_sums_ptr + (token * TOP_K + choice) * HIDDEN + columns, mask=inside, other=0.0)
    if residual_ptr is not None:
        out += tl.load(residual_ptr + token.to(tl.int64) * residual_row_stride + columns, mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(out_ptr + token * HIDDEN + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


def plan_moe_down(
    h: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, residual: torch.Tensor | None = None,
    *, config: Config, device: Device,
) -> Plan:  # fmt: skip
    """Plan of the weighted sum over each token's experts, plus the residual where one is given.

    h [B k, I], w2 [E, H, I], ids [B, k] int32 or int64 with distinct experts in each row, weights [B, k] of any float
    type, residual [B, H] or None; all with a contiguous last axis. Gives out [B, H] in h's dtype. Raises ValueError.
    """
    _check(h, w2, ids, weights, residual)
    batch, top_k = ids.shape
    experts, hidden, inter = w2.shape
    out = torch.empty(batch, hidden, dtype=h.dtype, device=h.device)
    residual_row_stride = 0 if residual is None else residual.stride(0)
    inputs: dict[str, Argument] = {
        "h_ptr": h, "w2_ptr": w2, "ids_ptr": ids, "weights_ptr": weights, "batch": batch,
        "h_row_stride": h.stride(0), "w2_expert_stride": w2.stride(0), "w2_row_stride": w2.stride(1),
    }  # fmt: skip
    outputs: dict[str, Argument] = {
        "residual_ptr": residual,
        "out_ptr": out,
        "residual_row_stride": residual_row_stride,
    }
    constexprs: dict[str, int | str | bool] = {
        "TOP_K": top_k, "HIDDEN": hidden, "INTER": inter,
        "BLOCK_N": config.integer("BLOCK_N"), "BLOCK_K": config.integer("BLOCK_K"),
        "COLUMNS_FASTEST": config.word("ORDER") == "cols",
        "XCDS": device.xcds if config.integer("XCD_REMAP", 0) else 1,
    }  # fmt: skip
    options = compile_options(config)
    blocks_n = triton.cdiv(hidden, config.integer("BLOCK_N"))
    if config.word("FORM") == "token":
        constexprs["ROW_SPANS"] = row_spans_program(h.dtype, config, device)
        launch = Launch(_moe_down_token_kernel, (batch * blocks_n,), {**inputs, **outputs}, constexprs, options)
        return Plan((launch,), (out,))
    block_m = config.integer("BLOCK_M")
    constexprs |= {"EXPERTS": experts, "BLOCK_M": block_m, "CHUNK": SEARCH_ELEMENTS // block_m}
    constexprs["SWAP"] = config.integer("SWAP")
    pair_sums = torch.empty(batch * top_k, hidden, dtype=torch.float32, device=h.device)
    dots = Launch(
        _moe_down_expert_kernel, (experts * triton.cdiv(batch, block_m) * blocks_n,),
        {**inputs, "pair_sums_ptr": pair_sums}, constexprs, options,
    )  # fmt: skip
    total = Launch(
        _moe_sum_kernel, (batch * triton.cdiv(hidden, SUM_BLOCK),),
        {"pair_sums_ptr": pair_sums, "batch": batch, **outputs},
        {"TOP_K": top_k, "HIDDEN": hidden, "BLOCK": SUM_BLOCK}, {"num_warps": SUM_WARPS},
    )  # fmt: skip
    return Plan((dots, total), (out,))


def _check(
    h: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, residual: torch.Tensor | None
) -> None:
    check_experts(h, w2, ids)
    if h.shape[0] != ids.numel():
        raise ValueError(f"h has {h.shape[0]} rows, but ids {tuple(ids.shape)} name {ids.numel()} pairs")
    if weights.shape != ids.shape or not weights.is_floating_point() or not weights.is_contiguous():
        raise ValueError(
            f"routing weights must be contiguous floats of shape {tuple(ids.shape)}, "
            f"got {weights.dtype} {tuple(weights.shape)}"
        )
    if residual is None:
        return
    expected = (ids.shape[0], w2.shape[1])
    if tuple(residual.shape) != expected or residual.dtype != h.dtype or residual.stride(1) != 1:
        raise ValueError(
            f"residual must be {h.dtype} {expected} with a contiguous last axis, "
            f"got {residual.dtype} {tuple(residual.shape)} with strides {residual.stride()}"
        )


def moe_down(
    h: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, residual: torch.Tensor | None = None,
    *, config: Config, device: Device,
) -> torch.Tensor:  # fmt: skip
    """out [B, H]; see `plan_moe_down`."""
    return plan_moe_down(h, w2, ids, weights, residual, config=config, device=device).run()[0]


def moe_down_reference(
    h: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor]:
    """The same in fp32, one expert at a time."""
    batch, top_k = ids.shape
    pair_sums = torch.zeros(batch * top_k, w2.shape[1], dtype=torch.float32, device=h.device)
    for expert in ids.unique().tolist():
        pairs = (ids.flatten() == expert).nonzero()[:, 0]
        pair_sums[pairs] = h[pairs].float() @ w2[expert].float().T
    out = (pair_sums * weights.reshape(-1, 1).float()).reshape(batch, top_k, -1).sum(1)
    return ((out if residual is None else out + residual.float()).to(h.dtype),)


def make_moe_down_inputs(
    problem: MoeProblem, *, torch_device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(h, w2, ids, weights, residual) with outputs of order 1, independent uniform routing, weights of the dtype."""
    generator = make_generator(torch_device, seed)
    dtype = TORCH_DTYPES[problem.dtype]
    h = random_tensor(
        problem.batch * problem.top_k, problem.inter, dtype=dtype, torch_device=torch_device, generator=generator
    )
    w2 = random_tensor(
        problem.experts, problem.hidden, problem.inter, dtype=dtype, torch_device=torch_device,
        generator=generator, scale=problem.inter**-0.5,
    )  # fmt: skip
    ids = random_expert_ids(
        problem.batch, problem.experts, problem.top_k, torch_device=torch_device, generator=generator
    )
    weights = random_tensor(
        problem.batch, problem.top_k, dtype=torch.float32, torch_device=torch_device, generator=generator
    )
    weights = weights.softmax(dim=1).to(dtype)
    residual = random_tensor(problem.batch, problem.hidden, dtype=dtype, torch_device=torch_device, generator=generator)
    return h, w2, ids, weights, residual


MOE_DOWN_SPEC = KernelSpec("moe_down", MOE_DOWN, plan_moe_down, moe_down_reference, make_moe_down_inputs)
