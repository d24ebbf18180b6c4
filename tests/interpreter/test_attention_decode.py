"""Decode attention, plain and fused, in Triton's interpreter: every branch against the reference."""

from __future__ import annotations

import random

import pytest
import torch

from paiton.kernels_triton.attention_decode import (
    ATTENTION_DECODE_SPEC,
    attention_decode,
    plan_attention_decode,
)
from paiton.kernels_triton.attention_decode_fused import (
    ATTENTION_DECODE_FUSED_SPEC,
    attention_decode_fused,
    plan_attention_decode_fused,
)
from paiton.kernels_triton.launch import Plan
from paiton.kernels_triton.norm_rope import norm_rope_reference
from paiton.kernels_triton.spec import KernelSpec
from paiton.kernels_triton.tolerance import TOLERANCES
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.config import Config

DEVICE = resolve("gfx942")
NAN = float("nan")
LENGTHS = 9
"""Position of `lengths` among the fused kernel's inputs; the caches come just before."""


def config_of(block: int = 16, splits: int = 1) -> Config:
    return Config.of(BLOCK_N=block, SPLITS=splits, num_warps=1, num_stages=1)


def plain_inputs(lengths: list[int], *, dtype: str = "fp32", window: int = 0, **dims: int) -> list:
    """Inputs whose cache holds NaN wherever nothing may be read."""
    sizes = {"q_heads": 4, "kv_heads": 2, "head_dim": 64, "context": max(*lengths, 1) + 3, **dims}
    problem = ATTENTION_DECODE_SPEC.space.problem(dtype=dtype, batch=len(lengths), window=window, **sizes)
    inputs = list(ATTENTION_DECODE_SPEC.make_inputs(problem, torch_device="cpu", seed=1))
    for sequence, length in enumerate(lengths):
        for cache in inputs[1:3]:
            cache[sequence, :, length:] = NAN
            if window:
                cache[sequence, :, : max(length - window, 0)] = NAN
    inputs[3] = torch.tensor(lengths, dtype=torch.int32)
    return inputs


def fused_inputs(lengths: list[int], *, dtype: str = "fp32", window: int = 0, qk_norm: int = 1, **dims: int) -> list:
    sizes = {"q_heads": 4, "kv_heads": 2, "head_dim": 64, "context": max(lengths) + 3, **dims}
    problem = ATTENTION_DECODE_FUSED_SPEC.space.problem(
        dtype=dtype, batch=len(lengths), window=window, qk_norm=qk_norm, **sizes
    )
    inputs = list(ATTENTION_DECODE_FUSED_SPEC.make_inputs(problem, torch_device="cpu", seed=2))
    angle = torch.tensor(lengths)[:, None] * torch.linspace(1.0, 0.001, sizes["head_dim"] // 2)
    inputs[5] = angle.cos().repeat(1, 2).to(inputs[0].dtype)
    inputs[6] = angle.sin().repeat(1, 2).to(inputs[0].dtype)
    for sequence, length in enumerate(lengths):
        for cache in inputs[LENGTHS - 2 : LENGTHS]:
            cache[sequence, :, length:] = NAN
            if window:
                cache[sequence, :, : max(length + 1 - window, 0)] = NAN
    inputs[LENGTHS] = torch.tensor(lengths, dtype=torch.int32)
    return inputs


def fused_under(mask: torch.Tensor, lengths: list[int], dtype: str = "fp32") -> list:
    """Fused inputs and a mask, which alone says what is seen: it may allow what stands behind the new token."""
    inputs = fused_inputs(lengths, dtype=dtype, context=mask.shape[1], q_heads=3, kv_heads=1)
    for cache in inputs[LENGTHS - 2 : LENGTHS]:
        cache.nan_to_num_(0.5)
    return [*inputs, mask]


def mask_of(kind: str, batch: int, tokens: int) -> torch.Tensor:
    """Masks [B, S] over the tokens of a cache."""
    token = torch.arange(tokens)
    if kind == "left padding":
        return torch.stack([token >= 6 * sequence for sequence in range(batch)])
    if kind == "static cache":  # padding to the left, room to the right
        return torch.stack([(token >= 3 * sequence) & (token < 20 + sequence) for sequence in range(batch)])
    if kind == "holes":
        return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(3)) > 0.8
    if kind == "long hole":  # the first split ends and the second begins inside of it
        return ((token < 3) | (token > tokens - 4)).expand(batch, -1)
    if kind == "nothing":
        return (token < 0).expand(batch, -1)
    if kind == "one":
        return (token == 17).expand(batch, -1)
    raise ValueError(kind)


