"""The gated half of an MLP, and its neighbours that are something else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from paiton.compiler.patterns.swiglu import PATTERN

from ..rewriting import rewrite_and_compare

N, K = 12, 8


def _tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(*size, generator=generator).to(dtype) for size in ((2, 3, K), (N, K), (N, K)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "mlp",
    [
        lambda x, gate, up: F.silu(F.linear(x, gate)) * F.linear(x, up),
        lambda x, gate, up: torch.mul(F.linear(x, up), F.silu(F.linear(x, gate))),
        lambda x, gate, up: F.linear(x, up).mul(F.silu(F.linear(x, gate, None), inplace=False).contiguous()),
    ],
)
def test_matches(mlp: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    done = rewrite_and_compare(mlp, *_tensors(dtype), patterns=[PATTERN])
    assert done.operators == {"linear_silu_mul": 1}
    assert len(done.modules[0].graph.nodes) == 5  # three inputs, the call, the output


def _shared_gate(x, gate, up):
    first = F.linear(x, gate)
    return F.silu(first) * F.linear(x, up) + first.sum()


def _shared_silu(x, gate, up):
    first = F.silu(F.linear(x, gate))
    return first * F.linear(x, up) + first.sum()


def _shared_up(x, gate, up):
    second = F.linear(x, up)
    return F.silu(F.linear(x, gate)) * second + second.sum()


def _written_x(x, gate, up):
    first = F.silu(F.linear(x, gate))
    second = F.linear(x, up)
    x.add_(1)
    return first * second


def _written_x_between(x, gate, up):
    first = F.silu(F.linear(x, gate))
    x[0].add_(1)
    return first * F.linear(x, up)


def _written_weight(x, gate, up):
    first = F.silu(F.linear(x, gate))
    gate.mul_(2)
    return first * F.linear(x, up)


@pytest.mark.parametrize(
    ("mlp", "reason"),
    [
        (lambda x, gate, up: F.silu(F.linear(x, gate)) * F.linear(x + 1, up), "different inputs"),
        (lambda x, gate, up: F.silu(F.linear(x, gate, gate[:, 0])) * F.linear(x, up), "the bias is computed"),
        (lambda x, gate, up: F.silu(F.linear(x, gate)) * F.linear(x, up + 0), "the weight is computed"),
        (lambda x, gate, up: F.silu(F.linear(x, gate), inplace=True) * F.linear(x, up), "writes its input"),
        (_shared_gate, "used elsewhere"),
        (_shared_silu, "used elsewhere"),
        (_shared_up, "used elsewhere"),
        (_written_x, "written in place"),
        (_written_x_between, "written in place"),
        (_written_weight, "written in place"),
    ],
)
def test_rejects(mlp: Callable[..., torch.Tensor], reason: str) -> None:
    done = rewrite_and_compare(mlp, *_tensors(), patterns=[PATTERN])
    # silu in place is another operation to torch, and may have no anchor.
    assert not done.operators and (reason == "writes its input" or reason in done.reasons[0]), done.reasons


@pytest.mark.parametrize("which", ["gate", "up"])
def test_rejects_a_bias(which: str) -> None:
    def mlp(x, gate, up, bias):
        return F.silu(F.linear(x, gate, bias if which == "gate" else None)) * F.linear(
            x, up, bias if which == "up" else None
        )

    done = rewrite_and_compare(mlp, *_tensors(), torch.randn(N), patterns=[PATTERN])
    assert not done.operators and done.reasons == ["gate or up has a bias"]


def test_rejects_other_sizes() -> None:
    """One row of `up` broadcasts over the gate."""
    x, gate, up = _tensors()
    done = rewrite_and_compare(
        lambda x, gate, up: F.silu(F.linear(x, gate)) * F.linear(x, up), x, gate, up[:1].clone(), patterns=[PATTERN]
    )
    assert not done.operators and done.reasons == ["gate and up have different sizes"]


@pytest.mark.parametrize(
    "mlp",
    [
        lambda x, gate, up: F.gelu(F.linear(x, gate)) * F.linear(x, up),
        lambda x, gate, up: F.silu(x) * x,
        lambda x, gate, up: F.silu(F.linear(x, gate)) * 2,
        lambda x, gate, up: F.silu(F.linear(x, gate)) * F.silu(F.linear(x, up)),
        lambda x, gate, up: F.silu(F.linear(x, gate)) + F.linear(x, up),
        lambda x, gate, up: (lambda pair: F.silu(pair[0]) * pair[1])(F.linear(x, gate).chunk(2, -1)),
    ],
)
def test_others_are_no_sites(mlp: Callable[..., torch.Tensor]) -> None:
    assert not rewrite_and_compare(mlp, *_tensors(), patterns=[PATTERN]).sites
