"""Linear layers: every product with a parameter, and no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from paiton.compiler.patterns.linear import PATTERN

from ..rewriting import rewrite_and_compare

N, K = 12, 8


def _tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(*size, generator=generator).to(dtype) for size in ((2, 3, K), (N, K), (N,)))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        F.linear,
        lambda x, weight, bias: F.linear(x, weight),
        lambda x, weight, bias: F.linear(x, weight, None),
        lambda x, weight, bias: F.linear(input=x, bias=bias, weight=weight),
        lambda x, weight, bias: torch._C._nn.linear(x[0], weight, bias),
    ],
)
def test_matches(layer: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    assert rewrite_and_compare(layer, *_tensors(dtype), patterns=[PATTERN]).operators == {"linear": 1}


def test_rejects_a_weight_of_symbolic_size() -> None:
    """A weight that is an argument, and not a parameter, has symbolic sizes under dynamic=True."""
    done = rewrite_and_compare(F.linear, *_tensors(), patterns=[PATTERN], dynamic=True)
    assert not done.operators and "no fixed size" in done.reasons[0]


class _Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(K, N)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_a_module_under_dynamic_shapes() -> None:
    assert rewrite_and_compare(_Layer(), _tensors()[0], patterns=[PATTERN], dynamic=True).operators == {"linear": 1}


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda x, weight, bias: F.linear(x, weight + 1), "the weight is computed"),
        (lambda x, weight, bias: F.linear(x, weight, bias + 1), "the bias is computed"),
        (lambda x, weight, bias: F.linear(x[0, 0], weight, bias), "no axis of tokens"),
        (lambda x, weight, bias: F.linear(x, bias[:K].clone()), "the weight is computed"),
    ],
)
def test_rejects(layer: Callable[..., torch.Tensor], reason: str) -> None:
    done = rewrite_and_compare(layer, *_tensors(), patterns=[PATTERN])
    assert not done.operators and reason in done.reasons[0], done.reasons


def test_rejects_a_vector_as_weight() -> None:
    x, _, bias = _tensors()
    done = rewrite_and_compare(F.linear, x, bias[:K].clone(), None, patterns=[PATTERN])
    assert not done.operators and "has 1 axes" in done.reasons[0]


def test_rejects_a_transposed_weight() -> None:
    x, weight, bias = _tensors()
    done = rewrite_and_compare(F.linear, x, weight.t().contiguous().t(), bias, patterns=[PATTERN])
    assert not done.operators and "not contiguous" in done.reasons[0]


def test_an_input_of_another_layout() -> None:
    """The operation copies what it must; its output is contiguous as that of F.linear."""
    x, weight, bias = _tensors()

    def layer(x, weight, bias):
        return F.linear(x.transpose(0, 1), weight, bias).view(-1)

    assert rewrite_and_compare(layer, x, weight, bias, patterns=[PATTERN]).operators == {"linear": 1}


def test_the_input_may_be_written_before_and_after() -> None:
    def layer(x, weight, bias):
        x.add_(1)
        y = F.linear(x, weight, bias)
        x.mul_(3)
        return y

    assert rewrite_and_compare(layer, *_tensors(), patterns=[PATTERN]).operators == {"linear": 1}