MASKS = ("left padding", "static cache", "holes", "long hole", "nothing", "one")


def run_poisoned(plan: Plan) -> tuple[torch.Tensor, ...]:
    """Run with NaN in the result and in the workspace, so that a store that is missed shows."""
    plan.outputs[0].fill_(NAN)
    for name in ("part_ptr", "part_lse_ptr"):
        part = plan.launches[0].args[name]
        if isinstance(part, torch.Tensor):
            part.fill_(NAN)
    return plan.run()


def check(spec: KernelSpec, inputs: list, config: Config, dtype: str = "fp32") -> None:
    expected = spec.reference(*inputs)
    actual = run_poisoned(spec.plan(*inputs, config=config, device=DEVICE))
    tolerance = TOLERANCES[dtype]
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(
            got, wanted, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=got is not actual[0]
        )


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("window", [0, 7])
def test_plain_matches_reference(dtype: str, splits: int, window: int) -> None:
    """Different lengths in one batch: 1 token, odd, a whole block, fewer blocks than splits."""
    check(ATTENTION_DECODE_SPEC, plain_inputs([1, 37, 16], dtype=dtype, window=window), config_of(16, splits), dtype)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("window", [0, 7])
def test_fused_matches_reference(dtype: str, splits: int, window: int) -> None:
    check(
        ATTENTION_DECODE_FUSED_SPEC, fused_inputs([0, 37, 16], dtype=dtype, window=window),
        config_of(16, splits), dtype,
    )  # fmt: skip


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"),
    [(1, 1, 128), (5, 1, 64), (16, 1, 64), (18, 1, 64), (3, 3, 64), (2, 1, 256), (2, 1, 96), (2, 1, 8)],
    ids=str,
)
def test_head_shapes(splits: int, q_heads: int, kv_heads: int, head_dim: int) -> None:
    """Groups below, at and above 16 rows; head sizes that are and are not powers of two."""
    dims = {"q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim}
    check(ATTENTION_DECODE_SPEC, plain_inputs([19], **dims), config_of(16, splits))
    check(ATTENTION_DECODE_FUSED_SPEC, fused_inputs([19], **dims), config_of(16, splits))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 64])
def test_lengths_around_a_block(length: int) -> None:
    """Four splits of 16-token blocks: from one token, most splits empty, to all splits full."""
    check(ATTENTION_DECODE_SPEC, plain_inputs([length]), config_of(16, 4))
    check(ATTENTION_DECODE_FUSED_SPEC, fused_inputs([length - 1]), config_of(16, 4))


@pytest.mark.parametrize("window", [1, 2, 16, 17, 40, 1000])
def test_windows(window: int) -> None:
    check(ATTENTION_DECODE_SPEC, plain_inputs([40, 3], window=window), config_of(16, 2))
    check(ATTENTION_DECODE_FUSED_SPEC, fused_inputs([40, 3], window=window), config_of(16, 2))


