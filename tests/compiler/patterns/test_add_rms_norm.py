"""The residual add before an RMSNorm: taken in, and left outside where it is no plain residual."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from paiton.compiler.patterns import add_rms_norm, rms_norm
from paiton.compiler.site import Status

from ..rewriting import rewrite_and_compare

HIDDEN = 16
PATTERNS = [rms_norm.PATTERN, add_rms_norm.PATTERN]


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def _tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, residual = (torch.randn(3, 5, HIDDEN, generator=generator).to(dtype) for _ in range(2))
    return x, residual, (1 + torch.randn(HIDDEN, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("add", [torch.add, lambda x, r: r + x, lambda x, r: r.add(x)])
def test_matches(add: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    def layer(x, residual, weight):
        total = add(x, residual)
        return _norm(total, weight), total * 2

    done = rewrite_and_compare(layer, *_tensors(dtype), patterns=PATTERNS)
    assert done.operators == {"add_rms_norm": 1}
    assert [site.status for site in done.sites] == [Status.JOINED, Status.REPLACED]


def test_the_sum_may_have_readers_before_the_norm() -> None:
    def layer(x, residual, weight):
        total = x + residual
        early = total.exp()
        return early, _norm(total, weight), total

    assert rewrite_and_compare(layer, *_tensors(), patterns=PATTERNS).operators == {"add_rms_norm": 1}


def test_a_chain_of_layers() -> None:
    def layers(x, residual, weight):
        for _ in range(3):
            residual = residual + x
            x = _norm(residual, weight)
        return x, residual

    assert rewrite_and_compare(layers, *_tensors(), patterns=PATTERNS).operators == {"add_rms_norm": 3}


def test_two_norms_of_one_sum() -> None:
    """One takes the add in; the other reads the sum it gives."""

    def layer(x, residual, weight):
        total = x + residual
        return _norm(total, weight), _norm(total, weight * 1), _norm(total, weight)

    done = rewrite_and_compare(layer, *_tensors(), patterns=PATTERNS)
    assert done.operators == {"add_rms_norm": 1, "rms_norm": 1}


def test_a_norm_without_an_add_is_no_site() -> None:
    done = rewrite_and_compare(lambda x, r, weight: _norm(x - r, weight), *_tensors(), patterns=PATTERNS)
    assert [site.pattern for site in done.sites] == ["rms_norm"]


def _written_between(x, residual, weight):
    total = x + residual
    out = total * 1
    total.mul_(2)
    return _norm(total, weight), out


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda x, r, weight: _norm(x + r[:, :1], weight), "broadcasts"),
        (lambda x, r, weight: _norm(x + r.to(torch.bfloat16), weight), "mixes"),
        (lambda x, r, weight: _norm(x + 1.5, weight), "a number is added"),
        (lambda x, r, weight: _norm(torch.add(x, r, alpha=2), weight), "scaled"),
        (_written_between, "written in place"),
    ],
)
def test_rejects(layer: Callable[..., object], reason: str) -> None:
    done = rewrite_and_compare(layer, *_tensors(), patterns=PATTERNS)
    assert done.operators == {"rms_norm": 1}
    assert len(done.reasons) == 1 and reason in done.reasons[0], done.reasons
