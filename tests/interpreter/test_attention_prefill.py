"""Prefill attention in Triton's interpreter: every branch against the reference."""

from __future__ import annotations

import random

import pytest
import torch

from paiton.kernels_triton.attention_mask import mask_ranges_launch
from paiton.kernels_triton.attention_prefill import (
    ATTENTION_PREFILL_SPEC,
    attention_prefill,
    plan_attention_prefill,
)
from paiton.kernels_triton.spec import TORCH_DTYPES
from paiton.kernels_triton.tolerance import TOLERANCES
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config

MI300X = resolve("gfx942")
H200 = resolve("sm_90")


def config_of(block_m: int = 16, block_n: int = 16) -> Config:
    return Config.of(BLOCK_M=block_m, BLOCK_N=block_n, num_warps=1, num_stages=1)


def inputs_of(tokens: int, *, dtype: str = "fp32", window: int = 0, **dims: int) -> list:
    sizes = {"q_heads": 2, "kv_heads": 1, "head_dim": 64, **dims}
    problem = ATTENTION_PREFILL_SPEC.space.problem(dtype=dtype, batch=tokens, window=window, **sizes)
    return list(ATTENTION_PREFILL_SPEC.make_inputs(problem, torch_device="cpu", seed=1))


def batch_of(
    batch: int, tokens: int, keys: int, *, dtype: torch.dtype = torch.float32, heads: tuple[int, int] = (2, 1),
    head_dim: int = 64,
) -> list:  # fmt: skip
    """q, k, v, scale, window as Hugging Face's attention holds them: [B, H, T, D], passed as views [B, T, H, D]."""
    torch.manual_seed(7)
    q = torch.randn(batch, heads[0], tokens, head_dim).to(dtype)
    k, v = (torch.randn(batch, heads[1], keys, head_dim).to(dtype) for _ in range(2))
    return [q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), head_dim**-0.5, 0]


def mask_of(kind: str, batch: int, tokens: int, keys: int) -> torch.Tensor:
    """Masks as models build them, and one without any order."""
    key, query = torch.arange(keys), torch.arange(keys - tokens, keys)[:, None]
    causal = key <= query
    if kind == "holes":
        return torch.rand(batch, tokens, keys, generator=torch.Generator().manual_seed(3)) > 0.8
    if kind == "causal":
        return causal.expand(batch, -1, -1)
    if kind == "left padding":
        return torch.stack([causal & (key >= 7 * sequence) for sequence in range(batch)])
    if kind == "window":
        return (causal & (key > query - 9)).expand(batch, -1, -1)
    if kind == "packed":
        return torch.stack([causal & (key // (5 + row) == query // (5 + row)) for row in range(batch)])
    if kind == "static cache":  # room behind the keys, nothing of it in use
        return torch.stack([(key <= query - 20) & (key >= sequence) for sequence in range(batch)])
    raise ValueError(kind)


MASKS = ("holes", "causal", "left padding", "window", "packed", "static cache")


def check(inputs: list, config: Config, dtype: str = "fp32", device: Device = H200) -> None:
    plan = plan_attention_prefill(*inputs, config=config, device=device)
    plan.outputs[0].fill_(float("nan"))
    for name in ("mask_ptr", "ranges_ptr"):
        workspace = plan.launches[-1].args[name]
        if workspace is not None:
            workspace.fill_(99)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(
        plan.run(), ATTENTION_PREFILL_SPEC.reference(*inputs), rtol=tolerance.relative, atol=tolerance.absolute
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (32, 16), (16, 32)])
def test_matches_reference(dtype: str, window: int, block_m: int, block_n: int) -> None:
    check(inputs_of(53, dtype=dtype, window=window), config_of(block_m, block_n), dtype)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("window", [0, 5])
def test_lengths_around_a_block(tokens: int, window: int) -> None:
    check(inputs_of(tokens, window=window), config_of(16, 32))


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 48, 1000])
@pytest.mark.parametrize(("block_m", "block_n"), [(32, 16), (16, 32)])
def test_windows(window: int, block_m: int, block_n: int) -> None:
    check(inputs_of(50, window=window, q_heads=1), config_of(block_m, block_n))


