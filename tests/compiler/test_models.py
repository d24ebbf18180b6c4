"""The three main models, whole: every site in every regime, outputs and tokens equal to eager, and how many graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from paiton.compiler.registration import register
from paiton.compiler.report import history
from paiton.compiler.site import Status

from .tiny_models import MAIN_FAMILIES, make_tiny, static_cache, tokens

ALL = {"paiton.sites": "all", "paiton.strict": True}
EAGER = ALL | {"paiton.lower": "eager"}
BATCHES = (1, 2, 3, 5, 8)
"""One graph for a batch of 1 and one for all others: torch's own 0/1 specialisation."""
PROMPT, CACHE = 7, 16

SHARED = {"qk_norm_rope": 1, "attention": 1, "linear_qkv": 1, "add_rms_norm": 2}
PER_LAYER: Mapping[str, Mapping[str, int]] = {
    # Beside the operators: o_proj; down_proj or the router's projection.
    "qwen2": SHARED | {"linear_silu_mul": 1, "linear": 2},
    "qwen3": SHARED | {"linear_silu_mul": 1, "linear": 2},
    "qwen3_moe": SHARED | {"router": 1, "experts": 1, "linear": 2},
}
ONCE = {"rms_norm": 1, "linear": 1}
"""Of the whole model: the first layer's first norm, for every other one is behind a sum, and lm_head."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Dynamo warns of functools.lru_cache in transformers


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register()
    with torch.no_grad():
        yield


def sites_of(family: str, layers: int, *, is_static_decode: bool = False) -> dict[str, int]:
    """The operators of ours that stand in a graph of a whole model."""
    counts = Counter({name: layers * count for name, count in PER_LAYER[family].items()})
    counts.update(ONCE)
    if is_static_decode:
        # One operation instead of two: it writes the cache as well.
        counts["attention_cache"] = counts.pop("attention")
        del counts["qk_norm_rope"]
    return dict(counts)


# The regimes: what one sequence of calls gives, the same for the model and for its compiled form


def without_a_cache(model: Any, config_of: Any, batch: int) -> list[Any]:
    return [model(tokens(batch, PROMPT), use_cache=False).logits]


def growing_cache(model: Any, config_of: Any, batch: int) -> list[Any]:
    ids, cache = tokens(batch, PROMPT + 3), DynamicCache(config=config_of.config)
    cuts = (slice(0, PROMPT), *(slice(at, at + 1) for at in range(PROMPT, PROMPT + 3)))
    return [model(ids[:, cut], past_key_values=cache).logits for cut in cuts]


def fixed_cache(model: Any, config_of: Any, batch: int) -> list[Any]:
    """As generate() does it: positions and a boolean mask over all of the cache are given."""
    ids, cache = tokens(batch, PROMPT + 3), static_cache(config_of, batch, CACHE)
    found = []
    for start, end in ((0, PROMPT), *((at, at + 1) for at in range(PROMPT, PROMPT + 3))):
        mask = torch.ones(end - start, CACHE, dtype=torch.bool).tril(start).expand(batch, 1, -1, -1)
        is_moe = hasattr(config_of.config, "num_experts")
        inputs = {
            "attention_mask": mask if is_moe else {"full_attention": mask},
            "position_ids": torch.arange(start, end).expand(batch, -1),
        }
        found.append(model(ids[:, start:end], past_key_values=cache, **inputs).logits)
    found += [each for layer in cache.layers for each in (layer.keys, layer.values)]
    return found


REGIMES = {each.__name__: each for each in (without_a_cache, growing_cache, fixed_cache)}


def _assert_like_eager(found: list[Any], expected: list[Any], family: str) -> None:
    """In bf16 to the last bit, but for the experts: their products are grouped otherwise than eager's on a CPU."""
    if expected[0].dtype == torch.float32:
        tolerance = {"rtol": 1e-5, "atol": 2e-5}
    else:
        tolerance = {"rtol": 0.0, "atol": 0.07 if family == "qwen3_moe" else 0.0}  # a bit of logits above 8
    torch.testing.assert_close(found, expected, **tolerance)


def _assert_all_sites(family: str, layers: int = 1) -> None:
    """Every site stands in every graph, and nothing was rejected, left or failed."""
    wanted = [sites_of(family, layers), sites_of(family, layers, is_static_decode=True)]
    for report in history.reports():
        assert not report.fallback and not report.reason
        wrong = [site for site in report.sites if site.status not in (Status.REPLACED, Status.JOINED)]
        assert not wrong, report.table()
        assert report.counts() in wanted, report.table()


# Per regime: the graphs of a batch of one, and as many again for every other batch. A growing cache has a graph for the
# prompt and one for a step; the second step of the first batch makes the length of the cache a symbol.
GRAPHS = {"without_a_cache": 2, "growing_cache": 5, "fixed_cache": 4}

CASES = [
    ("qwen3_moe", "without_a_cache", torch.float32),
    *((family, regime, torch.float32) for family in MAIN_FAMILIES for regime in ("growing_cache", "fixed_cache")),
    *((family, "fixed_cache", torch.bfloat16) for family in MAIN_FAMILIES),
]


@pytest.mark.parametrize(("family", "regime", "dtype"), CASES, ids=str)
def test_every_batch_equals_eager(family: str, regime: str, dtype: torch.dtype) -> None:
    model, run, before = make_tiny(family, dtype, layers=1), REGIMES[regime], history.total
    compiled = torch.compile(model, backend="paiton", options=EAGER)
    for batch in BATCHES:
        _assert_like_eager(run(compiled, model, batch), run(model, model, batch), family)
    _assert_all_sites(family)
    assert history.total - before == GRAPHS[regime]


@pytest.mark.parametrize("regime", ["growing_cache", "fixed_cache"])
def test_torch_makes_as_many_graphs_for_a_backend_that_does_nothing(regime: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def bare(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(module)
        return module.forward

    model = make_tiny("qwen3", layers=1)
    compiled = torch.compile(model, backend=bare)
    for batch in BATCHES:
        REGIMES[regime](compiled, model, batch)
    assert len(graphs) == GRAPHS[regime]
