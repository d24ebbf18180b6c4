"""What the tests of the rewriter share: capture a real Dynamo graph, rewrite it by some patterns, run it eagerly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from paiton.compiler.graph_copy import copy_module
from paiton.compiler.rewriter import Pattern, Rewriter
from paiton.compiler.site import Site, Status

Change = Callable[[Rewriter], object]


@dataclass
class Rewritten:
    """What became of the graphs of one function: its last result, all sites, and the modules as they were run."""

    result: Any = None
    modules: list[fx.GraphModule] = field(default_factory=list)
    originals: list[fx.GraphModule] = field(default_factory=list)
    rewriters: list[Rewriter] = field(default_factory=list)

    @property
    def sites(self) -> list[Site]:
        return [site for rewriter in self.rewriters for site in rewriter.sites]

    @property
    def counts(self) -> Counter[str]:
        """Number of sites that stand in the graphs, by pattern."""
        return Counter(site.pattern for site in self.sites if site.status is Status.REPLACED)

    @property
    def reasons(self) -> list[str]:
        """Why sites were rejected, or failed."""
        return [site.detail for site in self.sites if site.status in (Status.REJECTED, Status.ERROR)]

    @property
    def operators(self) -> Counter[str]:
        """Our operators in the graphs, by name."""
        return Counter(
            node.target._schema.name.removeprefix("paiton::")
            for module in self.modules
            for node in module.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "paiton"
        )


def rewrite(
    function: Callable[..., Any],
    *args: Any,
    patterns: Sequence[Pattern],
    dynamic: bool | None = None,
    before_sweep: Change = lambda rewriter: None,
    **kwargs: Any,
) -> Rewritten:
    """Compile `function` with a backend that rewrites by `patterns` and runs what comes out, eagerly, on `args`."""
    done = Rewritten()
    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend(patterns, done, before_sweep), dynamic=dynamic)
    with torch.no_grad():
        done.result = compiled(*args, **kwargs)
    return done


def backend(
    patterns: Sequence[Pattern], done: Rewritten, before_sweep: Change = lambda rewriter: None
) -> Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]:
    """A backend that rewrites by `patterns`, notes everything in `done` and runs the rewritten graph eagerly."""

    def compile_graph(module: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        copied = copy_module(module)
        rewriter = Rewriter(copied)
        for pattern in patterns:
            rewriter.run(pattern)
            copied.graph.lint()
        before_sweep(rewriter)
        rewriter.sweep()
        copied.graph.lint()
        copied.recompile()
        done.modules.append(copied)
        done.originals.append(module)
        done.rewriters.append(rewriter)
        return copied.forward

    return compile_graph
