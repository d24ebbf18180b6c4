"""RMSNorm of every query and key head and rotary position embedding, q and k in one launch.

The heads of all tokens are one list of rows, first those of q, then those of k; a program takes BLOCK_H consecutive
rows, so that neither few heads nor an odd number of them leaves threads idle. A head is held as its two halves, which
are each other's partners in RoPE: nothing is loaded twice and nothing moves between threads but the sum of squares.
Every row loads its cos, sin and weight again, from the nearest cache, because one vector for many rows goes through
shared memory in programs of one warp; the compiled code has neither that nor a barrier. At 64 bytes a clock and unit
(the figure of CDNA 2) this is a quarter of an MI300X's L1 bandwidth when HBM is the limit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.qk_norm_rope import QK_NORM_ROPE, QkNormRopeProblem
from .attention_operands import check_like
from .launch import Launch, Plan, compile_options
from .norm_rope import norm_rope_reference, rotate, scale_head
from .spec import TORCH_DTYPES, Inputs, KernelSpec, make_generator, random_tensor

EPS = 1e-6
_MAX_OFFSET = 2**31 - 1


@triton.jit
def _norm_rope_rows(
    x_ptr, y_ptr, weight_ptr, cos_ptr, sin_ptr, block, tokens, x_token_stride, x_head_stride, cos_token_stride,
    sin_token_stride, eps, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows block * BLOCK_H and following of one sequence; row = token * HEADS + head."""
    HALF: tl.constexpr = HEAD_DIM // 2
    first_row = block * BLOCK_H
    first_token = first_row // HEADS
    rows = tl.arange(0, BLOCK_H)
    # Offsets from the first token of the program fit 32 bits; those from the first of the sequence need not.
    row_in_token = first_row % HEADS + rows
    token = row_in_token // HEADS
    head = row_in_token % HEADS
    columns = tl.arange(0, BLOCK_D)
    column_ok = columns < HALF
    mask = (first_row + rows < tokens * HEADS)[:, None] & column_ok[None, :]
    x_ptrs = x_ptr + first_token.to(tl.int64) * x_token_stride
    x_ptrs += (token * x_token_stride + head * x_head_stride)[:, None] + columns[None, :]
    dtype = x_ptr.dtype.element_ty
    low = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(x_ptrs + HALF, mask=mask, other=0.0).to(tl.float32)
    cos_ptrs = cos_ptr + first_token.to(tl.int64) * cos_token_stride
    cos_ptrs += (token * cos_token_stride)[:, None] + columns[None, :]
    sin_ptrs = sin_ptr + first_token.to(tl.int64) * sin_token_stride
    sin_ptrs += (token * sin_token_stride)[:, None] + columns[None, :]
    cos_low = tl.load(cos_ptrs, mask=mask, other=0.0)
    cos_high = tl.load(cos_ptrs + HALF, mask=mask, other=0.0)
    sin_low = tl.load(sin_ptrs, mask=mask, other=0.0)
    sin_high = tl.load(sin_ptrs + HALF, mask=mask, other=0.0)
    if weight_ptr is not None:
        inverse_rms = tl.rsqrt(tl.sum(low * low + high * high, 1) / HEAD_DIM + eps)[:, None]
        weight_ptrs = weight_ptr + tl.zeros((BLOCK_H, 1), tl.int32) + columns[None, :]
        low = scale_head(low, inverse_rms, tl.load(weight_ptrs, mask=mask, other=0.0), dtype)
        high = scale_head(high, inverse_rms, tl.load(weight_ptrs + HALF, mask=mask, other=0.0), dtype)
    y_ptrs = y_ptr + first_row.to(tl.int64) * HEAD_DIM + (rows * HEAD_DIM)[:, None] + columns[None, :]
    tl.store(y_ptrs, rotate(low, -high, cos_low, sin_low, dtype), mask=mask)
    tl.store(y_ptrs + HALF, rotate(high, low, cos_high, sin_high, dtype), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _qk_norm_rope_kernel(
    q_ptr, k_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, tokens,
    q_batch_stride, q_token_stride, q_head_stride, k_batch_stride, k_token_stride, k_head_stride,
    cos_batch_stride, cos_token_stride, sin_batch_stride, sin_token_stride, eps,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of q's rows and then of k's, sequences)."""
    sequence = tl.program_id(1).to(tl.int64)
    cos_ptr += sequence * cos_batch_stride
    sin_ptr += sequence * sin_batch_stride
    block = tl.program_id(0)
    q_blocks = tl.cdiv(tokens * Q_HEADS, BLOCK_H)
    if block < q_blocks:
        _norm_rope_rows(
            q_ptr + sequence * q_batch_stride, q_out_ptr + sequence * tokens * (Q_HEADS * HEAD_DIM), q_weight_ptr,
            cos_ptr, sin_ptr, block, tokens, q_token_stride, q_head_stride, cos_token_stride, sin_token_stride, eps,
            Q_HEADS, HEAD_DIM, BLOCK_H, BLOCK_D,
        )  # fmt: skip
    else:
        _norm_rope_rows(
            k_ptr + sequence * k_batch_stride, k_out_ptr + sequence * tokens * (KV_HEADS * HEAD_DIM), k_weight_ptr,
            cos_ptr, sin_ptr, block - q_blocks, tokens, k_token_stride, k_head_stride, cos_token_stride,
            sin_token_stride, eps, KV_HEADS, HEAD_DIM, BLOCK_H, BLOCK_D,
        )  # fmt: skip


def plan_qk_norm_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float = EPS,
    *,
    config: Config,
    device: Device,
) -> Plan:
    """One launch, none without tokens. Shapes and errors as in `qk_norm_rope`."""
    _check(q, k, q_weight, k_weight, cos, sin)
    q_heads, kv_heads, head_dim = q.shape[2], k.shape[2], q.shape[3]
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if not q.shape[0] * q.shape[1]:
        return Plan((), (q_out, k_out))
    block_h = config.integer("BLOCK_H")
    batch, tokens, strides = _token_axes({"q": q, "k": k, "cos": cos, "sin": sin})
    strides |= {"q_head_stride": q.stride(2) if q_heads > 1 else 0, "k_head_stride": k.stride(2) if kv_heads > 1 else 0}
    for name, heads in (("q", q_heads), ("k", kv_heads)):
        reach = heads * strides[f"{name}_head_stride"] + (block_h + 1) * strides[f"{name}_token_stride"]
        if max(reach, tokens * heads) > _MAX_OFFSET:
            raise ValueError(
                f"{name} {tuple(q.shape if name == 'q' else k.shape)} passes the {_MAX_OFFSET} of a 32-bit offset"
            )
    launch = Launch(
        fn=_qk_norm_rope_kernel,
        grid=(triton.cdiv(tokens * q_heads, block_h) + triton.cdiv(tokens * kv_heads, block_h), batch),
        args={
            "q_ptr": q, "k_ptr": k, "q_weight_ptr": q_weight, "k_weight_ptr": k_weight, "cos_ptr": cos, "sin_ptr": sin,
            "q_out_ptr": q_out, "k_out_ptr": k_out, "tokens": tokens, **strides, "eps": float(eps),
        },
        constexprs={
            "Q_HEADS": q_heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "BLOCK_H": block_h,
            "BLOCK_D": triton.next_power_of_2(head_dim // 2),
        },
        options=compile_options(config),
    )  # fmt: skip
    return Plan((launch,), (q_out, k_out))


def _token_axes(tensors: dict[str, torch.Tensor]) -> tuple[int, int, dict[str, int]]:
    """(sequences, tokens of each, strides by argument name), as one sequence wherever the strides allow it.

    An axis of length 1 gets stride 0, whatever torch made up for it: it is never stepped over, and an accidental odd
    number would make Triton compile another binary. cos and sin of one sequence serve all of them with stride 0.
    """
    batch, tokens = tensors["q"].shape[:2]
    strides = {
        name: (tensor.stride(0) if tensor.shape[0] > 1 else 0, tensor.stride(1) if tokens > 1 else 0)
        for name, tensor in tensors.items()
    }
    if tokens == 1:
        batch, tokens, strides = 1, batch, {name: (0, by_batch) for name, (by_batch, _) in strides.items()}
    elif batch == 1 or all(by_batch == tokens * by_token for by_batch, by_token in strides.values()):
        batch, tokens, strides = 1, batch * tokens, {name: (0, by_token) for name, (_, by_token) in strides.items()}
    named: dict[str, int] = {}
    for name, (by_batch, by_token) in strides.items():
        named |= {f"{name}_batch_stride": by_batch, f"{name}_token_stride": by_token}
    return batch, tokens, named


def _check(
    q: torch.Tensor, k: torch.Tensor, q_weight: torch.Tensor | None, k_weight: torch.Tensor | None,
    cos: torch.Tensor, sin: torch.Tensor,
) -> None:  # fmt: skip
    if q.dim() != 4 or k.dim() != 4:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} must be [batch, tokens, heads, head_dim]")
    if q.dtype not in TORCH_DTYPES.values():
        raise ValueError(f"q is {q.dtype}, expected one of {', '.join(map(str, TORCH_DTYPES.values()))}")
    batch, tokens, q_heads, head_dim = q.shape
    check_like("q", q, (batch, tokens, q_heads, head_dim), q.dtype)
    check_like("k", k, (batch, tokens, k.shape[2], head_dim), q.dtype)
    if min(q_heads, k.shape[2], head_dim) < 1 or head_dim % 2:
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} need heads of an even size: rotate_half halves them"
        )
    for name, tensor in (("cos", cos), ("sin", sin)):
        sequences = 1 if tensor.shape[:1] == (1,) else batch
        check_like(name, tensor, (sequences, tokens, head_dim), q.dtype)
    if (q_weight is None) != (k_weight is None):
        raise ValueError("q_weight and k_weight must both be given or both be None")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            check_like(name, weight, (head_dim,), q.dtype)


def qk_norm_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float = EPS,
    *,
    config: Config,
    device: Device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rope(norm(q)), rope(norm(k))): each head normalised by its own mean square, then rotated; see `norm_rope`.

    q [B, S, Hq, D] and k [B, S, Hk, D] of one dtype, any strides but a unit stride over D (views of one qkv row are
    fine); q_weight and k_weight [D], or both None for RoPE alone; cos and sin [B, S, D], or [1, S, D] for all sequences
    alike. Gives new contiguous tensors of the shapes of q and k. Raises ValueError for other shapes, dtypes or strides.
    The formula and the roundings of Qwen3's attention in Hugging Face transformers (models/qwen3/modeling_qwen3.py).
    """
    q_out, k_out = plan_qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps, config=config, device=device).run()
    return q_out, k_out


