"""generate() through the backend: the tokens of eager with the same kind of cache, for as many graphs as regimes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import paiton
from paiton.compiler.registration import register
from paiton.compiler.report import history
from paiton.compiler.site import Status

from .test_models import sites_of
from .tiny_models import MAIN_FAMILIES, make_tiny, tokens

ALL = {"paiton.sites": "all", "paiton.strict": True, "paiton.lower": "aot_eager"}
STEPS = 64

pytestmark = [
    pytest.mark.transformers_versions,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Dynamo warns of functools.lru_cache in transformers
]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register()
    with torch.no_grad():
        yield


def _generated(model: Any, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    found: torch.Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, do_sample=False, **settings
    )
    assert found.shape[1] == ids.shape[1] + STEPS
    return found


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_a_static_cache_gives_the_tokens_of_eager_for_two_graphs(family: str) -> None:
    """One for prompts, one for steps; another prompt as long as the first adds none."""
    model, ids, another = make_tiny(family, layers=1), tokens(2, 9, seed=0), tokens(2, 9, seed=1)
    expected = _generated(model, ids, cache_implementation="static")
    # The same number of steps: the length of the cache follows from it, and would be another graph.
    expected_of_another = _generated(model, another, cache_implementation="static")
    paiton.compile(model, options=ALL)
    before = history.total
    assert torch.equal(_generated(model, ids), expected)
    assert torch.equal(_generated(model, another), expected_of_another)
    assert history.total - before == 2
    prompt, step = history.reports()
    assert prompt.counts() == sites_of(family, 1)
    assert step.counts() == sites_of(family, 1, is_static_decode=True)
    assert {site.status for report in (prompt, step) for site in report.sites} <= {Status.REPLACED, Status.JOINED}


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_a_growing_cache_gives_the_tokens_of_eager_for_three_graphs(family: str) -> None:
    """The prompt, the first step, and steps with a cache of any length: what torch makes for any backend."""
    model, ids = make_tiny(family, layers=1), tokens(2, 9)
    expected = _generated(model, ids)
    model.compile(backend="paiton", options=ALL)
    before = history.total
    assert torch.equal(_generated(model, ids), expected)
    assert history.total - before == 3
    assert all(report.counts() == sites_of(family, 1) for report in history.reports())
