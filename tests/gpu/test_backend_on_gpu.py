"""The torch.compile backend on a GPU: whole models through generate(), with and without CUDA graphs, against eager."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

import paiton
from paiton.compiler.report import history
from paiton.compiler.site import Status

from ..compiler.tiny_models import MAIN_FAMILIES, make_tiny, tokens

pytestmark = pytest.mark.gpu
STEPS = {"max_new_tokens": 64, "do_sample": False}


def _eager(kind: str, batch: int) -> torch.Tensor:
    model = make_tiny(kind, device="cuda")
    model.generation_config.disable_compile = True
    with torch.no_grad():
        found: torch.Tensor = model.generate(tokens(batch, device="cuda"), cache_implementation="static", **STEPS)
    return found


@pytest.mark.parametrize("kind", MAIN_FAMILIES)
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_tokens_are_those_of_eager(kind: str, mode: str | None) -> None:
    torch._dynamo.reset()
    history.clear()
    counters.clear()
    model = paiton.compile(make_tiny(kind, device="cuda"), mode=mode, options={"paiton.sites": "all"})
    with torch.no_grad():
        for batch in (2, 5):
            assert torch.equal(model.generate(tokens(batch, device="cuda"), **STEPS), _eager(kind, batch))
    assert all(report.has_operators and not report.fallback for report in history.reports())
    assert not any(report.counts(Status.ERROR) for report in history.reports())
    if mode is not None:
        assert counters["inductor"]["cudagraph_skips"] == 0
