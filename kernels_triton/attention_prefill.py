"""Causal attention of one prompt: flash attention with grouped query heads and an optional sliding window.

    out[i, h] = softmax over j of (scale * q[i, h] . k[j, h // G]) v[j, h // G],   p_i - window < j <= p_i

with p_i = S - T + i: the T queries are the last of S keys, so a prompt can follow a cached prefix. The online softmax
is FlashAttention-2's (arXiv 2307.08691): one program holds BLOCK_M queries of one head and walks the keys once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.attention import AttentionPrefillProblem
from ..search_spaces.attention_prefill import ATTENTION_PREFILL
from ..search_spaces.config import Config
from .attention_operands import check_group, check_heads, check_like, row_strides
from .launch import Launch, Plan, compile_options
from .spec import TORCH_DTYPES, KernelSpec, make_generator, random_tensor


@triton.jit
def _attend_keys(
    q, k_ptr, v_ptr, k_stride, v_stride, begin, end, keys, positions, peak, total, acc, scale_log2, window,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys begin..end in steps of BLOCK_N; unmasked, every row sees every key of the range."""
    rows = tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_D)
    k_offsets = rows[:, None] * k_stride + cols[None, :]
    v_offsets = rows[:, None] * v_stride + cols[None, :]
    k_ptr += begin.to(tl.int64) * k_stride
    v_ptr += begin.to(tl.int64) * v_stride
    col_mask = (cols < HEAD_DIM)[None, :]
    for start in tl.range(begin, end, BLOCK_N):
        if IS_MASKED:
            mask = col_mask & (rows < keys - start)[:, None]
            k = tl.load(k_ptr + k_offsets, mask=mask, other=0.0)
        elif HEAD_DIM != BLOCK_D:
            k = tl.load(k_ptr + k_offsets, mask=col_mask, other=0.0)
        else:
            k = tl.load(k_ptr + k_offsets)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if IS_MASKED:
            distance = positions[:, None] - (start + rows)[None, :]
            is_seen = distance >= 0
            if HAS_WINDOW:
                is_seen = is_seen & (distance < window)
            scores = tl.where(is_seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        if HAS_WINDOW:
            # The first keys of the range lie before the window of the last rows: nothing is seen yet.
            offset = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        else:
            offset = new_peak
        weights = tl.exp2(scores * scale_log2 - offset[:, None])
        decay = tl.exp2(peak - offset)
        total = total * decay + tl.sum(weights, 1)
        if IS_MASKED:
            v = tl.load(v_ptr + v_offsets, mask=mask, other=0.0)
        elif HEAD_DIM != BLOCK_D:
            v = tl.load(v_ptr + v_offsets, mask=col_mask, other=0.0)
        else:
            v = tl.load(v_ptr + v_offsets)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = new_peak
        k_ptr += BLOCK_N * k_stride
        v_ptr += BLOCK_N * v_stride
    return peak, total, acc


@triton.jit(do_not_specialize=["tokens", "keys", "window"])
def _attention_prefill_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, q_token_stride, q_head_stride, k_token_stride, k_head_stride,
    v_token_stride, v_head_stride, tokens, keys, window, scale,
    Q_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr, XCDS: tl.constexpr,
):  # fmt: skip
    """Program order: heads fastest, the longest rows first; on AMD an XCD keeps to its own share of the heads.

    Sharing an L2 among the programs of one head: arXiv 2511.02132.
    """
    pid = tl.program_id(0)
    place = pid % Q_HEADS
    head = (place % XCDS) * (Q_HEADS // XCDS) + place // XCDS
    first_row = (tl.cdiv(tokens, BLOCK_M) - 1 - pid // Q_HEADS) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    mask = (rows < tokens - first_row)[:, None] & (cols < HEAD_DIM)[None, :]
    q_base = q_ptr + first_row.to(tl.int64) * q_token_stride + head * q_head_stride
    q = tl.load(q_base + rows[:, None] * q_token_stride + cols[None, :], mask=mask, other=0.0)
    k_ptr += (head // GROUP).to(tl.int64) * k_head_stride
    v_ptr += (head // GROUP).to(tl.int64) * v_head_stride

    first_position = keys - tokens + first_row
    positions = first_position + rows
    end = tl.minimum(first_position + BLOCK_M, keys)
    scale_log2 = scale * 1.4426950408889634
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if HAS_WINDOW:
        # One masked loop: unmasked middle blocks would save a few operations per score, but the third copy of the
        # loop spills scalar registers on gfx942.
        masked_begin = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
    else:
        masked_begin = (first_position + 1) // BLOCK_N * BLOCK_N
        peak, total, acc = _attend_keys(
            q, k_ptr, v_ptr, k_token_stride, v_token_stride, masked_begin * 0, masked_begin, keys, positions, peak,
            total, acc, scale_log2, window, HEAD_DIM, BLOCK_D, BLOCK_N, False, HAS_WINDOW,
        )  # fmt: skip
    peak, total, acc = _attend_keys(
        q, k_ptr, v_ptr, k_token_stride, v_token_stride, masked_begin, end, keys, positions, peak,
        total, acc, scale_log2, window, HEAD_DIM, BLOCK_D, BLOCK_N, True, HAS_WINDOW,
    )  # fmt: skip
    out_base = out_ptr + first_row.to(tl.int64) * (Q_HEADS * HEAD_DIM) + head * HEAD_DIM
    # Rows past the prompt may see nothing; they are not stored.
    result = (acc / tl.where(total == 0.0, 1.0, total)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_base + rows[:, None] * (Q_HEADS * HEAD_DIM) + cols[None, :], result, mask=mask)


def plan_attention_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int,
    *,
    config: Config,
    device: Device,
) -> Plan:
    """Launch of causal attention.

    q [T, Hq, D], k and v [S, Hkv, D] of q's dtype with S >= T, any strides but a unit stride over D: a sequence of
    Hugging Face's [B, H, T, D] is passed as `tensor[b].transpose(0, 1)`. scale > 0, window 0 or the number of keys
    each query sees, itself included. Output [T, Hq, D]. Raises ValueError for anything else.
    """
    check_heads("q", q)
    check_heads("k", k)
    tokens, q_heads, head_dim = q.shape
    keys, kv_heads = k.shape[0], k.shape[1]
    check_like("k", k, (keys, kv_heads, head_dim), q.dtype)
    check_like("v", v, (keys, kv_heads, head_dim), q.dtype)
    check_group(q_heads, kv_heads)
    if keys < tokens:
        raise ValueError(f"{tokens} queries cannot be the last of {keys} keys")
    if scale <= 0 or window < 0:
        raise ValueError(f"scale {scale} must be positive and window {window} must not be negative")
    block_m = config.integer("BLOCK_M")
    xcds = device.xcds if q_heads % device.xcds == 0 else 1
    out = torch.empty(tokens, q_heads, head_dim, dtype=q.dtype, device=q.device)
    launch = Launch(
        fn=_attention_prefill_kernel,
        grid=(triton.cdiv(tokens, block_m) * q_heads,),
        args={
            "q_ptr": q, "k_ptr": k, "v_ptr": v, "out_ptr": out,
            **row_strides("q", q, "token", "head"),
            **row_strides("k", k, "token", "head"),
            **row_strides("v", v, "token", "head"),
            "tokens": tokens, "keys": keys, "window": window, "scale": float(scale),
        },
        constexprs={
            "Q_HEADS": q_heads, "GROUP": q_heads // kv_heads, "HEAD_DIM": head_dim,
            "BLOCK_D": max(16, triton.next_power_of_2(head_dim)), "BLOCK_M": block_m,
            "BLOCK_N": config.integer("BLOCK_N"), "HAS_WINDOW": window > 0, "XCDS": xcds,
        },
        options=compile_options(config),
    )  # fmt: skip
    return Plan((launch,), (out,))


def attention_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int,
    *,
    config: Config,
    device: Device,
) -> torch.Tensor:
    """Run causal attention: see `plan_attention_prefill`."""
    return plan_attention_prefill(q, k, v, scale, window, config=config, device=device).run()[0]


def attention_prefill_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int
) -> tuple[torch.Tensor]:
    """The formula in fp32, one head at a time to bound the memory of the scores; output in q's dtype."""
    tokens, q_heads, _ = q.shape
    keys, kv_heads, _ = k.shape
    position = torch.arange(keys - tokens, keys, device=q.device)[:, None]
    distance = position - torch.arange(keys, device=q.device)[None, :]
    is_hidden = (distance < 0) | (distance >= window) if window > 0 else distance < 0
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for head in range(q_heads):
        kv_head = head // (q_heads // kv_heads)
        scores = (q[:, head].float() @ k[:, kv_head].float().T) * scale
        weights = torch.softmax(scores.masked_fill(is_hidden, float("-inf")), -1)
        out[:, head] = (weights @ v[:, kv_head].float()).to(q.dtype)
    return (out,)


def _make_inputs(problem: AttentionPrefillProblem, *, torch_device: str, seed: int) -> tuple[object, ...]:
    """q, k, v as views of one [T, qkv] product, as the QKV projection leaves them."""
    generator = make_generator(torch_device, seed)
    heads = problem.q_heads + 2 * problem.kv_heads
    row = random_tensor(
        problem.batch, heads, problem.head_dim,
        dtype=TORCH_DTYPES[problem.dtype], torch_device=torch_device, generator=generator,
    )  # fmt: skip
    q, k, v = row.split((problem.q_heads, problem.kv_heads, problem.kv_heads), 1)
    return q, k, v, problem.head_dim**-0.5, problem.window


ATTENTION_PREFILL_SPEC = KernelSpec(
    name="attention_prefill",
    space=ATTENTION_PREFILL,
    plan=plan_attention_prefill,
    reference=attention_prefill_reference,
    make_inputs=_make_inputs,
)
