"""Router: softmax over a token's expert logits, its top-k experts and their weights."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.router import ROUTER, RouterProblem
from .launch import Launch, Plan, compile_options
from .spec import TORCH_DTYPES, Inputs, KernelSpec, make_generator, random_tensor


@triton.jit(do_not_specialize=["num_tokens"])
def _router_kernel(
    logits_ptr, weights_ptr, ids_ptr, num_tokens, logits_row_stride,
    EXPERTS: tl.constexpr, EXPERTS_POW2: tl.constexpr, TOP_K: tl.constexpr, TOP_K_POW2: tl.constexpr,
    RENORMALIZE: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """weights[t, j] = softmax(logits[t])[e], e = ids[t, j] = the j-th largest, equals by lowest index."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    token_ok = token < num_tokens
    expert = tl.arange(0, EXPERTS_POW2)
    load_ok = token_ok[:, None] & (expert < EXPERTS)[None, :]
    logits_ptrs = logits_ptr + token[:, None] * logits_row_stride + expert[None, :]
    logits = tl.load(logits_ptrs, mask=load_ok, other=float("-inf")).to(tl.float32)
    # Rows behind the last token get zeros, so that no -inf - -inf arises.
    logits = tl.where(token_ok[:, None], logits, 0.0)
    largest = tl.max(logits, axis=1)
    denominator = tl.sum(tl.exp(logits - largest[:, None]), axis=1)
    # The order is that of the logits, the same on every GPU whatever its exp; an expert that is out (-inf or NaN) ranks
    # last but before the columns behind the last expert, so that every id is a real expert and none comes twice.
    lowest = -3.4028234663852886e38
    ranked = tl.where(logits > lowest, logits, lowest)
    ranked = tl.where((expert < EXPERTS)[None, :], ranked, float("-inf"))
    choice = tl.arange(0, TOP_K_POW2)
    weights = tl.zeros((BLOCK_T, TOP_K_POW2), tl.float32)
    ids = tl.zeros((BLOCK_T, TOP_K_POW2), tl.int32)
    for j in tl.static_range(TOP_K):
        best, best_id = tl.max(ranked, axis=1, return_indices=True, return_indices_tie_break_left=True)
        weight = tl.exp(best - largest) / denominator
        weights = tl.where((choice == j)[None, :], weight[:, None], weights)
        ids = tl.where((choice == j)[None, :], best_id[:, None], ids)
        ranked = tl.where(expert[None, :] == best_id[:, None], float("-inf"), ranked)
    if RENORMALIZE:
        weights = weights / tl.sum(weights, axis=1)[:, None]
    out = token[:, None] * TOP_K + choice[None, :]
    store_ok = token_ok[:, None] & (choice < TOP_K)[None, :]
    tl.store(weights_ptr + out, weights.to(weights_ptr.dtype.element_ty), mask=store_ok)
    tl.store(ids_ptr + out, ids.to(tl.int64), mask=store_ok)


def plan_router(
    logits: torch.Tensor, top_k: int, renormalize: bool, weights_dtype: torch.dtype | None = None,
    *, config: Config, device: Device,
) -> Plan:  # fmt: skip
    """One launch, none without tokens. Shapes and errors as in `router`."""
    if logits.ndim != 2:
        raise ValueError(f"logits have the shape {tuple(logits.shape)}, expected [tokens, experts]")
    tokens, experts = logits.shape
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k {top_k} is outside 1..{experts} experts")
    weights_dtype = weights_dtype or logits.dtype
    for name, dtype in (("logits", logits.dtype), ("weights", weights_dtype)):
        if dtype not in TORCH_DTYPES.values():
            raise ValueError(f"{name} are {dtype}, expected one of {', '.join(map(str, TORCH_DTYPES.values()))}")
    if logits.stride(-1) != 1:
        raise ValueError(f"logits have the stride {logits.stride(-1)} on their last axis, expected 1")
    weights = torch.empty(tokens, top_k, dtype=weights_dtype, device=logits.device)
    ids = torch.empty(tokens, top_k, dtype=torch.int64, device=logits.device)
    if not tokens:
        return Plan((), (weights, ids))
    block_t = config.integer("BLOCK_T")
    launch = Launch(
        _router_kernel,
        (triton.cdiv(tokens, block_t),),
        {
            "logits_ptr": logits, "weights_ptr": weights, "ids_ptr": ids, "num_tokens": tokens,
            "logits_row_stride": logits.stride(0),
        },
        {
            "EXPERTS": experts, "EXPERTS_POW2": triton.next_power_of_2(experts), "TOP_K": top_k,
            "TOP_K_POW2": triton.next_power_of_2(top_k), "RENORMALIZE": bool(renormalize), "BLOCK_T": block_t,
        },
        compile_options(config),
    )  # fmt: skip
    return Plan((launch,), (weights, ids))


def router(
    logits: torch.Tensor, top_k: int, renormalize: bool, weights_dtype: torch.dtype | None = None,
    *, config: Config, device: Device,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """weights = softmax(logits) at the top_k largest logits, divided by their sum if renormalize; and their ids.

    logits [T, E] -> weights [T, k], ids [T, k] int64, largest first, equal logits by lowest id. The softmax is over all
    E in fp32; the weights are rounded to `weights_dtype` at the end, by default that of the logits. A row with a NaN
    gets NaN weights and valid ids. Raises ValueError for shapes, dtypes or strides it cannot compute. The formula, the
    rounding and the types of Qwen3-MoE's router in Hugging Face transformers (models/qwen3_moe/modeling_qwen3_moe.py).
    """
    weights, ids = plan_router(logits, top_k, renormalize, weights_dtype, config=config, device=device).run()
    return weights, ids


def router_reference(
    logits: torch.Tensor, top_k: int, renormalize: bool, weights_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula of `router` in fp64, rounded at the end."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = logits.double().softmax(dim=-1).gather(-1, order)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(weights_dtype or logits.dtype), order


def make_router_inputs(problem: RouterProblem, *, torch_device: str, seed: int) -> Inputs:
    """Normal logits [batch, experts] with the deviation 2, about what trained routers give."""
    generator = make_generator(torch_device, seed)
    logits = random_tensor(
        problem.batch, problem.experts, dtype=TORCH_DTYPES[problem.dtype], torch_device=torch_device,
        generator=generator, scale=2.0,
    )  # fmt: skip
    return logits, problem.top_k, bool(problem.renormalize)


ROUTER_SPEC = KernelSpec("router", ROUTER, plan_router, router_reference, make_router_inputs)
