"""What a copied graph must keep for AOTAutograd: a loss raises there, or makes CUDA graphs copy every weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.compile_fx as inductor
from torch import fx

from paiton.compiler.graph_copy import copy_module

from .rewriting import capture
from .tiny_models import make_tiny, tokens

Copy = Callable[[fx.GraphModule], fx.GraphModule]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.shift


def _static_inputs(model: torch.nn.Module, change: Copy, *args: Any, **kwargs: Any) -> tuple[list[int], int]:
    """The inputs that Inductor takes for weights, and the number of all, if it compiles `change` of the graph."""
    seen: list[tuple[list[int], int]] = []

    def keep(module: fx.GraphModule, example_inputs: list[Any], **options: Any) -> Callable[..., Any]:
        seen.append((list(options.get("static_input_idxs") or ()), len(example_inputs)))
        return module.forward

    def backend(module: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        return inductor.compile_fx(change(module), example_inputs, inner_compile=keep)

    torch._dynamo.reset()
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        torch.compile(model, backend=backend)(*args, **kwargs)
    assert len(seen) == 1
    return seen[0]


def test_static_inputs_are_those_of_plain_inductor() -> None:
    x = torch.randn(3, 4)
    plain = _static_inputs(_Model(), lambda module: module, x)
    assert len(plain[0]) == plain[1] - 1 == 3  # everything but x
    assert _static_inputs(_Model(), copy_module, x) == plain


def test_static_inputs_of_a_whole_model() -> None:
    model, ids = make_tiny("qwen2", layers=1), tokens()
    plain = _static_inputs(model, lambda module: module, ids, use_cache=False)
    assert len(plain[0]) == plain[1] - 1  # everything but the token ids
    assert _static_inputs(model, copy_module, ids, use_cache=False) == plain


def _without_metadata(module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return fx.GraphModule(module, graph)


@pytest.mark.parametrize("change", [_without_metadata, copy.deepcopy])
def test_other_copies_lose_it(change: Copy) -> None:
    """The reason for `copy_module`: should torch learn to copy it, this test says so."""
    x = torch.randn(3, 4)
    plain = _static_inputs(_Model(), lambda module: module, x)
    try:
        lost: object = _static_inputs(_Model(), change, x)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        lost = str(error)
    assert lost != plain
    assert isinstance(lost, tuple) or "_dynamo_source" in str(lost)


def test_sources_and_attributes() -> None:
    module = capture(_Model(), torch.randn(3, 4))[0].module
    copied = copy_module(module)
    assert copied is not module and copied.graph is not module.graph
    for old, new in zip(module.graph.nodes, copied.graph.nodes, strict=True):
        assert (old.name, old.op, old.target) == (new.name, new.op, new.target)
        assert old.meta == new.meta and old.meta is not new.meta
        assert getattr(old, "_dynamo_source", None) == getattr(new, "_dynamo_source", None)
    kept = {name for name in module.__dict__ if name.startswith("_param_name_to_source")}
    assert kept and all(copied.__dict__[name] is module.__dict__[name] for name in kept)
    assert copied.meta == module.meta


def test_changes_of_the_copy_leave_the_original_alone() -> None:
    captured = capture(_Model(), torch.randn(3, 4))[0]
    code = captured.module.code
    copied = copy_module(captured.module)
    for node in reversed(list(copied.graph.nodes)):
        if node.op == "call_function":
            node.replace_all_uses_with(node.all_input_nodes[0])
            copied.graph.erase_node(node)
    copied.recompile()
    captured.module.recompile()
    assert captured.module.code == code
    outputs, _ = captured.run()
    assert outputs[0].shape == (3, 4)


def test_parameters_are_shared() -> None:
    module = fx.symbolic_trace(_Model())
    copied = copy_module(module)
    assert copied.get_parameter("linear.weight") is module.get_parameter("linear.weight")
