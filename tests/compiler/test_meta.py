"""The branches of transformers for GPUs, without one: on `device="meta"` a model takes every `device.type != "cpu"`.

Nothing is computed; what is tested is that every site is there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from paiton.compiler.registration import register
from paiton.compiler.report import history
from paiton.compiler.site import Status

from .test_models import sites_of
from .tiny_models import MAIN_FAMILIES, make_tiny, static_cache, tokens

BATCH, LAYERS, CACHE = 2, 2, 32
EAGER = {"paiton.sites": "all", "paiton.strict": True, "paiton.lower": "eager"}

pytestmark = [
    pytest.mark.transformers_versions,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Dynamo warns of functools.lru_cache in transformers
]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register()
    with torch.no_grad():
        yield


# generate() switches the experts to batched_mm for the steps of a compiled model on a GPU.
CASES = [
    ("qwen3_moe", "grouped_mm", 16),
    ("qwen3_moe", "batched_mm", 1),
    ("qwen3_moe", "grouped_mm", 1),
    *((family, None, queries) for family in MAIN_FAMILIES if family != "qwen3_moe" for queries in (16, 1)),
]


@pytest.mark.parametrize(("family", "experts", "queries"), CASES)
def test_every_site_on_a_gpus_branches(family: str, experts: str | None, queries: int) -> None:
    model = make_tiny(family, torch.bfloat16, LAYERS, device="meta", experts_implementation=experts)
    mask = torch.ones(BATCH, 1, queries, CACHE, dtype=torch.bool, device="meta")
    compiled = torch.compile(model, backend="paiton", options=EAGER, fullgraph=True)
    compiled(
        tokens(BATCH, queries, device="meta"),
        past_key_values=static_cache(model, BATCH, CACHE),
        attention_mask=mask if family == "qwen3_moe" else {"full_attention": mask},
        position_ids=torch.zeros(BATCH, queries, dtype=torch.long, device="meta"),
    )
    (report,) = history.reports()
    assert report.counts() == sites_of(family, LAYERS, is_static_decode=queries == 1), report.table()
    assert {site.status for site in report.sites} <= {Status.REPLACED, Status.JOINED}, report.table()


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_every_site_of_a_prompt_without_a_cache(family: str) -> None:
    model = make_tiny(family, torch.bfloat16, LAYERS, device="meta")
    torch.compile(model, backend="paiton", options=EAGER)(tokens(BATCH, 16, device="meta"), use_cache=False)
    (report,) = history.reports()
    assert report.counts() == sites_of(family, LAYERS), report.table()
