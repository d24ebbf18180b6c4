"""Attention, router and experts in whole decoders: each way of Hugging Face to keep the past, on a CPU's and a GPU's
branches of transformers. device="meta" takes every branch that is not a CPU's and needs no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from paiton.compiler.patterns import attention, experts, router

from ..rewriting import Rewritten, backend, rewrite
from ..tiny_models import make_tiny, static_cache, tokens

PATTERNS = [router.PATTERN, experts.PATTERN, attention.PATTERN]
BATCH, LENGTH, CAPACITY = 2, 9, 16

pytestmark = pytest.mark.transformers_versions


def _dynamic_cache(model: Any) -> DynamicCache:
    """With a past of LENGTH tokens."""
    config, generator = model.config, torch.Generator().manual_seed(3)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = DynamicCache(config=config)
    past = torch.randn(2, BATCH, config.num_key_value_heads, LENGTH, head_dim, generator=generator)
    cache.update(*past.to(model.dtype).to(model.device), 0)
    return cache


def _static(model: Any, queries: int) -> dict[str, Any]:
    """As `generate` calls the model: an allocated cache, and a mask over all of it as an input."""
    mask = torch.ones(BATCH, 1, queries, CAPACITY, dtype=torch.bool, device=model.device).tril()
    positions = torch.arange(queries, device=model.device).expand(BATCH, -1)
    is_mixture = hasattr(model.config, "num_experts_per_tok")
    return {
        "past_key_values": static_cache(model, BATCH, CAPACITY),
        "attention_mask": mask if is_mixture else {"full_attention": mask},
        "position_ids": positions,
    }


SCENARIOS = {
    "no cache": (LENGTH, lambda model: {"use_cache": False}),
    "dynamic prefill": (LENGTH, lambda model: {"past_key_values": DynamicCache(config=model.config)}),
    "dynamic decode": (1, lambda model: {"past_key_values": _dynamic_cache(model)}),
    "static prefill": (LENGTH, lambda model: _static(model, LENGTH)),
    "static decode": (1, lambda model: _static(model, 1)),
}
CASES = [
    *(("qwen3", None, scenario) for scenario in SCENARIOS),
    ("qwen2", None, "static decode"),
    ("qwen3_moe", "grouped_mm", "dynamic prefill"),
    ("qwen3_moe", "batched_mm", "static decode"),
]


@pytest.mark.parametrize(("kind", "form", "scenario"), CASES)
def test_on_a_cpu(kind: str, form: str | None, scenario: str) -> None:
    model = make_tiny(kind, torch.float32, layers=1, experts_implementation=form)
    length, arguments = SCENARIOS[scenario]
    ids = tokens(BATCH, length)
    done = rewrite(model, ids, patterns=PATTERNS, **arguments(model))
    mixture = {"router": 1, "experts": 1} if form else {}
    assert done.counts == {"attention": 1, **mixture} and not done.reasons, done.reasons
    assert f"8/2 heads of {16 if kind == 'qwen2' else 32}" in done.sites[-1].detail
    with torch.no_grad():
        expected = model(ids, **arguments(model))
    torch.testing.assert_close(done.result.logits, expected.logits)


# Without a mask transformers asks for grouped heads by `enable_gqa` there, with one it repeats keys and values.
# DynamicCache's first, empty tensor is of the default device, which Dynamo refuses on "meta".
GPU_CASES = [
    ("qwen3_moe", "grouped_mm", "no cache"),
    ("qwen3_moe", "grouped_mm", "static prefill"),
    ("qwen3_moe", "batched_mm", "static decode"),
    ("qwen3_moe", "batched_mm", "dynamic decode"),
    ("qwen3", None, "static decode"),
    ("qwen2", None, "dynamic decode"),
]


@pytest.mark.parametrize(("kind", "form", "scenario"), GPU_CASES)
def test_on_the_branches_of_a_gpu(kind: str, form: str | None, scenario: str) -> None:
    model = make_tiny(kind, torch.bfloat16, layers=1, device="meta", experts_implementation=form)
    length, arguments = SCENARIOS[scenario]
    done = rewrite(model, tokens(BATCH, length, device="meta"), patterns=PATTERNS, **arguments(model))
    mixture = {"router": 1, "experts": 1} if form else {}
    assert done.counts == {"attention": 1, **mixture} and not done.reasons, done.reasons
    if form:
        assert form in done.sites[1].detail
    if scenario == "static decode":
        (call,) = (node for node in done.modules[0].graph.nodes if node.name.startswith("attention_default"))
        assert [each.op for each in call.args[1:4]] == ["placeholder"] * 3


def test_a_growing_cache_needs_three_graphs() -> None:
    """The prompt, the first step, and one of symbolic length for every other; all match, layer by layer."""
    model = make_tiny("qwen3", torch.float32, layers=2)
    done = Rewritten()
    compiled = torch.compile(model, backend=backend(PATTERNS, done))
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    ids = tokens(BATCH, LENGTH)
    with torch.no_grad():
        for step in range(4):
            given = ids if step == 0 else ids[:, step : step + 1]
            logits, expected = (
                each(given, past_key_values=c).logits for each, c in zip((compiled, model), caches, strict=True)
            )
            torch.testing.assert_close(logits, expected)
    assert len(done.modules) == 3 and done.counts == {"attention": 6}, done.reasons
