"""A model, its batch sizes and its tensor-parallel degree, as the problems its kernels must solve.

Where two forms compete for one place in the network both are listed, each with the calls it would have were
it chosen: decode attention that does QK-norm, RoPE and the KV write itself, and attention behind a kernel
that does norm and RoPE; the sort-free and the sort-based experts; a norm after a projection that carried the
residual, and a norm that adds it. Which form runs is decided when a model is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .attention import AttentionDecodeFusedProblem, AttentionDecodeProblem, AttentionPrefillProblem
from .linear import LinearProblem, LinearQkvProblem, LinearSiluMulProblem
from .model_spec import LIMITS, ModelSpec
from .moe import MoeProblem
from .norm import NormProblem
from .problem import DTYPE_BYTES, Problem
from .qk_norm_rope import QkNormRopeProblem
from .registry import KERNEL_NAMES
from .router import RouterProblem

DECODE_BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256)
PREFILL_LENGTHS = (512, 1024, 2048, 4096, 8192)
# Below this many tokens most experts see at most a few rows and sorting them is pure overhead.
GROUPED_FROM_BATCH = 64
_MAX_TOKENS = 1 << 20

Phase = Literal["decode", "prefill"]


class WorkloadError(ValueError):
    """A batch size, length, element type or kernel that makes no workload; the message is one line."""


@dataclass(frozen=True)
class WorkItem:
    """One problem and how often a forward step of its phase calls it."""

    problem: Problem
    phase: Phase
    calls_per_step: int


def problems(
    model: ModelSpec,
    *,
    batch_sizes: Iterable[int] = DECODE_BATCH_SIZES,
    prefill_lengths: Iterable[int] = PREFILL_LENGTHS,
    dtype: str = "bf16",
    tp: int = 1,
    context: int = 4096,
    kernels: Sequence[str] | None = None,
) -> tuple[WorkItem, ...]:
    """Every problem of `model` on one of `tp` ranks, each once, by kernel, shape and ascending batch.

    `batch_sizes` are tokens per decode step, `prefill_lengths` tokens of one prompt, `context` the cached
    tokens of each sequence in decode. `kernels` keeps only those named. Raises WorkloadError for numbers or
    names that make no sense, ModelError where the model cannot be split `tp` ways.
    """
    sizes = _token_counts(batch_sizes, "batch size")
    lengths = _token_counts(prefill_lengths, "prefill length")
    if dtype not in DTYPE_BYTES:
        raise WorkloadError(f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
    if not 1 <= context <= LIMITS["window"][1]:
        raise WorkloadError(f"context {context} is outside 1..{LIMITS['window'][1]}")
    for name in kernels or ():
        if name not in KERNEL_NAMES:
            raise WorkloadError(f"unknown kernel {name!r}; known: {', '.join(KERNEL_NAMES)}")
    shard = model.shard(tp)
    found: dict[Problem, WorkItem] = {}
    for batch in sizes:
        _collect(found, _decode(shard, batch, dtype, context), "decode")
    for batch in lengths:
        _collect(found, _prefill(shard, batch, dtype), "prefill")
    wanted = [item for item in found.values() if kernels is None or item.problem.kernel in kernels]
    if found and not wanted:
        used = sorted({problem.kernel for problem in found}, key=KERNEL_NAMES.index)
        raise WorkloadError(f"{model.name} uses none of {', '.join(kernels or ())}; it uses {', '.join(used)}")
    return tuple(sorted(wanted, key=_tuning_order))


def _token_counts(values: Iterable[int], what: str) -> list[int]:
    counts = sorted(set(values))
    for count in counts:
        if not 1 <= count <= _MAX_TOKENS:
            raise WorkloadError(f"{what} {count} is outside 1..{_MAX_TOKENS}")
    return counts


def _tuning_order(item: WorkItem) -> tuple[int, str, int]:
    return KERNEL_NAMES.index(item.problem.kernel), item.problem.signature, item.problem.batch


def _collect(found: dict[Problem, WorkItem], calls: Iterable[tuple[Problem, int]], phase: Phase) -> None:
    """Add up the calls of equal problems of one step; a problem that both phases have stays decode's."""
    for problem, count in calls:
        known = found.get(problem)
        if count and (known is None or known.phase == phase):
            found[problem] = WorkItem(problem, phase, count + (known.calls_per_step if known else 0))


