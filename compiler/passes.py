"""The order of patterns, and one walk of them over a graph: match, join, decide, sweep."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import fx

from .compose import JOINS, compose
from .decide import decide, operator_calls, setting_of
from .graph_copy import copy_module
from .log import LOG
from .ops.registry import problems_of
from .options import Options
from .patterns import add_rms_norm, attention, experts, linear, qkv, rms_norm, rope, router, swiglu
from .report import Calls, SiteRow
from .rewriter import Pattern, Rewriter
from .worth import Setting

# Later patterns see the operators of earlier ones; `linear` takes what is left.
_FILES = (router, experts, rms_norm, rope, attention, add_rms_norm, swiglu, qkv, linear)
PATTERNS: tuple[Pattern, ...] = tuple(file.PATTERN for file in _FILES)


def names() -> tuple[str, ...]:
    """What `paiton.disable_patterns` may name."""
    return tuple(pattern.name for pattern in (*PATTERNS, *JOINS))


@dataclass(frozen=True)
class Rewritten:
    """A rewritten copy of a graph, what became of its sites, and what it took."""

    module: fx.GraphModule
    sites: tuple[SiteRow, ...]
    nodes_before: int
    nodes_after: int
    seconds: float


def rewrite(module: fx.GraphModule, options: Options) -> Rewritten:
    """A copy of `module` with our operators in it; `module` stays as it is, for a fallback."""
    start = time.perf_counter()
    copied = copy_module(module)
    rewriter = Rewriter(copied)
    for pattern in PATTERNS:
        if pattern.name not in options.disable_patterns:
            rewriter.run(pattern)
    compose(rewriter, options.disable_patterns)
    # Asked for while all operators stand: one that is decided against has a command that would tune it.
    asked = _asked(rewriter)
    decide(rewriter, options.sites)
    rewriter.sweep()
    copied.graph.lint()
    copied.recompile()
    return Rewritten(
        module=copied,
        sites=tuple(SiteRow.of(site, *asked.get(id(site), ())) for site in rewriter.sites),
        nodes_before=len(module.graph.nodes),
        nodes_after=len(copied.graph.nodes),
        seconds=time.perf_counter() - start,
    )


def _asked(rewriter: Rewriter) -> dict[int, tuple[Calls, Setting]]:
    """By a site's id: for every operator it put in the ways to run it, and what is around. Only the report asks."""
    try:
        return {
            id(site): (
                tuple((name, problems_of(name, args)) for name, args in operator_calls(site)),
                setting_of(rewriter, site),
            )
            for site in rewriter.sites
        }
    except Exception:
        LOG.debug("the report goes without tuning problems", exc_info=True)
        return {}
