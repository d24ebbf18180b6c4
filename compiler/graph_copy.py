"""A copy of a Dynamo graph that keeps what AOTAutograd reads and FX does not copy.

`copy.deepcopy`, `fx.GraphModule(gm, graph)` and `symbolic_trace` all lose it. A lost `_dynamo_source` raises in
AOTAutograd; the rest is lost silently: no input then counts as static, and CUDA graphs copy every weight each step.
"""

from __future__ import annotations

from typing import Any

from torch import fx

_MODULE_ATTRIBUTES = ("compile_subgraph_reason", "_backward_prologue")
_MODULE_PREFIXES = ("_param_name_to_source",)


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """The same module with a graph of its own; parameters and buffers are shared."""
    copied = fx.GraphModule(module, _copy_graph(module.graph))
    copied.meta = dict(module.meta)
    for old, new in zip(
        module.graph.find_nodes(op="placeholder"), copied.graph.find_nodes(op="placeholder"), strict=True
    ):
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    for name, held in module.__dict__.items():
        if name in _MODULE_ATTRIBUTES or name.startswith(_MODULE_PREFIXES):
            setattr(copied, name, held)
    return copied


def _copy_graph(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    result: Any = copied.graph_copy(graph, known, return_output_node=True)
    if result is not None:
        returned, output = result
        copied.output(returned, type_expr=output.type).meta = dict(output.meta)
    return copied
