"""Inductor's side of a site: numbers of launches as counted in its generated code, and what makes it slower."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paiton.compiler.worth import Kernel, Setting, beside_us, expected, kernel_us, patterns
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.model.constants import constants_of
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.registry import space_of

MI300X = resolve("MI300X")
MOE = {"experts": 128, "top_k": 8, "hidden": 2048, "inter": 768}
HEADS = {"q_heads": 32, "kv_heads": 4, "head_dim": 128}
DECODE = HEADS | {"window": 0, "context": 4096}
LINEAR = {"n": 2048, "k": 4096, "bias": 0, "residual": 0}


def problem(kernel: str, batch: int = 8, **dims: int) -> Problem:
    return space_of(kernel).problem(dtype="bf16", batch=batch, **dims)


# Counted in the Triton code that Inductor of torch 2.13 generates, and the calls into libraries between it.
LAUNCHES = [
    ("rms_norm", problem("rms_norm", hidden=2048), Setting(), 1),
    ("add_rms_norm", problem("add_rms_norm", hidden=2048), Setting(), 1),
    ("linear", problem("linear", **LINEAR), Setting(), 1),
    ("linear_residual", problem("linear", **LINEAR | {"residual": 1}), Setting(), 2),
    ("linear_residual", problem("linear", **LINEAR | {"residual": 1}), Setting(sum_is_fused=True), 1),
    ("linear_qkv", problem("linear_qkv", n_q=4096, n_kv=512, k=2048, bias=0), Setting(), 3),
    ("linear_silu_mul", problem("linear_silu_mul", n=768, k=2048), Setting(), 3),
    ("qk_norm_rope", problem("qk_norm_rope", **HEADS, qk_norm=1), Setting(), 2),
    ("attention", problem("attention_decode", **DECODE), Setting(), 1),
    ("attention", problem("attention_decode", **DECODE), Setting(repeats_kv=True, has_mask=True), 4),
    ("attention", problem("attention_prefill", 512, **HEADS, window=0), Setting(sequences=2), 1),
    ("attention_cache", problem("attention_decode_fused", **DECODE, qk_norm=1), Setting(repeats_kv=True), 6),
    ("router", problem("router", experts=128, top_k=8, renormalize=1), Setting(), 4),
    ("experts", problem("moe_gate_up", **MOE), Setting(), 11),
    ("experts", problem("moe_gate_up", **MOE), Setting(gathers_weights=True), 6),
    ("experts_residual", problem("moe_gate_up", **MOE), Setting(), 12),
]


@pytest.mark.parametrize(("pattern", "asked", "setting", "launches"), LAUNCHES)
def test_launches(pattern: str, asked: Problem, setting: Setting, launches: int) -> None:
    found = expected(pattern, asked, setting, MI300X)
    assert found.launches == launches
    assert found.us == pytest.approx(sum(kernel_us(each, MI300X, "bf16") for each in found.kernels))
    assert found.us > launches * constants_of(MI300X).launch_us


def test_every_pattern_is_here() -> None:
    assert {pattern for pattern, *_ in LAUNCHES} == set(patterns())


def test_a_kernel_is_bound_by_the_slower_of_bytes_and_flops() -> None:
    nothing = kernel_us(Kernel("nothing", 0.0), MI300X, "bf16")
    streaming = kernel_us(Kernel("stream", 4.2e9), MI300X, "bf16") - nothing
    assert streaming == pytest.approx(1000, rel=0.01), "4.2 GB at 4.2 TB/s"
    computing = kernel_us(Kernel("dot", 0.0, flops=1307e6 * 100, peak=0.5), MI300X, "bf16") - nothing
    assert computing == pytest.approx(200, rel=0.01), "100 µs of the bf16 peak, half of it reached"
    both = kernel_us(Kernel("both", 4.2e9, flops=1307e6 * 100), MI300X, "bf16") - nothing
    assert both == pytest.approx(streaming)


def test_repeated_heads_and_a_mask_cost() -> None:
    asked = problem("attention_decode", **DECODE)
    times = [
        expected("attention", asked, setting, MI300X).us
        for setting in (Setting(), Setting(has_mask=True), Setting(has_mask=True, repeats_kv=True))
    ]
    assert times == sorted(times)
    assert times[2] > 3 * times[0]


def test_gathered_weights_cost_three_times_their_bytes() -> None:
    asked = problem("moe_gate_up", 1, **MOE)
    weights = 3 * 8 * 768 * 2048 * 2
    gathered = sum(each.bytes for each in expected("experts", asked, Setting(gathers_weights=True), MI300X).kernels)
    assert gathered == pytest.approx(3 * weights, rel=0.01)


def test_beside_is_only_of_patterns_with_parts() -> None:
    norm = problem("add_rms_norm", hidden=2048)
    assert beside_us("add_rms_norm", norm, Setting(), MI300X) > constants_of(MI300X).launch_us
    assert beside_us("rms_norm", replace(norm, kernel="rms_norm"), Setting(), MI300X) == 0.0
