"""Prefill attention in Triton's interpreter: every branch against the reference."""

from __future__ import annotations

import random

import pytest
import torch

from paiton.kernels_triton.attention_prefill import (
    ATTENTION_PREFILL_SPEC,
    attention_prefill,
    plan_attention_prefill,
)
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


def check(inputs: list, config: Config, dtype: str = "fp32", device: Device = H200) -> None:
    plan = plan_attention_prefill(*inputs, config=config, device=device)
    plan.outputs[0].fill_(float("nan"))
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
    inputs[0] = inputs[0][prefix:]
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


def test_hugging_face_layout() -> None:
    """[B, H, T, D], one sequence at a time, keys from a longer cache."""
    q = torch.randn(2, 4, 18, 64)
    cache = torch.randn(2, 2, 30, 64)
    inputs = [q[1].transpose(0, 1), cache[1, :, :18].transpose(0, 1), cache[0, :, :18].transpose(0, 1), 0.125, 0]
    check(inputs, config_of())


def test_agrees_with_torch() -> None:
    """An oracle that is not ours."""
    q, k, v, scale, _ = inputs_of(40, q_heads=4, kv_heads=2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(0, 1)[None] for tensor in (q, k, v)), is_causal=True, scale=scale, enable_gqa=True
    )
    actual = attention_prefill(q, k, v, scale, 0, config=config_of(32, 16), device=H200)
    torch.testing.assert_close(actual, expected[0].transpose(0, 1), rtol=2e-5, atol=2e-5)


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
        (0, torch.zeros(9, 2), "q has shape"),
        (0, torch.zeros(10, 2, 64), "10 queries cannot be the last of 9 keys"),
        (0, torch.zeros(9, 64, 2).transpose(1, 2), "stride 2 over its last axis"),
        (1, torch.zeros(9, 1, 32), "k has shape"),
        (2, torch.zeros(8, 1, 64), "v has shape"),
        (2, torch.zeros(9, 1, 64, dtype=torch.float16), "v is torch.float16"),
        (3, 0.0, "scale 0.0 must be positive"),
        (4, -1, "window -1 must not be negative"),
    ],
    ids=str,
)
def test_refuses(place: int, value: object, words: str) -> None:
    inputs = inputs_of(9)
    inputs[place] = value
    with pytest.raises(ValueError, match=words):
        plan_attention_prefill(*inputs, config=config_of(), device=H200)
