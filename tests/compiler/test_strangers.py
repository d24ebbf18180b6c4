"""Models that nobody made this backend for: values equal to eager, a reason for whatever is not replaced, no fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import logging

from paiton.compiler.registration import register
from paiton.compiler.report import history
from paiton.compiler.site import Status

from .tiny_models import FAMILIES, MAIN_FAMILIES, make_tiny, tokens

STRANGERS = tuple(family for family in FAMILIES if family not in MAIN_FAMILIES)
EAGER = {"paiton.sites": "all", "paiton.strict": True, "paiton.lower": "eager"}

WITH_A_STEP = ("mixtral", "qwen2_moe", "olmoe", "llama", "gemma2", "gpt_oss", "mistral", "phi3", "deepseek_v3")

NOT_OURS = {
    "gemma2": {"rms_norm": "1 + weight"},
    "gemma3_text": {"rms_norm": "1 + weight"},
    "gpt_oss": {"router": "another gating function", "experts": ""},
    "granitemoe": {"router": "another gating function"},
    "phi3": {"qk_norm_rope": "partial rotary"},
    "glm4_moe": {"router": "another gating function", "qk_norm_rope": "partial rotary"},
    "deepseek_v3": {"router": "another gating function", "attention": "key and value differ"},
    "cohere2": {"rms_norm": ""},
}
"""Patterns that a family's own form must not match, and part of the reason that is given."""

pytestmark = [
    pytest.mark.transformers_versions,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Dynamo warns of functools.lru_cache in transformers
    pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning"),  # and of BLOOM
]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    with torch.no_grad():
        yield
    logging.set_verbosity(verbosity)


def _prompt_and_step(model: Any, has_step: bool) -> list[torch.Tensor]:
    """The logits of a prompt, and of one more token with the model's own kind of cache."""
    ids = tokens(2, 9)
    prompt = model(ids[:, :8], use_cache=True)
    if not has_step:
        return [prompt.logits]
    return [prompt.logits, model(ids[:, 8:], past_key_values=prompt.past_key_values).logits]


@pytest.mark.parametrize("family", STRANGERS)
def test_a_stranger_runs_as_in_eager(family: str) -> None:
    model, has_step = make_tiny(family), family in WITH_A_STEP
    expected = _prompt_and_step(model, has_step)
    found = _prompt_and_step(torch.compile(model, backend="paiton", options=EAGER), has_step)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)
    assert len(history.reports()) >= 1 + has_step
    rejected: dict[str, str] = {}
    for report in history.reports():
        assert not report.fallback and not report.reason, report.table()
        for site in report.sites:
            assert site.status is not Status.ERROR, report.table()
            if site.status is Status.REJECTED:
                assert site.why
                rejected[site.pattern] = site.why
            else:
                assert site.status in (Status.REPLACED, Status.JOINED), report.table()
    for pattern, why in NOT_OURS.get(family, {}).items():
        assert why in rejected[pattern]
        assert not any(report.counts()[pattern] for report in history.reports())


def test_as_many_families_as_were_promised() -> None:
    assert {"mixtral", "qwen2_moe", "olmoe", "llama", "gemma2", "gemma3_text", "gpt_oss"} <= set(STRANGERS)
    assert len(STRANGERS) >= 20