def _decode(model: ModelSpec, batch: int, dtype: str, context: int) -> Iterator[tuple[Problem, int]]:
    """The kernel calls of one decode step, one new token for each of `batch` sequences."""
    # The partial sums of a row-parallel projection meet in an all-reduce, so the residual is added behind it.
    residual = int(model.tp == 1)
    fused_adds = residual * (model.layers + model.dense_layers)
    yield from _norms(model, batch, dtype, plain_calls=1 + fused_adds)
    q_size, kv_size = model.q_heads * model.head_dim, model.kv_heads * model.head_dim

    def linear(n: int, k: int, *, bias: bool = False, residual: int = 0) -> LinearProblem:
        return LinearProblem(kernel="linear", dtype=dtype, batch=batch, n=n, k=k, bias=int(bias), residual=residual)

    def silu_mul(inter: int) -> LinearSiluMulProblem:
        return LinearSiluMulProblem(kernel="linear_silu_mul", dtype=dtype, batch=batch, n=inter, k=model.hidden)

    qkv = LinearQkvProblem(
        kernel="linear_qkv", dtype=dtype, batch=batch, n_q=q_size, n_kv=kv_size, k=model.hidden,
        bias=int(model.qkv_bias),
    )  # fmt: skip
    yield qkv, model.layers
    yield linear(model.hidden, q_size, bias=model.o_bias, residual=residual), model.layers
    yield linear(model.vocab, model.hidden), 1
    yield from _norm_rope(model, batch, dtype)  # in front of the plain attention kernel, which has neither inside
    for window, layers in _windows(model):
        plain = AttentionDecodeProblem(
            kernel="attention_decode", dtype=dtype, batch=batch, q_heads=model.q_heads,
            kv_heads=model.kv_heads, head_dim=model.head_dim, context=context, window=window,
        )  # fmt: skip
        yield plain, layers
        if model.qk_norm != "row":  # the fused kernel normalises each head by itself
            fused = AttentionDecodeFusedProblem(
                kernel="attention_decode_fused", dtype=dtype, batch=batch, q_heads=model.q_heads,
                kv_heads=model.kv_heads, head_dim=model.head_dim, context=context, window=window,
                qk_norm=int(model.qk_norm == "head"),
            )  # fmt: skip
            yield fused, layers
    if model.dense_layers:
        yield silu_mul(model.inter), model.dense_layers
        yield linear(model.hidden, model.inter, residual=residual), model.dense_layers
    if model.moe_layers:
        yield linear(model.experts, model.hidden), model.moe_layers
        yield _router(model, batch, dtype), model.moe_layers
        yield _experts("moe_gate_up", model, batch, dtype), model.moe_layers
        yield _experts("moe_down", model, batch, dtype), model.moe_layers
        if batch >= GROUPED_FROM_BATCH:
            yield _experts("moe_grouped", model, batch, dtype), model.moe_layers
        if model.shared_inter:
            yield silu_mul(model.shared_inter), model.moe_layers
            yield linear(model.hidden, model.shared_inter), model.moe_layers
            yield linear(1, model.hidden), model.moe_layers


def _prefill(model: ModelSpec, batch: int, dtype: str) -> Iterator[tuple[Problem, int]]:
    """The kernel calls of one prompt of `batch` tokens; its large dense products are the vendor library's."""
    yield from _norms(model, batch, dtype, plain_calls=1)
    yield from _norm_rope(model, batch, dtype)
    for window, layers in _windows(model):
        attention = AttentionPrefillProblem(
            kernel="attention_prefill", dtype=dtype, batch=batch, q_heads=model.q_heads,
            kv_heads=model.kv_heads, head_dim=model.head_dim, window=window,
        )  # fmt: skip
        yield attention, layers
    if model.moe_layers:
        yield _router(model, batch, dtype), model.moe_layers
        yield _experts("moe_grouped", model, batch, dtype), model.moe_layers


def _norms(model: ModelSpec, batch: int, dtype: str, plain_calls: int) -> Iterator[tuple[Problem, int]]:
    """The norms of one step: `plain_calls` without a residual; two per layer if the norm adds it."""

    def norm(kernel: str, hidden: int) -> NormProblem:
        return NormProblem(kernel=kernel, dtype=dtype, batch=batch, hidden=hidden)

    yield norm("rms_norm", model.hidden), plain_calls
    yield norm("add_rms_norm", model.hidden), 2 * model.layers
    if model.qk_norm == "row":  # over all heads of all ranks
        yield norm("rms_norm", model.q_heads * model.tp * model.head_dim), model.layers
        yield norm("rms_norm", model.kv_heads * model.tp * model.head_dim), model.layers


def _norm_rope(model: ModelSpec, batch: int, dtype: str) -> Iterator[tuple[Problem, int]]:
    """RoPE of every layer, with the norm of each head where the model has it; a norm of whole rows is `_norms`'s."""
    heads = QkNormRopeProblem(
        kernel="qk_norm_rope", dtype=dtype, batch=batch, q_heads=model.q_heads, kv_heads=model.kv_heads,
        head_dim=model.head_dim, qk_norm=int(model.qk_norm == "head"),
    )  # fmt: skip
    yield heads, model.layers


def _windows(model: ModelSpec) -> list[tuple[int, int]]:
    """(window, layers that have it); window 0 sees every token."""
    kinds = [(0, model.layers - model.window_layers), (model.window, model.window_layers)]
    return [(window, layers) for window, layers in kinds if layers]


def _router(model: ModelSpec, batch: int, dtype: str) -> RouterProblem:
    return RouterProblem(
        kernel="router", dtype=dtype, batch=batch, experts=model.experts, top_k=model.top_k,
        renormalize=int(model.renormalize),
    )  # fmt: skip


def _experts(kernel: str, model: ModelSpec, batch: int, dtype: str) -> MoeProblem:
    return MoeProblem(
        kernel=kernel, dtype=dtype, batch=batch, experts=model.experts, top_k=model.top_k,
        hidden=model.hidden, inter=model.moe_inter,
    )  # fmt: skip
