"""q, k and v projections as one product: which three linear layers they are, and what may read the slices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from paiton.compiler.patterns.qkv import PATTERN

from ..rewriting import rewrite_and_compare

Q, KV, K, D = 16, 8, 12, 4


def _tensors(dtype: torch.dtype = torch.float32, rows: tuple[int, int, int] = (Q, KV, KV)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    sizes = ((2, 3, K), *((n, K) for n in rows), *((n,) for n in rows))
    return tuple(torch.randn(*size, generator=generator).to(dtype) for size in sizes)


def _heads(y: torch.Tensor) -> torch.Tensor:
    return y.view(2, 3, -1, D).transpose(1, 2)


def _attention(x, wq, wk, wv, bq, bk, bv):
    return _heads(F.linear(x, wq)), _heads(F.linear(x, wk)), _heads(F.linear(x, wv))


def _attention_with_bias(x, wq, wk, wv, bq, bk, bv):
    return _heads(F.linear(x, wq, bq)), _heads(F.linear(x, wk, bk)), _heads(F.linear(x, wv, bv))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", [_attention, _attention_with_bias])
def test_matches(layer: Callable[..., object], dtype: torch.dtype) -> None:
    done = rewrite_and_compare(layer, *_tensors(dtype), patterns=[PATTERN])
    assert done.operators == {"linear_qkv": 1}
    assert done.sites[0].detail == f"{Q} + 2 x {KV} x {K}" + (", bias" if layer is _attention_with_bias else "")


@pytest.mark.parametrize("rows", [(KV, KV, KV), (Q, KV, KV), (KV, Q, KV), (KV, KV, Q)])
def test_finds_q_by_its_size_or_else_by_its_place(rows: tuple[int, int, int]) -> None:
    done = rewrite_and_compare(_attention, *_tensors(rows=rows), patterns=[PATTERN])
    assert done.operators == {"linear_qkv": 1}
    call = done.sites[0].call
    assert call is not None
    names = ["l_wq_", "l_wk_", "l_wv_"]
    query = names.pop(rows.index(max(rows)))
    assert [str(each) for each in call.args[1:4]] == [query, *names]


def test_layers_follow_each_other() -> None:
    def layers(x, wq, wk, wv, bq, bk, bv):
        for _ in range(2):
            x = torch.cat((F.linear(x, wq, bq), F.linear(x, wk, bk), F.linear(x, wv, bv)), -1)[..., :K]
        return x

    assert rewrite_and_compare(layers, *_tensors(), patterns=[PATTERN]).operators == {"linear_qkv": 2}


def test_a_slice_may_be_written_in_place() -> None:
    def layer(x, wq, wk, wv, bq, bk, bv):
        q, k, v = _attention(x, wq, wk, wv, bq, bk, bv)
        q.mul_(3)
        return q, k.add_(1), v

    assert rewrite_and_compare(layer, *_tensors(), patterns=[PATTERN]).operators == {"linear_qkv": 1}


def _joined_axes(x, wq, wk, wv, bq, bk, bv):
    """Heads and their elements in one axis with the tokens: no view of a slice."""
    return F.linear(x, wq).view(-1), F.linear(x, wk), F.linear(x, wv)


def _joined_later(x, wq, wk, wv, bq, bk, bv):
    return F.linear(x, wq), F.linear(x, wk), F.linear(x, wv).view(6, -1).view(-1)


def _raw_strides(x, wq, wk, wv, bq, bk, bv):
    return F.linear(x, wq).as_strided((2, 2), (Q, 1)), F.linear(x, wk), F.linear(x, wv)


def _some_bias(x, wq, wk, wv, bq, bk, bv):
    return F.linear(x, wq, bq), F.linear(x, wk), F.linear(x, wv, bv)


def _four(x, wq, wk, wv, bq, bk, bv):
    return F.linear(x, wq), F.linear(x, wk), F.linear(x, wv), F.linear(x, wq, bq)


def _written(x, wq, wk, wv, bq, bk, bv):
    q, k = F.linear(x, wq), F.linear(x, wk)
    x.mul_(2)
    return q, k, F.linear(x, wv)


def _weight_written(x, wq, wk, wv, bq, bk, bv):
    q, k = F.linear(x, wq), F.linear(x, wk)
    wv.t()[0].zero_()
    return q, k, F.linear(x, wv)


def _computed(x, wq, wk, wv, bq, bk, bv):
    return F.linear(x, wq), F.linear(x, wk), F.linear(x, wv * 2)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (_joined_axes, "cannot view the new layout"),
        (_joined_later, "cannot view the new layout"),
        (_raw_strides, "reads raw strides"),
        (_some_bias, "2 of three projections have a bias"),
        (_four, "4 linear layers read one input"),
        (_written, "written in place"),
        (_weight_written, "written in place"),
        (_computed, "the weight is computed"),
    ],
)
def test_rejects(layer: Callable[..., object], reason: str) -> None:
    done = rewrite_and_compare(layer, *_tensors(), patterns=[PATTERN])
    assert not done.operators and len(done.reasons) == 1 and reason in done.reasons[0], done.reasons


@pytest.mark.parametrize("rows", [(16, 8, 4), (4, 8, 8)])
def test_rejects_sizes_that_are_not_q_k_v(rows: tuple[int, int, int]) -> None:
    done = rewrite_and_compare(_attention, *_tensors(rows=rows), patterns=[PATTERN])
    assert not done.operators and "are not q, k and v" in done.reasons[0]


def test_other_inputs_are_no_site() -> None:
    def layer(x, wq, wk, wv, bq, bk, bv):
        return F.linear(x, wq), F.linear(x, wk), F.linear(x + 0, wv)

    assert not rewrite_and_compare(layer, *_tensors(), patterns=[PATTERN]).sites


class _Block(torch.nn.Module):
    """Attention and MLP on one input, as in Cohere and Phi: the projections are told apart by their modules."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.ModuleDict(
            {name: torch.nn.Linear(K, n) for name, n in zip("qkv", (Q, KV, KV), strict=True)}
        )
        self.mlp = torch.nn.ModuleDict({name: torch.nn.Linear(K, Q) for name in ("gate", "up")})

    def forward(self, x):
        q, k, v = (self.attention[name](x) for name in "qkv")
        return q, k, v, self.mlp["gate"](x), self.mlp["up"](x)


def test_the_modules_tell_projections_apart() -> None:
    done = rewrite_and_compare(_Block(), _tensors()[0], patterns=[PATTERN])
    assert done.operators == {"linear_qkv": 1}
    assert done.sites[0].where == "attention.q"


def test_under_dynamic_shapes() -> None:
    done = rewrite_and_compare(_Block(), _tensors()[0], patterns=[PATTERN], dynamic=True)
    assert done.operators == {"linear_qkv": 1}
