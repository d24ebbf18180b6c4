"""Norms, rotary embedding, projections and MLP of whole models: which sites, and values equal to eager."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from paiton.compiler.patterns import add_rms_norm, linear, qkv, rms_norm, rope, swiglu
from paiton.compiler.site import Status

from ..rewriting import Rewritten, backend, rewrite
from ..tiny_models import make_tiny, static_cache, tokens

PATTERNS = [each.PATTERN for each in (rms_norm, rope, add_rms_norm, swiglu, qkv, linear)]
SHARED = {"rms_norm": 1, "qk_norm_rope": 2, "add_rms_norm": 4, "linear_qkv": 2}
DENSE = SHARED | {"linear_silu_mul": 2, "linear": 5}
FAMILIES: Mapping[str, Mapping[str, int]] = {
    "qwen2": DENSE,
    "qwen3": DENSE,
    "llama": DENSE,
    # o_proj and the router of each layer, and lm_head.
    "qwen3_moe": SHARED | {"linear": 5},
    "mixtral": SHARED | {"linear": 5},
    # The shared expert: one gated MLP, its down projection and its gate.
    "qwen2_moe": SHARED | {"linear_silu_mul": 2, "linear": 9},
    # OLMoE's q and k norms are over all heads together, and stay norms of their own.
    "olmoe": SHARED | {"rms_norm": 5, "linear": 5},
    # Gemma's norms multiply by 1 + weight, its MLP has GELU.
    "gemma2": {"qk_norm_rope": 2, "linear_qkv": 2, "linear": 9},
    # GPT-OSS rotates the halves of a head without a `cat` of a negation.
    "gpt_oss": {"rms_norm": 1, "add_rms_norm": 4, "linear_qkv": 2, "linear": 5},
    "phi3": {"rms_norm": 1, "add_rms_norm": 4, "linear": 9},
}
# The weight multiplies before the rounding there, which is another number in half precision.
ONLY_IN_FP32 = {"gpt_oss": ("rms_norm", "add_rms_norm")}

pytestmark = [
    pytest.mark.transformers_versions,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Dynamo warns of functools.lru_cache in transformers
]


def _assert_equal(got: Any, expected: Any) -> None:
    """Equal to the last bit: every body on the CPU rounds as the model does."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in FAMILIES),
        *((family, torch.bfloat16) for family in ("qwen2", "qwen3", "gpt_oss")),
    ],
    ids=str,
)
def test_prefill(family: str, dtype: torch.dtype) -> None:
    model, ids = make_tiny(family, dtype), tokens()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    done = rewrite(model, ids, patterns=PATTERNS, use_cache=False)
    lost = ONLY_IN_FP32.get(family, ()) if dtype != torch.float32 else ()
    assert done.operators == {name: count for name, count in FAMILIES[family].items() if name not in lost}
    assert not [site for site in done.sites if site.status is Status.ERROR]
    _assert_equal(done.result.logits, expected)


def test_places_are_named() -> None:
    done = rewrite(make_tiny("qwen3", layers=1), tokens(), patterns=PATTERNS, use_cache=False)
    places = {site.pattern: site.where for site in done.sites if site.status is Status.REPLACED}
    assert places["qk_norm_rope"] == "model.layers.0.self_attn"
    assert places["linear_qkv"] == "model.layers.0.self_attn.q_proj"
    assert places["linear_silu_mul"] == "model.layers.0.mlp"


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_under_dynamic_shapes(family: str) -> None:
    """Module floats such as an eps are graph inputs then."""
    model, ids = make_tiny(family), tokens()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    done = rewrite(model, ids, patterns=PATTERNS, dynamic=True, use_cache=False)
    assert done.operators == FAMILIES[family]
    _assert_equal(done.result.logits, expected)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_decode_with_a_growing_cache(family: str) -> None:
    model, ids = make_tiny(family, layers=1), tokens()
    own, ours = DynamicCache(), DynamicCache()
    done = Rewritten()
    compiled = torch.compile(model, backend=backend(PATTERNS, done))
    with torch.no_grad():
        for step in (ids[:, :5], ids[:, 5:6], ids[:, 6:7], ids[:, 7:8]):
            _assert_equal(compiled(step, past_key_values=ours).logits, model(step, past_key_values=own).logits)
    assert len(done.modules) == 3  # prefill, the first step, every later one
    one_layer = {"rms_norm": 1, "qk_norm_rope": 1, "add_rms_norm": 2, "linear_qkv": 1, "linear": 3}
    if family != "qwen3_moe":
        one_layer["linear_silu_mul"] = 1
    assert done.operators == {name: 3 * count for name, count in one_layer.items()}


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_static_cache(family: str, length: int) -> None:
    """The graph writes the cache it was given; both caches must hold the same afterwards."""
    model, ids = make_tiny(family), tokens()[:, :length]
    own, ours = static_cache(model), static_cache(model)
    mask = torch.ones(2, 1, length, 32, dtype=torch.bool).tril()
    inputs = {
        "position_ids": torch.arange(length).expand(2, -1),
        "attention_mask": mask if family == "qwen3_moe" else {"full_attention": mask},
    }
    with torch.no_grad():
        expected = model(ids, past_key_values=own, **inputs).logits
    done = rewrite(model, ids, patterns=PATTERNS, past_key_values=ours, **inputs)
    assert done.operators == FAMILIES[family]
    _assert_equal(done.result.logits, expected)
    for mine, theirs in zip(ours.layers, own.layers, strict=True):
        _assert_equal((mine.keys, mine.values), (theirs.keys, theirs.values))
        assert mine.keys.abs().sum() > 0


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_branches_for_other_devices(family: str) -> None:
    """device="meta" takes every branch of the model that is not for the CPU."""
    model = make_tiny(family, torch.bfloat16, device="meta")
    done = rewrite(model, tokens(device="meta"), patterns=PATTERNS, use_cache=False)
    assert done.operators == FAMILIES[family]
