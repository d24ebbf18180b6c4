"""Attention of whole prompts: flash attention with grouped query heads, causal with an optional window, or masked.

    out[b, i, h] = softmax over j of (scale * q[b, i, h] . k[b, j, h // G]) v[b, j, h // G],   p_i - window < j <= p_i

with p_i = S - T + i: the T queries are the last of S keys, so a prompt can follow a cached prefix. A boolean mask takes
the place of that rule. The online softmax is FlashAttention-2's (arXiv 2307.08691): one program holds BLOCK_M queries
of one head and walks the keys once, or with a mask those in use (`attention_mask.py`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.attention import AttentionPrefillProblem
from ..search_spaces.attention_prefill import ATTENTION_PREFILL
from ..search_spaces.config import Config
from .attention_mask import block_ranges, mask_ranges_launch
from .attention_operands import check_group, check_heads, check_like, check_mask, row_strides
from .launch import Launch, Plan, compile_options
from .spec import TORCH_DTYPES, KernelSpec, make_generator, random_tensor


@triton.jit
def _attend_keys(
    q, k_ptr, v_ptr, k_stride, v_stride, mask_ptr, mask_rows, seen_begin, seen_end,
    begin, end, keys, positions, peak, total, acc, scale_log2, window,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys begin..end in steps of BLOCK_N; unmasked, every row sees every key of the range.

    A row sees up to its position, or what its row of a mask says, mask_ptr + mask_rows [BLOCK_M]. That is loaded
    outside seen_begin..seen_end only.
    """
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
            if mask_ptr is not None:
                if (start < seen_begin) | (start + BLOCK_N > seen_end):
                    is_seen = tl.load(mask_ptr + start + mask_rows[:, None] + rows[None, :]) != 0
                    scores = tl.where(is_seen, scores, float("-inf"))
            else:
                distance = positions[:, None] - (start + rows)[None, :]
                is_seen = distance >= 0
                if HAS_WINDOW:
                    is_seen = is_seen & (distance < window)
                scores = tl.where(is_seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        if HAS_WINDOW or mask_ptr is not None:
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
    q_ptr, k_ptr, v_ptr, mask_ptr, ranges_ptr, out_ptr, q_batch_stride, q_token_stride, q_head_stride,
    k_batch_stride, k_token_stride, k_head_stride, v_batch_stride, v_token_stride, v_head_stride,
    mask_keys, tokens, keys, window, scale,
    Q_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IS_CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr,
    XCDS: tl.constexpr,
):  # fmt: skip
    """Program order: heads fastest, the longest rows first; on AMD an XCD keeps to its own share of the heads.

    Sharing an L2 among the programs of one head: arXiv 2511.02132.
    """
    pid = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    place = pid % Q_HEADS
    head = (place % XCDS) * (Q_HEADS // XCDS) + place // XCDS
    first_row = (tl.cdiv(tokens, BLOCK_M) - 1 - pid // Q_HEADS) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    mask = (rows < tokens - first_row)[:, None] & (cols < HEAD_DIM)[None, :]
    q_base = q_ptr + sequence * q_batch_stride + first_row.to(tl.int64) * q_token_stride + head * q_head_stride
    q = tl.load(q_base + rows[:, None] * q_token_stride + cols[None, :], mask=mask, other=0.0)
    k_ptr += sequence * k_batch_stride + (head // GROUP).to(tl.int64) * k_head_stride
    v_ptr += sequence * v_batch_stride + (head // GROUP).to(tl.int64) * v_head_stride

    first_position = keys - tokens + first_row
    positions = first_position + rows
    end = tl.minimum(first_position + BLOCK_M, keys)
    scale_log2 = scale * 1.4426950408889634
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    mask_rows, seen_begin, seen_end = rows, 0, 0
    if mask_ptr is not None:
        masked_begin, end, seen_begin, seen_end = block_ranges(ranges_ptr, tokens, first_row, BLOCK_M, BLOCK_N)
        mask_ptr += (sequence * tokens + first_row) * mask_keys
        mask_rows = tl.minimum(rows, tokens - first_row - 1) * mask_keys
    elif HAS_WINDOW:
        # One masked loop: unmasked middle blocks would save a few operations per score, but the third copy of the
        # loop spills scalar registers on gfx942.
        masked_begin = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
    else:
        masked_begin = (first_position + 1) // BLOCK_N * BLOCK_N
        if not IS_CAUSAL:
            masked_begin = keys // BLOCK_N * BLOCK_N
            end = keys
            positions = tl.zeros((BLOCK_M,), tl.int32) + keys - 1
        peak, total, acc = _attend_keys(
            q, k_ptr, v_ptr, k_token_stride, v_token_stride, None, rows, 0, 0, masked_begin * 0, masked_begin, keys,
            positions, peak, total, acc, scale_log2, window, HEAD_DIM, BLOCK_D, BLOCK_N, False, HAS_WINDOW,
        )  # fmt: skip
    peak, total, acc = _attend_keys(
        q, k_ptr, v_ptr, k_token_stride, v_token_stride, mask_ptr, mask_rows, seen_begin, seen_end, masked_begin, end,
        keys, positions, peak, total, acc, scale_log2, window, HEAD_DIM, BLOCK_D, BLOCK_N, True, HAS_WINDOW,
    )  # fmt: skip
    out_base = out_ptr + (sequence * tokens + first_row) * (Q_HEADS * HEAD_DIM) + head * HEAD_DIM
    # Rows past the prompt may see nothing and are not stored; rows that a mask hides from everything are zeros.
    result = (acc / tl.where(total == 0.0, 1.0, total)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_base + rows[:, None] * (Q_HEADS * HEAD_DIM) + cols[None, :], result, mask=mask)


def plan_attention_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int,
    mask: torch.Tensor | None = None,
    is_causal: bool = True,
    *,
    config: Config,
    device: Device,
) -> Plan:
    """Launches of attention of whole prompts.

    q [B, T, Hq, D], k and v [B, S, Hkv, D] of q's dtype, any strides but a unit stride over D: Hugging Face's
    [B, H, T, D] is passed as `tensor.transpose(1, 2)`. scale > 0. Without a mask: is_causal, query i sees the keys up
    to S - T + i (bottom-right aligned, S >= T), with a window > 0 the last `window` of them; or, not is_causal, all
    keys. mask [B, T, S] bool, True = attend, unit stride over S, any over B and T (0 for one mask of all sequences): it
    alone says what is seen, is_causal is not looked at, and window must be 0. A query without any key gives zeros;
    hidden v must be finite. Output [B, T, Hq, D]. Raises ValueError for anything else.
    """
    check_heads("q", q, "batch", "tokens")
    check_heads("k", k, "batch", "keys")
    batch, tokens, q_heads, head_dim = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    check_like("k", k, (batch, keys, kv_heads, head_dim), q.dtype)
    check_like("v", v, (batch, keys, kv_heads, head_dim), q.dtype)
    check_group(q_heads, kv_heads)
    if scale <= 0 or window < 0:
        raise ValueError(f"scale {scale} must be positive and window {window} must not be negative")
    if mask is not None:
        check_mask(mask, batch, tokens, keys)
    if window and (mask is not None or not is_causal):
        raise ValueError(f"window {window} belongs to the causal rule: a mask says itself what is seen")
    if mask is None and is_causal and keys < tokens:
        raise ValueError(f"{tokens} queries cannot be the last of {keys} keys")
    block_m, block_n = config.integer("BLOCK_M"), config.integer("BLOCK_N")
    ranges, mask_copy, scan = (None, None, ()) if mask is None else mask_ranges_launch(mask, block_n)
    xcds = device.xcds if q_heads % device.xcds == 0 else 1
    out = torch.empty(batch, tokens, q_heads, head_dim, dtype=q.dtype, device=q.device)
    attend = Launch(
        fn=_attention_prefill_kernel,
        grid=(triton.cdiv(tokens, block_m) * q_heads, batch),
        args={
            "q_ptr": q, "k_ptr": k, "v_ptr": v, "mask_ptr": mask_copy, "ranges_ptr": ranges, "out_ptr": out,
            **row_strides("q", q, "batch", "token", "head"),
            **row_strides("k", k, "batch", "token", "head"),
            **row_strides("v", v, "batch", "token", "head"),
            "mask_keys": None if mask_copy is None else mask_copy.shape[2],
            "tokens": tokens, "keys": keys, "window": window, "scale": float(scale),
        },
        constexprs={
            "Q_HEADS": q_heads, "GROUP": q_heads // kv_heads, "HEAD_DIM": head_dim,
            "BLOCK_D": max(16, triton.next_power_of_2(head_dim)), "BLOCK_M": block_m,
            "BLOCK_N": block_n, "IS_CAUSAL": is_causal, "HAS_WINDOW": window > 0, "XCDS": xcds,
        },
        options=compile_options(config),
    )  # fmt: skip
    return Plan((*scan, attend), (out,))


def attention_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int,
    mask: torch.Tensor | None = None,
    is_causal: bool = True,
    *,
    config: Config,
    device: Device,
) -> torch.Tensor:
    """Run attention of whole prompts: see `plan_attention_prefill`."""
    return plan_attention_prefill(q, k, v, scale, window, mask, is_causal, config=config, device=device).run()[0]


def attention_prefill_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int,
    mask: torch.Tensor | None = None,
    is_causal: bool = True,
) -> tuple[torch.Tensor]:
    """The formula in fp32, one head at a time to bound the memory of the scores; output in q's dtype."""
    batch, tokens, q_heads, _ = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    position = torch.arange(keys - tokens, keys, device=q.device)[:, None]
    distance = position - torch.arange(keys, device=q.device)[None, :]
    is_hidden = (distance < 0) | (distance >= window) if window > 0 else distance < 0
    if not is_causal:
        is_hidden = torch.zeros_like(is_hidden)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for sequence in range(batch):
        hidden = is_hidden if mask is None else ~mask[sequence]
        for head in range(q_heads):
            kv_head = head // (q_heads // kv_heads)
            scores = (q[sequence, :, head].float() @ k[sequence, :, kv_head].float().T) * scale
            weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
            weights = weights.masked_fill(hidden.all(-1, keepdim=True), 0.0)
            out[sequence, :, head] = (weights @ v[sequence, :, kv_head].float()).to(q.dtype)
    return (out,)


def _make_inputs(problem: AttentionPrefillProblem, *, torch_device: str, seed: int) -> tuple[object, ...]:
    """q, k, v of one sequence as views of one [T, qkv] product, as the QKV projection leaves them."""
    generator = make_generator(torch_device, seed)
    heads = problem.q_heads + 2 * problem.kv_heads
    row = random_tensor(
        1, problem.batch, heads, problem.head_dim,
        dtype=TORCH_DTYPES[problem.dtype], torch_device=torch_device, generator=generator,
    )  # fmt: skip
    q, k, v = row.split((problem.q_heads, problem.kv_heads, problem.kv_heads), 2)
    return q, k, v, problem.head_dim**-0.5, problem.window


ATTENTION_PREFILL_SPEC = KernelSpec(
    name="attention_prefill",
    space=ATTENTION_PREFILL,
    plan=plan_attention_prefill,
    reference=attention_prefill_reference,
    make_inputs=_make_inputs,
)
