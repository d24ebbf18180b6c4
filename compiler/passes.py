"""The order of patterns, and one walk of them over a graph: match, join, decide, sweep."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from importlib import import_module

from torch import fx

from .graph_copy import copy_module
from .log import LOG
from .options import Options
from .rewriter import Pattern, Rewriter
from .site import Site

# Later patterns see the operators of earlier ones; `linear` takes what is left.
_FILES = ("router", "experts", "rms_norm", "rope", "attention", "add_rms_norm", "swiglu", "qkv", "linear")


@functools.cache
def patterns() -> tuple[Pattern, ...]:
    """Every pattern, in order."""
    found: list[Pattern] = []
    for name in _FILES:
        try:
            found.append(import_module(f"{__package__}.patterns.{name}").PATTERN)
        except ImportError as error:  # while the patterns are being written
            LOG.debug("%s: %s", name, error)
    return tuple(found)


def names() -> tuple[str, ...]:
    """What `paiton.disable_patterns` may name."""
    return tuple(pattern.name for pattern in patterns())


@dataclass(frozen=True)
class Rewritten:
    """A rewritten copy of a graph, the sites, and what it took."""

    module: fx.GraphModule
    sites: tuple[Site, ...]
    nodes_before: int
    nodes_after: int
    seconds: float


def rewrite(module: fx.GraphModule, options: Options) -> Rewritten:
    """A copy of `module` with our operators in it; `module` stays as it is, for a fallback."""
    start = time.perf_counter()
    copied = copy_module(module)
    rewriter = Rewriter(copied)
    for pattern in patterns():
        if pattern.name not in options.disable_patterns:
            rewriter.run(pattern)
    rewriter.sweep()
    copied.graph.lint()
    copied.recompile()
    return Rewritten(
        module=copied,
        sites=tuple(rewriter.sites),
        nodes_before=len(module.graph.nodes),
        nodes_after=len(copied.graph.nodes),
        seconds=time.perf_counter() - start,
    )