@pytest.mark.parametrize("window", [0, 11])
@pytest.mark.parametrize("prefix", [1, 16, 29])
def test_after_a_cached_prefix(prefix: int, window: int) -> None:
    """The queries are the last of the keys."""
    inputs = inputs_of(prefix + 21, window=window)
    inputs[0] = inputs[0][:, prefix:]
    check(inputs, config_of(16, 16))


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"),
    [(3, 1, 128), (5, 5, 64), (2, 2, 256), (2, 1, 96), (2, 1, 8)],
    ids=str,
)
def test_head_shapes(q_heads: int, kv_heads: int, head_dim: int) -> None:
    check(inputs_of(19, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim), config_of())


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(16, 2), (8, 8), (10, 2)])
def test_heads_are_dealt_to_xcds(q_heads: int, kv_heads: int) -> None:
    """8 XCDs share 16 or 8 heads; 10 heads cannot be shared and keep their order."""
    inputs = inputs_of(9, q_heads=q_heads, kv_heads=kv_heads, head_dim=16)
    check(inputs, config_of(), device=MI300X)


@pytest.mark.parametrize("window", [0, 9])
def test_batches(window: int) -> None:
    """Hugging Face's [B, H, T, D], keys and values from longer caches of different strides."""
    inputs = batch_of(3, 21, 26, heads=(4, 2))
    store = torch.randn(2, 3, 2, 40, 64)
    inputs[1], inputs[2] = store[0, :, :, 3:29].transpose(1, 2), store[1].transpose(0, 1)[:, :, :26].permute(1, 2, 0, 3)
    inputs[4] = window
    assert not any(tensor.is_contiguous() for tensor in inputs[:3])
    check(inputs, config_of())
    check(inputs, config_of(), device=MI300X)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("kind", MASKS)
def test_masks(kind: str, dtype: str) -> None:
    inputs = batch_of(3, 18, 37, dtype=TORCH_DTYPES[dtype], heads=(1, 1))
    check([*inputs, mask_of(kind, 3, 18, 37)], config_of(16, 16), dtype)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("block_m", "block_n"), [(32, 16), (16, 32), (16, 128)])
def test_masks_in_other_blocks(kind: str, block_m: int, block_n: int) -> None:
    check([*batch_of(2, 40, 40, heads=(1, 1)), mask_of(kind, 2, 40, 40)], config_of(block_m, block_n))


@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (1, 37), (3, 1), (9, 16), (16, 17), (17, 5), (2, 1100)])
def test_masks_of_awkward_sizes(tokens: int, keys: int) -> None:
    """More queries than keys too: with a mask there is no order between them. 1100 keys are two steps of the scan."""
    inputs = batch_of(2, tokens, keys, heads=(1, 1), head_dim=16)
    config = config_of(16, 128 if keys > 100 else 16)
    check([*inputs, mask_of("holes", 2, tokens, keys)], config)
    check([*inputs, torch.ones(2, tokens, keys, dtype=torch.bool)], config)


@pytest.mark.parametrize("head_dim", [8, 96, 128, 256])
def test_masks_with_other_heads(head_dim: int) -> None:
    check([*batch_of(1, 18, 18, heads=(3, 3), head_dim=head_dim), mask_of("left padding", 1, 18, 18)], config_of())


def test_ranges_of_a_mask_by_hand() -> None:
    """Per row: first True, end of its run, one past the last; a wrong run costs time only, so no result shows it."""
    rows = ["..11.1.", "1111111", ".......", "......1", "1......"]
    mask = torch.tensor([[letter == "1" for letter in row] for row in rows])[None]
    ranges, copy, (launch,) = mask_ranges_launch(mask, 16)
    launch.run()
    assert ranges[0].T.tolist() == [[2, 4, 6], [0, 7, 7], [7, 7, 0], [6, 7, 7], [0, 1, 1]]
    assert torch.equal(copy.bool(), torch.nn.functional.pad(mask, (0, 9)))


def test_a_mask_may_be_one_of_all_sequences_and_a_view() -> None:
    wide = torch.rand(1, 21, 60) > 0.5
    mask = wide[:, :, 7:37].expand(3, -1, -1)
    assert mask.stride() == (0, 60, 1)
    check([*batch_of(3, 21, 30), mask], config_of())


def test_queries_without_any_key_give_zeros() -> None:
    """A whole block of them, one alone, and a whole sequence."""
    mask = mask_of("causal", 2, 40, 40).clone()
    mask[0, :17] = False
    mask[0, 30] = False
    mask[1] = False
    inputs = [*batch_of(2, 40, 40), mask]
    out = attention_prefill(*inputs, config=config_of(), device=H200)
    assert (out[0, :17] == 0).all() and (out[0, 30] == 0).all() and (out[1] == 0).all()
    check(inputs, config_of())