@pytest.mark.parametrize("splits", [1, 3])
def test_an_empty_sequence_gives_zeros(splits: int) -> None:
    inputs = plain_inputs([0, 5])
    plan = plan_attention_decode(*inputs, config=config_of(16, splits), device=DEVICE)
    out = run_poisoned(plan)[0]
    assert (out[0] == 0).all()
    torch.testing.assert_close(out, ATTENTION_DECODE_SPEC.reference(*inputs)[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("kind", MASKS)
def test_masks(kind: str, splits: int, dtype: str) -> None:
    """Over all of the cache (lengths None), and over what lengths, or the new token's position, leave of it."""
    inputs = plain_inputs([53, 53], dtype=dtype, context=53, q_heads=3, kv_heads=1)
    mask = mask_of(kind, 2, 53)
    check(ATTENTION_DECODE_SPEC, [*inputs[:3], None, *inputs[4:], mask], config_of(16, splits), dtype)
    inputs[3] = torch.tensor([37, 1])
    check(ATTENTION_DECODE_SPEC, [*inputs, mask], config_of(16, splits), dtype)
    check(ATTENTION_DECODE_FUSED_SPEC, fused_under(mask, [52, 19], dtype), config_of(16, splits), dtype)


@pytest.mark.parametrize("window", [1, 16, 40])
@pytest.mark.parametrize("kind", ["left padding", "holes", "one"])
def test_masks_within_a_window(kind: str, window: int) -> None:
    mask = mask_of(kind, 2, 41)
    check(ATTENTION_DECODE_SPEC, [*plain_inputs([40, 3], window=window, context=41), mask], config_of(16, 2))


@pytest.mark.parametrize("tokens", [1, 2, 511, 512, 513, 1030])
def test_masks_around_a_step_of_the_scan(tokens: int) -> None:
    """One warp scans 512 tokens at a time; the first and the last token alone, then all."""
    inputs = plain_inputs([tokens], context=tokens, head_dim=16, q_heads=1, kv_heads=1)
    inputs[3] = None
    ends = torch.zeros(1, tokens, dtype=torch.bool)
    ends[:, 0] = ends[:, -1] = True
    for mask in (ends, torch.ones_like(ends), ends & (torch.arange(tokens) > 0)):
        check(ATTENTION_DECODE_SPEC, [*inputs, mask], config_of(128, 2))


def test_one_mask_of_all_sequences_as_a_view() -> None:
    wide = torch.rand(1, 1, 1, 70) > 0.5
    mask = wide[:, 0, 0, 9:50].expand(3, -1)
    assert mask.stride(0) == 0
    check(ATTENTION_DECODE_SPEC, [*plain_inputs([40, 3, 17], context=41), mask], config_of(16, 2))
    check(ATTENTION_DECODE_FUSED_SPEC, fused_under(mask, [40, 3, 17]), config_of(16, 2))


def test_a_mask_without_any_token_gives_zeros() -> None:
    mask = mask_of("nothing", 2, 41)
    for splits in (1, 3):
        plain = attention_decode(*plain_inputs([40, 3], context=41), mask, config=config_of(16, splits), device=DEVICE)
        assert (plain == 0).all()
        fused = attention_decode_fused(*fused_under(mask, [40, 3]), config=config_of(16, splits), device=DEVICE)
        assert (fused == 0).all()


def test_tokens_outside_the_range_in_use_are_not_read() -> None:
    """A static cache that was never cleared: NaN before the first True and behind the last."""
    inputs = plain_inputs([100], context=100)
    mask = torch.zeros(1, 100, dtype=torch.bool)
    mask[:, 21:60] = True
    mask[:, 40:50] = False
    expected = ATTENTION_DECODE_SPEC.reference(*inputs, mask)
    for cache in inputs[1:3]:
        cache[:, :, :21] = cache[:, :, 60:] = NAN
    for splits in (1, 3):
        actual = attention_decode(*inputs, mask, config=config_of(16, splits), device=DEVICE)
        torch.testing.assert_close(actual, expected[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_one_position_of_all_sequences(dtype: torch.dtype) -> None:
    """A static cache has one write index, and here one angle: stride 0 over the batch; then every second number."""
    inputs = fused_inputs([20, 20, 20], context=25)
    inputs[LENGTHS] = torch.tensor([20], dtype=dtype).expand(3)
    for place in (5, 6):
        inputs[place] = inputs[place][:1].expand(3, -1)
        assert inputs[place].stride(0) == 0
    check(ATTENTION_DECODE_FUSED_SPEC, inputs, config_of(16, 2))
    inputs = fused_inputs([7, 12, 20])
    inputs[LENGTHS] = torch.tensor([7, 99, 12, 99, 20, 99], dtype=dtype)[::2]
    check(ATTENTION_DECODE_FUSED_SPEC, inputs, config_of(16, 2))
    plain = plain_inputs([7, 12, 20])
    plain[3] = torch.tensor([7, 99, 12, 99, 20, 99], dtype=dtype)[::2]
    check(ATTENTION_DECODE_SPEC, plain, config_of(16, 2))


def test_agrees_with_torch() -> None:
    """An oracle that is not ours: Hugging Face's decode step on a static cache, its mask [B, 1, 1, S]."""
    q, k_cache, v_cache, _, scale, window = plain_inputs([50, 50], context=50)
    mask = mask_of("static cache", 2, 50)[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, None], k_cache, v_cache, attn_mask=mask, scale=scale, enable_gqa=True
    )
    actual = attention_decode(
        q, k_cache, v_cache, None, scale, window, mask[:, 0, 0], config=config_of(16, 2), device=DEVICE
    )
    torch.testing.assert_close(actual, expected[:, :, 0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("qk_norm", [0, 1])
def test_strides(splits: int, qk_norm: int) -> None:
    """A cache laid out [B, S, H, D] inside a longer one, and q as every second row of a wider tensor."""
    inputs = fused_inputs([21, 4], qk_norm=qk_norm)
    for place in (LENGTHS - 2, LENGTHS - 1):
        cache = inputs[place]
        batch, heads, tokens, size = cache.shape
        store = torch.full((batch, tokens + 5, heads, size), NAN)
        view = store[:, :tokens].transpose(1, 2)
        view.copy_(cache)
        inputs[place] = view
    wide = torch.zeros(4, 6, 80)
    wide[::2, :4, 8:72] = inputs[0]
    inputs[0] = wide[::2, :4, 8:72]
    assert not inputs[0].is_contiguous()
    check(ATTENTION_DECODE_FUSED_SPEC, inputs, config_of(16, splits))
    plain = [inputs[0], *(torch.nan_to_num(cache) for cache in inputs[7:9]), inputs[9], inputs[11], inputs[12]]
    check(ATTENTION_DECODE_SPEC, plain, config_of(16, splits))


@pytest.mark.parametrize("splits", [1, 3])
def test_only_the_new_position_is_written(splits: int) -> None:
    inputs = fused_inputs([5, 20], dtype="bf16")
    before = [cache.clone() for cache in inputs[LENGTHS - 2 : LENGTHS]]
    attention_decode_fused(*inputs, config=config_of(16, splits), device=DEVICE)
    new_k = norm_rope_reference(inputs[1], inputs[4], inputs[5], inputs[6], inputs[10])
    for cache, old, new in zip(inputs[LENGTHS - 2 : LENGTHS], before, (new_k, inputs[2]), strict=True):
        for sequence, position in enumerate((5, 20)):
            old[sequence, :, position] = new[sequence]
        # Bit for bit: the roundings of norm and RoPE are Hugging Face's.
        torch.testing.assert_close(cache, old, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_and_rope_are_hugging_faces(dtype: torch.dtype) -> None:
    """The reference's own oracle, bit for bit: the modules of transformers' Qwen3."""
    qwen3 = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    x = torch.randn(3, 4, 64).to(dtype)
    norm = qwen3.Qwen3RMSNorm(64, eps=1e-6).to(dtype)
    norm.weight.data = torch.randn(64).to(dtype)
    angle = torch.tensor([0.0, 5.0, 900.0])[:, None] * torch.linspace(1.0, 0.001, 32)
    cos, sin = (part.repeat(1, 2).to(dtype) for part in (angle.cos(), angle.sin()))
    expected, _ = qwen3.apply_rotary_pos_emb(norm(x), norm(x), cos, sin)
    assert torch.equal(norm_rope_reference(x, norm.weight.data, cos, sin, 1e-6), expected)


def test_a_full_cache_is_left_alone() -> None:
    inputs = fused_inputs([5], context=6)
    inputs[LENGTHS] = torch.tensor([6], dtype=torch.int32)
    before = [cache.clone() for cache in inputs[LENGTHS - 2 : LENGTHS]]
    attention_decode_fused(*inputs, config=config_of(), device=DEVICE)
    for cache, old in zip(inputs[LENGTHS - 2 : LENGTHS], before, strict=True):
        torch.testing.assert_close(cache, old, rtol=0, atol=0, equal_nan=True)


def test_fused_equals_the_steps_one_by_one() -> None:
    """Norm and RoPE, cache write, then the plain kernel on length + 1."""
    inputs = fused_inputs([12, 33])
    q, k_new, v_new, q_weight, k_weight, cos, sin, k_cache, v_cache, lengths, eps, scale, window = inputs
    k_steps, v_steps = k_cache.clone(), v_cache.clone()
    for sequence, position in enumerate(lengths.tolist()):
        k_steps[sequence, :, position] = norm_rope_reference(k_new, k_weight, cos, sin, eps)[sequence]
        v_steps[sequence, :, position] = v_new[sequence]
    rotated = norm_rope_reference(q, q_weight, cos, sin, eps)
    steps = attention_decode(
        rotated, k_steps, v_steps, lengths + 1, scale, window, config=config_of(16, 2), device=DEVICE
    )
    fused = attention_decode_fused(*inputs, config=config_of(32, 3), device=DEVICE)
    torch.testing.assert_close(fused, steps, rtol=2e-5, atol=2e-5)


def test_repeats_bit_for_bit() -> None:
    inputs = plain_inputs([37, 20], dtype="bf16")
    first = attention_decode(*inputs, config=config_of(16, 3), device=DEVICE)
    assert torch.equal(first, attention_decode(*inputs, config=config_of(16, 3), device=DEVICE))


@pytest.mark.parametrize("spec", [ATTENTION_DECODE_SPEC, ATTENTION_DECODE_FUSED_SPEC], ids=lambda s: s.name)
@pytest.mark.parametrize("arch", ["gfx942", "sm_90"])
def test_random_legal_configs(spec: KernelSpec, arch: str) -> None:
    device = resolve(arch)
    more = {"qk_norm": 1} if spec is ATTENTION_DECODE_FUSED_SPEC else {}
    problem = spec.space.problem(
        dtype="fp16", batch=1, q_heads=4, kv_heads=1, head_dim=64, context=75, window=0, **more
    )
    feasible = spec.space.enumerate(problem, device)
    inputs = list(spec.make_inputs(problem, torch_device="cpu", seed=3))
    tolerance = TOLERANCES["fp16"]
    expected = spec.reference(*inputs)
    shapes = {(c["BLOCK_N"], c["SPLITS"]): c for c in feasible}
    for config in random.Random(4).sample(list(shapes.values()), 10):
        actual = run_poisoned(spec.plan(*inputs, config=config, device=device))
        for got, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=tolerance.relative, atol=tolerance.absolute)


def test_plans_on_meta() -> None:
    for spec, more in ((ATTENTION_DECODE_SPEC, {}), (ATTENTION_DECODE_FUSED_SPEC, {"qk_norm": 0})):
        problem = spec.space.problem(
            dtype="bf16", batch=256, q_heads=64, kv_heads=4, head_dim=128, context=40960, window=0, **more
        )
        plan = spec.meta_plan(problem, config_of(64, 2), DEVICE)
        assert plan.launches[0].grid == (2, 4, 256)
        assert plan.launches[1].grid == (64, 256)
        assert tuple(plan.outputs[0].shape) == (256, 64, 128)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, torch.zeros(2, 4), "expected \\[rows, heads, head_dim\\]"),
        (0, torch.zeros(2, 4, 64, dtype=torch.float64), "expected bfloat16, float16 or float32"),
        (0, torch.zeros(2, 64, 4).transpose(1, 2), "stride 4 over its last axis"),
        (0, torch.zeros(2, 5, 64), "5 query heads cannot be shared by 2 kv heads"),
        (1, torch.zeros(2, 2, 64), "expected \\[batch, kv_heads, tokens, head_dim\\]"),
        (1, torch.zeros(3, 2, 24, 64), "k_cache has shape"),
        (2, torch.zeros(2, 2, 23, 64), "v_cache has shape"),
        (2, torch.zeros(2, 2, 24, 64, dtype=torch.float16), "v_cache is torch.float16"),
        (3, torch.zeros(2), "lengths is torch.float32, expected int32 or int64"),
        (3, torch.zeros(1, dtype=torch.int32), "lengths has shape \\(1,\\), expected \\(2,\\)"),
        (6, torch.zeros(2, 23, dtype=torch.bool), "mask has shape \\(2, 23\\), expected \\(2, 24\\)"),
        (6, torch.zeros(2, 24), "mask is torch.float32, expected torch.bool"),
        (6, torch.zeros(2, 48, dtype=torch.bool)[:, ::2], "mask has stride 2"),
    ],
    ids=str,
)
def test_plain_refuses(place: int, value: torch.Tensor, words: str) -> None:
    inputs = [*plain_inputs([5, 21]), None]
    inputs[place] = value
    with pytest.raises(ValueError, match=words):
        plan_attention_decode(*inputs, config=config_of(), device=DEVICE)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (1, torch.zeros(2, 4, 64), "k_new has shape"),
        (3, None, "both be given or both be None"),
        (4, torch.zeros(32), "k_weight has shape"),
        (5, torch.zeros(2, 32), "cos has shape"),
        (6, torch.zeros(2, 64, dtype=torch.bfloat16), "sin is torch.bfloat16"),
        (13, torch.zeros(1, 24, dtype=torch.bool), "mask has shape"),
    ],
    ids=str,
)
def test_fused_refuses(place: int, value: torch.Tensor | None, words: str) -> None:
    inputs = [*fused_inputs([5, 21]), None]
    inputs[place] = value
    with pytest.raises(ValueError, match=words):
        plan_attention_decode_fused(*inputs, config=config_of(), device=DEVICE)
