"""A mixture-of-experts layer for many tokens: sort pairs by expert, two grouped GEMMs, sum over a token's experts.

One config serves both GEMMs and its parameters mean what they mean in vLLM's `fused_moe`, except that BLOCK_N counts
columns of `inter` in the first GEMM, which computes a gate and an up tile per program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.moe import MoeProblem
from ..search_spaces.moe_grouped import MOE_GROUPED
from .expert_rows import random_expert_ids
from .launch import Argument, Launch, Plan, compile_options
from .moe_align import Alignment, plan_moe_align
from .program_order import chunked_by_xcd
from .spec import TORCH_DTYPES, Inputs, KernelSpec, make_generator, random_tensor

_MAX_OFFSET = 2**31 - 1
_SUM_BLOCK = 1024
_LOAD_BYTES = 16


@triton.jit
def _tile_of_program(pid, num_blocks, group_m, N_TILES: tl.constexpr, XCDS: tl.constexpr):
    """(block of rows, tile of columns): group_m blocks share a tile of weights before the next tile comes."""
    pid = chunked_by_xcd(pid, num_blocks * N_TILES, XCDS)
    first_block = pid // (group_m * N_TILES) * group_m
    group_size = tl.minimum(num_blocks - first_block, group_m)
    in_group = pid % (group_m * N_TILES)
    return first_block + in_group % group_size, in_group // group_size


@triton.jit(do_not_specialize=["num_pairs", "group_m"])
def _moe_grouped_gate_up_kernel(
    x_ptr, w13_ptr, h_ptr, sorted_pairs_ptr, block_experts_ptr, num_blocks_ptr, num_pairs, group_m,
    x_row_stride, w13_expert_stride, w13_row_stride,
    HIDDEN: tl.constexpr, INTER: tl.constexpr, TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, XCDS: tl.constexpr,
):  # fmt: skip
    """h[p, n] = silu(x[p // top_k] . gate[e, n]) * (x[p // top_k] . up[e, n]) for the pairs p of one block."""
    N_TILES: tl.constexpr = (INTER + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    num_blocks = tl.load(num_blocks_ptr)
    if pid >= num_blocks * N_TILES:
        return
    block, n_tile = _tile_of_program(pid, num_blocks, group_m, N_TILES, XCDS)
    pair = tl.load(sorted_pairs_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M))
    row_ok = pair < num_pairs
    expert = tl.load(block_experts_ptr + block).to(tl.int64)
    column = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    # A tile that passes the edge reads the last row again instead of masking; the store drops it.
    row = tl.minimum(column, INTER - 1)
    k_offset = tl.arange(0, BLOCK_K)
    # Padding reads the last token again: a row of zeros would need a mask on every load.
    token = tl.minimum(pair, num_pairs - 1) // TOP_K
    x_ptrs = x_ptr + (token[:, None] * x_row_stride + k_offset[None, :])
    gate_ptrs = w13_ptr + expert * w13_expert_stride + (row[None, :] * w13_row_stride + k_offset[:, None])
    up_ptrs = gate_ptrs + INTER * w13_row_stride
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, HIDDEN, BLOCK_K):
        if HIDDEN % BLOCK_K == 0:
            x = tl.load(x_ptrs)
            gate_weight = tl.load(gate_ptrs)
            up_weight = tl.load(up_ptrs)
        else:
            k_ok = k_offset < HIDDEN - k
            x = tl.load(x_ptrs, mask=k_ok[None, :], other=0.0)
            gate_weight = tl.load(gate_ptrs, mask=k_ok[:, None], other=0.0)
            up_weight = tl.load(up_ptrs, mask=k_ok[:, None], other=0.0)
        gate = tl.dot(x, gate_weight, gate, input_precision="ieee")
        up = tl.dot(x, up_weight, up, input_precision="ieee")
        x_ptrs += BLOCK_K
        gate_ptrs += BLOCK_K
        up_ptrs += BLOCK_K
    h = gate * tl.sigmoid(gate) * up
    h_ptrs = h_ptr + pair[:, None].to(tl.int64) * INTER + column[None, :]
    tl.store(h_ptrs, h.to(h_ptr.dtype.element_ty), mask=row_ok[:, None] & (column[None, :] < INTER))


@triton.jit(do_not_specialize=["num_pairs", "group_m"])
def _moe_grouped_down_kernel(
    h_ptr, w2_ptr, weights_ptr, y_ptr, sorted_pairs_ptr, block_experts_ptr, num_blocks_ptr, num_pairs, group_m,
    w2_expert_stride, w2_row_stride,
    HIDDEN: tl.constexpr, INTER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, XCDS: tl.constexpr,
):  # fmt: skip
    """y[p, n] = weights[p] * (h[p] . w2[e, n]) for the pairs p of one block."""
    N_TILES: tl.constexpr = (HIDDEN + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    num_blocks = tl.load(num_blocks_ptr)
    if pid >= num_blocks * N_TILES:
        return
    block, n_tile = _tile_of_program(pid, num_blocks, group_m, N_TILES, XCDS)
    pair = tl.load(sorted_pairs_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M))
    row_ok = pair < num_pairs
    expert = tl.load(block_experts_ptr + block).to(tl.int64)
    column = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(column, HIDDEN - 1)
    k_offset = tl.arange(0, BLOCK_K)
    h_ptrs = h_ptr + (tl.minimum(pair, num_pairs - 1)[:, None] * INTER + k_offset[None, :])
    w2_ptrs = w2_ptr + expert * w2_expert_stride + (row[None, :] * w2_row_stride + k_offset[:, None])
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, INTER, BLOCK_K):
        if INTER % BLOCK_K == 0:
            h = tl.load(h_ptrs)
            weight = tl.load(w2_ptrs)
        else:
            k_ok = k_offset < INTER - k
            h = tl.load(h_ptrs, mask=k_ok[None, :], other=0.0)
            weight = tl.load(w2_ptrs, mask=k_ok[:, None], other=0.0)
        accumulator = tl.dot(h, weight, accumulator, input_precision="ieee")
        h_ptrs += BLOCK_K
        w2_ptrs += BLOCK_K
    accumulator *= tl.load(weights_ptr + pair, mask=row_ok, other=0.0).to(tl.float32)[:, None]
    y_ptrs = y_ptr + pair[:, None].to(tl.int64) * HIDDEN + column[None, :]
    tl.store(y_ptrs, accumulator.to(y_ptr.dtype.element_ty), mask=row_ok[:, None] & (column[None, :] < HIDDEN))