def qk_norm_rope_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float = EPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula of `qk_norm_rope` in torch, with the roundings of the eager model."""
    return norm_rope_reference(q, q_weight, cos, sin, eps), norm_rope_reference(k, k_weight, cos, sin, eps)


def make_qk_norm_rope_inputs(problem: QkNormRopeProblem, *, torch_device: str, seed: int) -> Inputs:
    """q and k of one sequence as views of its qkv rows, tokens at positions 0 and following, base 10000."""
    generator = make_generator(torch_device, seed)
    dtype = TORCH_DTYPES[problem.dtype]
    tokens, head_dim = problem.batch, problem.head_dim

    def random(*shape: int) -> torch.Tensor:
        return random_tensor(*shape, dtype=dtype, torch_device=torch_device, generator=generator)

    heads = problem.q_heads + 2 * problem.kv_heads
    qkv = random(1, tokens, heads * head_dim).view(1, tokens, heads, head_dim)
    q, k, _ = qkv.split((problem.q_heads, problem.kv_heads, problem.kv_heads), 2)
    weights = (random(head_dim), random(head_dim)) if problem.qk_norm else (None, None)
    exponent = -torch.arange(0, head_dim, 2, dtype=torch.float32, device=torch_device) / head_dim
    position = torch.arange(tokens, dtype=torch.float32, device=torch_device)
    angle = torch.outer(position, 10000.0**exponent).repeat(1, 2)[None]
    return q, k, *weights, angle.cos().to(dtype), angle.sin().to(dtype), EPS


QK_NORM_ROPE_SPEC = KernelSpec(
    name="qk_norm_rope",
    space=QK_NORM_ROPE,
    plan=plan_qk_norm_rope,
    reference=qk_norm_rope_reference,
    make_inputs=make_qk_norm_rope_inputs,
)
