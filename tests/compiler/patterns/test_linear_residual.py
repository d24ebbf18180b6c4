"""A residual sum joined to the projection or the experts before it: where it must, and where it must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from paiton.compiler.passes import PATTERNS
from paiton.compiler.patterns import experts, linear, router
from paiton.compiler.patterns.linear_residual import EXPERTS_RESIDUAL, LINEAR_RESIDUAL
from paiton.compiler.site import Status

from ..rewriting import rewrite, rewrite_and_compare
from ..tiny_models import make_tiny, tokens

JOIN = [linear.PATTERN, LINEAR_RESIDUAL]
X, RESIDUAL = torch.randn(2, 3, 32), torch.randn(2, 3, 16)
WEIGHT, BIAS = torch.nn.Parameter(torch.randn(16, 32)), torch.nn.Parameter(torch.randn(16))


def project(x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, WEIGHT, BIAS)


MUST = {
    "residual first": lambda x, r: r + project(x),
    "residual last": lambda x, r: project(x) + r,
    "sum used twice": lambda x, r: (lambda s: (s * 2, s))(r + project(x)),
    "reshaped": lambda x, r: r.reshape(6, 16) + functional.linear(x.reshape(6, 32), WEIGHT),
    "rows back": lambda x, r: r + functional.linear(x.reshape(6, 32), WEIGHT).view(2, 3, 16),
    "computed residual": lambda x, r: torch.sin(r) + project(x),
}
MUST_NOT = {
    "product used elsewhere": lambda x, r: (lambda y: (y + r, y * 2))(project(x)),
    "broadcast": lambda x, r: project(x) + r[:1, :1],
    "scaled": lambda x, r: torch.add(project(x), r, alpha=2),
    "number": lambda x, r: project(x) + 1.0,
    "itself": lambda x, r: (lambda y: y + y)(project(x)),
    "other dtype": lambda x, r: project(x) + r.double(),
    "subtracted": lambda x, r: project(x) - r,
    "x written": lambda x, r: (lambda y: (x.mul_(2), y + r)[1])(project(x)),
}


@pytest.mark.parametrize("name", MUST)
def test_joins(name: str) -> None:
    done = rewrite_and_compare(MUST[name], X.clone(), RESIDUAL, patterns=JOIN)
    assert done.counts == {"linear_residual": 1}, done.reasons
    assert done.operators == {"linear": 1}


@pytest.mark.parametrize("name", MUST_NOT)
def test_does_not_join(name: str) -> None:
    done = rewrite_and_compare(MUST_NOT[name], X.clone(), RESIDUAL, patterns=JOIN)
    assert done.counts["linear_residual"] == 0
    assert not [site for site in done.sites if site.status is Status.ERROR]


def test_undo_gives_the_add_back() -> None:
    def undo(rewriter: Any) -> None:
        for site in rewriter.replaced("linear_residual"):
            assert rewriter.undo(site, "slower")

    done = rewrite(MUST["sum used twice"], X, RESIDUAL, patterns=JOIN, before_sweep=undo)
    torch.testing.assert_close(done.result, MUST["sum used twice"](X, RESIDUAL))
    assert done.counts == {"linear": 1}


def without_the_norm_that_takes_sums() -> list[Any]:
    return [pattern for pattern in PATTERNS if pattern.name != "add_rms_norm"] + [LINEAR_RESIDUAL, EXPERTS_RESIDUAL]


@pytest.mark.parametrize(("kind", "sums"), [("qwen3_moe", (1, 1)), ("qwen3", (2, 0)), ("qwen2_moe", (1, 1))])
def test_sums_of_a_model(kind: str, sums: tuple[int, int]) -> None:
    model, ids = make_tiny(kind, layers=1), tokens(2, 6)
    with torch.no_grad():
        expected = model(ids).logits
    done = rewrite(model, ids, patterns=without_the_norm_that_takes_sums())
    torch.testing.assert_close(done.result.logits, expected, rtol=1e-4, atol=1e-4)
    assert (done.counts["linear_residual"], done.counts["experts_residual"]) == sums, done.reasons


def test_nothing_is_joined_to_what_is_no_site() -> None:
    call: Callable[..., Any] = MUST["residual first"]
    done = rewrite_and_compare(call, X, RESIDUAL, patterns=[router.PATTERN, experts.PATTERN, LINEAR_RESIDUAL])
    assert not done.sites
