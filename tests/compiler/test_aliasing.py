"""What is written in place, and whose storage is whose: every doubt must count as a write and as shared storage."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from paiton.compiler.aliasing import may_alias, mutated_args, storage_owner

from .rewriting import capture, writes


def _graph(function: Callable[..., Any], *args: Any) -> fx.Graph:
    return capture(function, *args)[0].module.graph


def _returned(graph: fx.Graph) -> fx.Node:
    node = next(iter(graph.find_nodes(op="output"))).args[0][0]  # type: ignore[index]
    assert isinstance(node, fx.Node)
    return node


def _iadd(x):
    x += 1
    return x


def _idiv(x):
    x /= 2
    return x


def _setitem(x):
    x[0] = 1
    return x


def _copy(x):
    x[0].copy_(x[1])
    return x


def _foreach(x):
    torch._foreach_add_([x], 1)
    return x


def _out(x):
    torch.add(x, 1, out=x)
    return x


@pytest.mark.parametrize(
    "function",
    [
        _iadd, _idiv, _setitem, _copy, _foreach, _out,
        lambda x: x.index_copy_(0, torch.tensor([0]), x[1:2].clone()),
        lambda x: x.masked_fill_(x > 0, 0),
        lambda x: torch.relu_(x),
        lambda x: F.silu(x, inplace=True),
        lambda x: F.relu(x, True),
        lambda x: torch.ops.aten.add_.Tensor(x, 1),
        lambda x: torch.ops.aten.add_(x, 1),
        lambda x: operator.imul(x, 2),
    ],
)  # fmt: skip
def test_writes(function: Callable[..., Any]) -> None:
    graph = _graph(function, torch.randn(3, 4))
    written = [each for node in graph.nodes for each in mutated_args(node)]
    assert written and {storage_owner(each).op for each in written} == {"placeholder"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.add(1), lambda x: x + x, lambda x: F.silu(x), lambda x: F.relu(x, False), lambda x: x[0],
        lambda x: torch.add(x, 1), lambda x: x.size(0) + x, lambda x: torch.ops.aten.add.Tensor(x, 1),
    ],
)  # fmt: skip
def test_reads(function: Callable[..., Any]) -> None:
    assert writes(_graph(function, torch.randn(3, 4))) == []


def test_in_place_arithmetic_of_numbers_writes_no_tensor() -> None:
    def function(x):
        count = x.shape[0]
        count += 1
        return x * count

    captured = capture(function, torch.randn(3, 4), dynamic=True)[0]
    assert writes(captured.module.graph) == []


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(-1), lambda x: x.reshape(2, 6), lambda x: x.T, lambda x: x.mT, lambda x: x[0],
        lambda x: x[:, 1:],
        lambda x: x.chunk(2)[1], lambda x: x.split(2, -1)[0], lambda x: x.unbind(0)[1], lambda x: x.narrow(0, 0, 1),
        lambda x: x.select(0, 1), lambda x: x.diagonal(), lambda x: x.movedim(0, 1), lambda x: x.unflatten(1, (2, 2)),
        lambda x: x.unfold(1, 2, 1), lambda x: x.as_strided((2, 2), (1, 1)), lambda x: torch.narrow(x, 0, 0, 1),
        lambda x: x.squeeze(0).unsqueeze(1).expand(3, 5, 4), lambda x: x.detach().transpose(0, 1).flatten(),
        lambda x: torch.tensor_split(x, 2)[0], lambda x: x.float().contiguous().to(torch.float32), lambda x: x.real,
        lambda x: torch.unbind(x, 1)[2], lambda x: x.data, lambda x: x.add_(1)[0].view(-1), lambda x: x.view_as(x),
        lambda x: torch.broadcast_to(x, (2, 3, 4)), lambda x: torch.select(x, 0, 0), lambda x: x.ravel(),
        lambda x: torch.ops.aten.slice.Tensor(x, 0, 0, 1), lambda x: x.view(torch.int32),
    ],
)  # fmt: skip
def test_views_lead_back_to_what_they_view(view: Callable[..., Any]) -> None:
    reader = _returned(_graph(lambda x: view(x).exp(), torch.randn(3, 4)))
    assert storage_owner(reader).op != "placeholder"
    viewed = reader.args[0]
    assert isinstance(viewed, fx.Node) and viewed.op != "placeholder"
    assert storage_owner(viewed).op == "placeholder"


@pytest.mark.parametrize(
    "function", [lambda x: x + 1, lambda x: x.exp()[0], lambda x: torch.cat((x, x)), lambda x: x @ x.T]
)
def test_new_tensors_own_their_storage(function: Callable[..., Any]) -> None:
    owner = storage_owner(_returned(_graph(function, torch.randn(3, 4))))
    assert owner.op != "placeholder"


def test_two_inputs_that_view_one_tensor() -> None:
    base = torch.randn(4, 4)
    graph = _graph(lambda x, y: x + y.sum(), base[:2], base[1:])
    x, y = graph.find_nodes(op="placeholder")
    assert may_alias(x, y)
    graph = _graph(lambda x, y: x + y.sum(), base, torch.randn(4))
    x, y = graph.find_nodes(op="placeholder")
    assert not may_alias(x, y)


def test_an_operator_of_unknown_effect_writes_everything() -> None:
    """A region of its own, such as a branch, may do anything to what it reads."""

    def function(x, flag):
        return torch.cond(flag, lambda y: y + 1, lambda y: y - 1, (x,))

    graph = _graph(function, torch.randn(3), torch.tensor(True))
    regions = [node for node in graph.nodes if isinstance(node.target, torch._ops.HigherOrderOperator)]
    assert regions and all(mutated_args(node) for node in regions)


def test_a_long_chain_of_writes() -> None:
    def function(x):
        for _ in range(400):
            x = x.add_(1)
        return x

    assert storage_owner(_returned(_graph(function, torch.zeros(2)))).op == "placeholder"
