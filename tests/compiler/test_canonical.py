"""Reading a Dynamo graph: arguments wherever they were written, sizes without guards, steps that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from paiton.compiler import canonical as c

from .rewriting import capture


def _graph(function: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> dict[str, fx.Node]:
    """The nodes of a captured function by name; its result is `out`."""
    graph = capture(function, *args, dynamic=dynamic)[0].module.graph
    nodes = {node.name: node for node in graph.nodes}
    returned = next(iter(graph.find_nodes(op="output"))).args[0]
    nodes["out"] = returned[0]
    return nodes


X = torch.randn(2, 3, 4, 6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean(-1, True),
        lambda x: torch.mean(x, -1, keepdim=True),
        lambda x: torch.mean(input=x, dim=-1, keepdim=True),
        lambda x: x.mean(dim=-1, keepdim=True),
    ],
)
def test_arguments_by_place_or_by_name(function: Callable[..., Any]) -> None:
    out = _graph(function, X)["out"]
    assert c.op(out) == "mean"
    assert c.is_tensor(c.arg(out, 0, "input"))
    assert (c.arg(out, 1, "dim"), c.arg(out, 2, "keepdim"), c.arg(out, 3, "dtype", "none")) == (-1, True, "none")
    assert c.has_only(out, "input", "dim", "keepdim") and not c.has_only(out, "input")


def test_further_arguments_are_seen() -> None:
    assert not c.has_only(_graph(lambda x: torch.add(x, x, alpha=2), X)["out"], "input", "other")


def test_casts() -> None:
    out = _graph(lambda x: x.to(torch.float64).float().to("cpu", torch.float16), X)["out"]
    assert c.is_cast(out) and c.dtype(out) == torch.float16
    assert c.skip_casts(out).op == "placeholder"
    assert not c.is_cast(c.skip_casts(out)) and not c.is_cast(None) and not c.is_cast(3)


def test_a_change_of_device_is_no_cast() -> None:
    assert not c.is_cast(_graph(lambda x: x.to("meta"), X)["out"])


def test_steps_that_change_nothing() -> None:
    out = _graph(lambda x: x.float().contiguous().clone().detach().view(2, 3, 4, 6).expand(2, 3, 4, 6), X)["out"]
    assert c.skip_noop(out).op == "placeholder"


@pytest.mark.parametrize(
    "function", [lambda x: x.double(), lambda x: x.view(6, 4, 6), lambda x: x.transpose(0, 1), lambda x: x + 0]
)
def test_steps_that_change_something(function: Callable[..., Any]) -> None:
    out = _graph(function, X)["out"]
    assert c.skip_noop(out) is out


def test_reshapes_that_keep_the_last_axis() -> None:
    assert c.skip_views(_graph(lambda x: x.reshape(6, 4, 6).view(-1, 6).clone(), X)["out"]).op == "placeholder"
    out = _graph(lambda x: x.reshape(-1, 12), X)["out"]
    assert c.skip_views(out) is out


@pytest.mark.parametrize(
    ("function", "is_swap"),
    [
        (lambda x: x.transpose(1, 2), True),
        (lambda x: x.transpose(-2, 1), True),
        (lambda x: torch.swapaxes(x, 2, 1), True),
        (lambda x: torch.transpose(x, dim0=1, dim1=2), True),
        (lambda x: x.permute(0, 2, 1, 3), True),
        (lambda x: torch.permute(x, (0, -2, 1, -1)), True),
        (lambda x: x.transpose(0, 1), False),
        (lambda x: x.permute(0, 2, 3, 1), False),
        (lambda x: x.view(2, 4, 3, 6), False),
    ],
)
def test_exchange_of_two_axes(function: Callable[..., Any], is_swap: bool) -> None:
    assert c.is_swap(_graph(function, X)["out"], 1, 2) == is_swap


def test_axes() -> None:
    assert c.is_axis(-1, 3, 4) and c.is_axis(3, 3, 4) and c.is_axis([-1], 3, 4) and c.is_axis((3,), 3, 4)
    assert not c.is_axis(2, 3, 4) and not c.is_axis((2, 3), 3, 4) and not c.is_axis(None, 3, 4)
    assert not c.is_axis(True, 1, 4)


def test_operands_in_the_order_asked_for() -> None:
    out = _graph(lambda x: 3 * x.exp(), X)["out"]
    assert c.operands(out, lambda each: c.op(each) is None and c.is_tensor(each)) is not None
    assert c.operands(out, lambda each: each == 3)[0] == 3  # type: ignore[index]
    assert c.operands(out, lambda each: each == 4) is None


class _Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_numbers() -> None:
    assert [c.scalar(each) for each in (2, 0.5, True, None, "2")] == [2, 0.5, None, None, None]
    assert c.scalar(_graph(lambda x: x * 2, X)["l_x_"]) is None


def test_a_float_of_a_module_under_dynamic_shapes() -> None:
    out = _graph(_Scaled(), X, dynamic=True)["out"]
    number = c.arg(out, 1, "other")
    assert isinstance(number, fx.Node) and c.scalar(number) == 1.5


def test_sizes_are_compared_without_a_guard() -> None:
    captured = capture(lambda x, y: (x.exp(), y.exp()), torch.randn(5, 7), torch.randn(5, 9), dynamic=True)[0]
    x, y = (node for node in captured.module.graph.find_nodes(op="placeholder") if c.is_tensor(node))
    environment = c.value(x).shape[0].node.shape_env
    before = len(environment.guards)
    assert not c.same_shape(c.shape(x), c.shape(y))
    assert c.same_size(c.shape(x)[0], c.shape(x)[0]) and not c.same_size(c.shape(x)[0], 5)
    assert len(environment.guards) == before


def test_a_symbol_known_to_be_a_number_is_read_as_one() -> None:
    out = _graph(lambda x, y: x * y, torch.randn(5, 7), torch.ones(1, 7)[0], dynamic=True)["out"]
    assert all(isinstance(size, (int, torch.SymInt)) for size in c.shape(out))

    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    nodes = _graph(Product(), torch.randn(5, 7), dynamic=True)
    assert c.shape(nodes["l_x_"])[-1] == 7 and isinstance(c.shape(nodes["l_x_"])[-1], int)


def test_places() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(), Layer()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x + 1

    nodes = _graph(Model(), X)
    assert c.layer_of(nodes["out"].args[0]) == "layers.1"  # type: ignore[arg-type]
    assert c.layer_of(nodes["out"]) == ""


def test_what_is_no_node() -> None:
    assert c.op(3) is None and c.ndim(None) == -1 and c.shape("x") == () and c.dtype(1.0) is None
    assert not c.is_tensor(torch.ones(1)) and c.skip_noop(None) is None