def test_blocks_outside_the_range_in_use_are_not_read() -> None:
    """Left padding of two blocks, room of three behind: NaN there reaches nothing."""
    inputs = batch_of(1, 20, 100)
    mask = torch.zeros(1, 20, 100, dtype=torch.bool)
    mask[:, :, 32:48] = True
    mask[:, 3, 40] = False
    for tensor in inputs[1:3]:
        tensor[:, :32] = float("nan")
        tensor[:, 48:] = float("nan")
    expected = ATTENTION_PREFILL_SPEC.reference(
        inputs[0], inputs[1][:, 32:48], inputs[2][:, 32:48], *inputs[3:], mask[:, :, 32:48]
    )
    actual = attention_prefill(*inputs, mask, config=config_of(), device=H200)
    torch.testing.assert_close(actual, expected[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("tokens", "keys"), [(20, 20), (20, 33), (33, 16), (1, 1), (5, 3)])
def test_without_the_causal_rule(tokens: int, keys: int) -> None:
    check([*batch_of(2, tokens, keys), None, False], config_of())


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_agrees_with_torch(is_causal: bool, has_mask: bool) -> None:
    """An oracle that is not ours; with a mask, is_causal says nothing."""
    q, k, v, scale, _ = batch_of(2, 40, 40, heads=(4, 2))
    mask = mask_of("left padding", 2, 40, 40) | torch.eye(40, dtype=torch.bool) if has_mask else None
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in (q, k, v)), is_causal=is_causal and not has_mask, scale=scale,
        enable_gqa=True, attn_mask=mask[:, None] if mask is not None else None,
    )  # fmt: skip
    actual = attention_prefill(q, k, v, scale, 0, mask, is_causal, config=config_of(32, 16), device=H200)
    torch.testing.assert_close(actual, expected.transpose(1, 2), rtol=2e-5, atol=2e-5)


def test_plans_on_meta() -> None:
    """A prompt so long that the mask passes 2 GiB."""
    shape = (2, 65536, 4, 128)
    q, k, v = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for _ in range(3))
    mask = torch.empty(1, 65536, 65536, dtype=torch.bool, device="meta").expand(2, -1, -1)
    plan = plan_attention_prefill(q, k, v, 0.1, 0, mask, config=config_of(128, 64), device=MI300X)
    assert [launch.grid for launch in plan.launches] == [(8192, 2), (2048, 2)]
    assert tuple(plan.outputs[0].shape) == shape


@pytest.mark.parametrize("device", [MI300X, H200], ids=str)
def test_random_legal_configs(device: Device) -> None:
    space = ATTENTION_PREFILL_SPEC.space
    problem = space.problem(dtype="fp16", batch=70, q_heads=1, kv_heads=1, head_dim=64, window=0)
    feasible = space.enumerate(problem, device)
    inputs = list(ATTENTION_PREFILL_SPEC.make_inputs(problem, torch_device="cpu", seed=1))
    shapes = {(c["BLOCK_M"], c["BLOCK_N"]): c for c in feasible}
    for config in random.Random(5).sample(list(shapes.values()), min(10, len(shapes))):
        check(inputs, config, "fp16", device)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, torch.zeros(9, 2, 64), "q has shape .* expected \\[batch, tokens, heads, head_dim\\]"),
        (0, torch.zeros(1, 10, 2, 64), "10 queries cannot be the last of 9 keys"),
        (0, torch.zeros(1, 9, 64, 2).transpose(2, 3), "stride 2 over its last axis"),
        (0, torch.zeros(2, 9, 2, 64), "k has shape"),
        (1, torch.zeros(1, 9, 1, 32), "k has shape"),
        (2, torch.zeros(1, 8, 1, 64), "v has shape"),
        (2, torch.zeros(1, 9, 1, 64, dtype=torch.float16), "v is torch.float16"),
        (3, 0.0, "scale 0.0 must be positive"),
        (4, -1, "window -1 must not be negative"),
        (5, torch.zeros(1, 9, 8, dtype=torch.bool), "mask has shape"),
        (5, torch.zeros(1, 9, 9), "mask is torch.float32, expected torch.bool"),
        (5, torch.zeros(1, 9, 18, dtype=torch.bool)[:, :, ::2], "mask has stride 2"),
    ],
    ids=str,
)
def test_refuses(place: int, value: object, words: str) -> None:
    inputs = [*inputs_of(9), None]
    inputs[place] = value
    with pytest.raises(ValueError, match=words):
        plan_attention_prefill(*inputs, config=config_of(), device=H200)


@pytest.mark.parametrize("more", [(torch.ones(1, 9, 9, dtype=torch.bool),), (None, False)], ids=["mask", "all"])
def test_a_window_needs_the_causal_rule(more: tuple) -> None:
    with pytest.raises(ValueError, match="window 4 belongs to the causal rule"):
        plan_attention_prefill(*inputs_of(9, window=4), *more, config=config_of(), device=H200)