@triton.jit
def _moe_sum_kernel(
    y_ptr, ids_ptr, residual_ptr, out_ptr, residual_row_stride,
    HIDDEN: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[t] = residual[t] + sum over j of y[t * top_k + j], in this order; pairs without an expert count nothing."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column_ok = column < HIDDEN
    if residual_ptr is None:
        total = tl.zeros((BLOCK,), tl.float32)
    else:
        total = tl.load(residual_ptr + token * residual_row_stride + column, mask=column_ok, other=0.0).to(tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        expert = tl.load(ids_ptr + pair).to(tl.int32)
        is_known = (expert >= 0) & (expert < EXPERTS)
        total += tl.load(y_ptr + pair * HIDDEN + column, mask=column_ok & is_known, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * HIDDEN + column, total.to(out_ptr.dtype.element_ty), mask=column_ok)


def plan_moe_grouped(
    x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
    residual: torch.Tensor | None, *, config: Config, device: Device,
) -> Plan:  # fmt: skip
    """Five launches: count, scatter, gate_up, down, sum; none without tokens. Shapes and errors as in `moe_grouped`."""
    _validate(x, w13, w2, ids, weights, residual)
    tokens, hidden = x.shape
    experts, _, inter = w2.shape
    num_pairs = ids.numel()
    out = torch.empty(tokens, hidden, dtype=x.dtype, device=x.device)
    if not tokens:
        return Plan((), (out,))
    blocks = {name: config.integer(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")}
    align = plan_moe_align(ids, experts=experts, block_m=blocks["BLOCK_M"])
    h = torch.empty(num_pairs, inter, dtype=x.dtype, device=x.device)
    y = torch.empty(num_pairs, hidden, dtype=x.dtype, device=x.device)

    def gemm(fn: object, columns: int, args: dict[str, Argument], dims: dict[str, int]) -> Launch:
        grid = (align.max_blocks * triton.cdiv(columns, blocks["BLOCK_N"]),)
        xcds = device.xcds if config.integer("XCD_REMAP", 0) else 1
        shared = _alignment_args(align, num_pairs, config.integer("GROUP_M"))
        constexprs = {"HIDDEN": hidden, "INTER": inter, **dims, **blocks, "XCDS": xcds}
        return Launch(fn, grid, {**args, **shared}, constexprs, compile_options(config))

    gate_up = gemm(
        _moe_grouped_gate_up_kernel,
        inter,
        {
            "x_ptr": x, "w13_ptr": w13, "h_ptr": h, "x_row_stride": x.stride(0),
            "w13_expert_stride": w13.stride(0), "w13_row_stride": w13.stride(1),
        },
        {"TOP_K": ids.shape[1]},
    )  # fmt: skip
    down = gemm(
        _moe_grouped_down_kernel,
        hidden,
        {
            "h_ptr": h, "w2_ptr": w2, "weights_ptr": weights, "y_ptr": y,
            "w2_expert_stride": w2.stride(0), "w2_row_stride": w2.stride(1),
        },
        {},
    )  # fmt: skip
    block = min(_SUM_BLOCK, triton.next_power_of_2(hidden))
    total = Launch(
        _moe_sum_kernel,
        (tokens, triton.cdiv(hidden, block)),
        {
            "y_ptr": y, "ids_ptr": ids, "residual_ptr": residual, "out_ptr": out,
            "residual_row_stride": hidden if residual is None else residual.stride(0),
        },
        {"HIDDEN": hidden, "EXPERTS": experts, "TOP_K": ids.shape[1], "BLOCK": block},
        {"num_warps": max(1, block * x.element_size() // (_LOAD_BYTES * device.arch.wave_size))},
    )  # fmt: skip
    return Plan((*align.launches, gate_up, down, total), (out,))


def _alignment_args(align: Alignment, num_pairs: int, group_m: int) -> dict[str, Argument]:
    return {
        "sorted_pairs_ptr": align.sorted_pairs, "block_experts_ptr": align.block_experts,
        "num_blocks_ptr": align.num_blocks, "num_pairs": num_pairs, "group_m": group_m,
    }  # fmt: skip


def _validate(
    x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
    residual: torch.Tensor | None,
) -> None:  # fmt: skip
    if x.ndim != 2 or w2.ndim != 3 or ids.ndim != 2 or min(*w2.shape, ids.shape[1]) < 1:
        shapes = f"{tuple(x.shape)}, {tuple(w2.shape)}, {tuple(ids.shape)}"
        raise ValueError(f"x, w2 and ids have the shapes {shapes}, expected [T, H], [E, H, I], [T, k]")
    (tokens, hidden), (experts, _, inter), top_k = x.shape, w2.shape, ids.shape[1]
    expected: dict[str, tuple[torch.Tensor, tuple[int, ...]]] = {
        "w13": (w13, (experts, 2 * inter, hidden)),
        "w2": (w2, (experts, hidden, inter)),
        "ids": (ids, (tokens, top_k)),
        "weights": (weights, (tokens, top_k)),
    }
    if residual is not None:
        expected["residual"] = (residual, (tokens, hidden))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected {shape}")
    same_dtype = {"w13": w13, "w2": w2} | ({} if residual is None else {"residual": residual})
    for name, tensor in same_dtype.items():
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, x is {x.dtype}: they must be equal")
    if x.dtype not in TORCH_DTYPES.values():
        raise ValueError(f"x is {x.dtype}, expected one of {', '.join(map(str, TORCH_DTYPES.values()))}")
    if ids.dtype not in (torch.int32, torch.int64) or not weights.dtype.is_floating_point:
        raise ValueError(f"ids are {ids.dtype} and weights {weights.dtype}, expected int32 or int64 and a float type")
    for name, tensor in {"x": x, **same_dtype}.items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} has the stride {tensor.stride(-1)} on its last axis, expected 1")
    if not ids.is_contiguous() or not weights.is_contiguous():
        raise ValueError("ids and weights must be contiguous")
    reach = {"x": tokens * x.stride(0), "h": ids.numel() * inter, "w13[0]": 2 * inter * w13.stride(1),
             "w2[0]": hidden * w2.stride(1)}  # fmt: skip
    for name, elements in reach.items():
        if elements > _MAX_OFFSET:
            raise ValueError(
                f"{name} spans {elements} elements, at most {_MAX_OFFSET} can be addressed: split the batch"
            )


def moe_grouped(
    x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
    residual: torch.Tensor | None = None, *, config: Config, device: Device,
) -> torch.Tensor:  # fmt: skip
    """out[t] = residual[t] + sum over j of weights[t, j] * W2[e] (silu(W1[e] x[t]) * (W3[e] x[t])), e = ids[t, j].

    x [T, H], w13 [E, 2I, H] (gate rows first), w2 [E, H, I], ids [T, k] int32 or int64, weights [T, k], residual [T, H]
    or None -> [T, H] in x's dtype. An id outside 0..E-1 (an expert of another rank) adds nothing. Accumulates in fp32
    and rounds to x's dtype after gate_up and after down; the sum over k is fp32 in the order of j, so equal inputs give
    equal bits. Raises ValueError for shapes, dtypes, strides or sizes it cannot compute. Layout and blocks after vLLM's
    `fused_moe`.
    """
    return plan_moe_grouped(x, w13, w2, ids, weights, residual, config=config, device=device).run()[0]


def moe_grouped_reference(
    x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor]:  # fmt: skip
    """The formula of `moe_grouped` in fp32, expert by expert, without rounding in between."""
    out = torch.zeros_like(x, dtype=torch.float32) if residual is None else residual.float().clone()
    for expert in range(w2.shape[0]):
        token, choice = (ids == expert).nonzero(as_tuple=True)
        if len(token):
            gate, up = (x[token].float() @ w13[expert].float().T).chunk(2, dim=-1)
            y = (torch.nn.functional.silu(gate) * up) @ w2[expert].float().T
            out.index_add_(0, token, y * weights[token, choice].float()[:, None])
    return (out.to(x.dtype),)


def make_moe_grouped_inputs(problem: MoeProblem, *, torch_device: str, seed: int) -> Inputs:
    """x of order 1, weights that keep that order, i.i.d. uniform distinct experts per token, no residual."""
    generator = make_generator(torch_device, seed)
    tokens, experts, top_k = problem.batch, problem.experts, problem.top_k
    hidden, inter, dtype = problem.hidden, problem.inter, TORCH_DTYPES[problem.dtype]

    def normal(*shape: int, dtype: torch.dtype = dtype, scale: float = 1.0) -> torch.Tensor:
        return random_tensor(*shape, dtype=dtype, torch_device=torch_device, generator=generator, scale=scale)

    x = normal(tokens, hidden)
    w13 = normal(experts, 2 * inter, hidden, scale=hidden**-0.5)
    w2 = normal(experts, hidden, inter, scale=inter**-0.5)
    ids = random_expert_ids(tokens, experts, top_k, torch_device=torch_device, generator=generator)
    weights = normal(tokens, top_k, dtype=torch.float32).softmax(dim=-1).to(dtype)
    return x, w13, w2, ids, weights, None


MOE_GROUPED_SPEC = KernelSpec(
    "moe_grouped", MOE_GROUPED, plan_moe_grouped, moe_grouped_reference, make_moe_grouped_inputs
)
