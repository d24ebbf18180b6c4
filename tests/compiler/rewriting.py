"""What the tests of the rewriter share: capture a real Dynamo graph, rewrite it by some patterns, run it eagerly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from paiton.compiler.aliasing import mutated_args
from paiton.compiler.graph_copy import copy_module
from paiton.compiler.rewriter import Pattern, Rewriter
from paiton.compiler.site import Site, Status

Change = Callable[[Rewriter], object]


@dataclass
class Rewritten:
    """What became of the graphs of one function: its last result, the modules before and after, and the rewriters."""

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
        return Counter(name for module in self.modules for name in operators(module.graph))


def rewrite_graph(
    module: fx.GraphModule, patterns: Sequence[Pattern], before_sweep: Change = lambda rewriter: None
) -> Rewriter:
    """A rewritten, swept and linted copy of a captured module (`.module` of what is returned)."""
    rewriter = Rewriter(copy_module(module))
    for pattern in patterns:
        rewriter.run(pattern)
        rewriter.graph.lint()
    before_sweep(rewriter)
    rewriter.graph.lint()
    rewriter.sweep()
    rewriter.graph.lint()
    rewriter.module.recompile()
    return rewriter


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


def rewrite_and_compare(
    function: Callable[..., Any], *args: Any, patterns: Sequence[Pattern], **kwargs: Any
) -> Rewritten:
    """`rewrite`, and the results, and what is left in the arguments, must equal those of `function` itself."""
    own = pytree.tree_map_only(torch.Tensor, lambda each: each.detach().clone(), args)
    with torch.no_grad():
        expected = function(*own)
    done = rewrite(function, *args, patterns=patterns, **kwargs)
    torch.testing.assert_close(done.result, expected, equal_nan=True)
    torch.testing.assert_close(args, own)
    return done


def backend(
    patterns: Sequence[Pattern], done: Rewritten, before_sweep: Change = lambda rewriter: None
) -> Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]:
    """A backend that rewrites by `patterns`, notes everything in `done` and runs the rewritten graph eagerly."""

    def compile_graph(module: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        rewriter = rewrite_graph(module, patterns, before_sweep)
        done.modules.append(rewriter.module)
        done.originals.append(module)
        done.rewriters.append(rewriter)
        return rewriter.module.forward

    return compile_graph


@dataclass(frozen=True)
class Captured:
    """One Dynamo graph with the inputs of its first call."""

    module: fx.GraphModule
    inputs: tuple[Any, ...]

    def run(self, module: fx.GraphModule | None = None) -> Any:
        """The outputs of this graph, or of a rewritten copy, on copies of the inputs, and the inputs afterwards."""
        inputs = [each.clone() if isinstance(each, torch.Tensor) else each for each in self.inputs]
        with torch.no_grad():
            return (module or self.module)(*inputs), inputs


def capture(function: Callable[..., Any], *args: Any, dynamic: bool | None = None, **kwargs: Any) -> list[Captured]:
    """The Dynamo graphs of `function(*args)`."""
    found: list[Captured] = []

    def keep(module: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            found.append(Captured(module, tuple(e.clone() if isinstance(e, torch.Tensor) else e for e in inputs)))
            return module.forward(*inputs)

        return run

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=keep, dynamic=dynamic)(*args, **kwargs)
    return found


def operators(graph: fx.Graph) -> list[str]:
    """Names of our operators in a graph, in order."""
    targets = [node.target for node in graph.nodes]
    return [
        target._schema.name.removeprefix("paiton::")
        for target in targets
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "paiton"
    ]


def writes(graph: fx.Graph) -> list[str]:
    """What the in-place nodes of a graph are, in order."""
    return [str(node.target) for node in graph.nodes if mutated_args(node)]
