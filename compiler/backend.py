"""The function that torch.compile(..., backend="paiton") calls with every graph Dynamo captured.

A user never meets a failure that plain Inductor would not give: a matcher that fails costs its site, a rewriter that
fails costs the rewriting, and a rewritten graph that cannot be lowered is lowered as it came. The fourth level, a
kernel that cannot be launched, is the operators' own. `paiton.strict` raises instead.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from .gate import NotUsed, why_not
from .log import LOG, warn_once
from .lowering import Compiled, cache_key, lower
from .options import Options, read_options
from .passes import Rewritten, names, rewrite
from .report import CompileReport, history
from .site import Status

NAME = "paiton"

_dump_number = itertools.count()


class MatcherFault(RuntimeError):
    """A matcher of ours failed, under paiton.strict."""


def paiton(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Put our kernels into a graph where they are expected to win, and let Inductor compile the rest.

    `mode` and `options` are torch.compile's; options of our own begin with `paiton.` (see options.py). Raises BadOption
    for a wrong one, and under `paiton.strict` whatever would have been a fallback.
    """
    compiled, report = compile_graph(module, example_inputs, read_options(options, mode, patterns=names()))
    history.add(report)
    LOG.info("%s", report.table())
    return compiled


def compile_graph(
    module: fx.GraphModule, example_inputs: Sequence[Any], options: Options
) -> tuple[Compiled, CompileReport]:
    """The callable for a graph, and the report."""
    reason = why_not(module, example_inputs) or ""
    rewritten: Rewritten | None = None
    size = len(module.graph.nodes)
    report = CompileReport(reason=reason, nodes_before=size, nodes_after=size, lower=options.lower)
    if reason:
        if options.strict:
            raise NotUsed(reason)
        warn_once(f"the model runs without our kernels: {reason}")
    else:
        rewritten, report = _rewritten(module, options, report)
        if options.dump is not None:
            _dump(options.dump, module, rewritten, report)
    start = time.perf_counter()
    compiled, report = _lowered(module, example_inputs, options, rewritten, report)
    return compiled, replace(report, lowering_s=time.perf_counter() - start)


def _rewritten(
    module: fx.GraphModule, options: Options, report: CompileReport
) -> tuple[Rewritten | None, CompileReport]:
    """Level 1, inside the rewriter, and level 2: the rewriter, or the checks of its graph, fail."""
    try:
        done = rewrite(module, options)
    except Exception as error:
        if options.strict:
            raise
        fallback = f"rewriting failed: {_told(error)}"
        LOG.warning("%s; the unmodified graph is compiled", fallback, exc_info=LOG.isEnabledFor(logging.DEBUG))
        return None, replace(report, fallback=fallback)
    for site in done.sites:
        if site.status is Status.ERROR:
            if options.strict:
                raise MatcherFault(f"pattern {site.pattern} at {site.where or site.anchor}: {site.detail}")
            warn_once(f"the matcher of {site.pattern} failed at {site.where or site.anchor}: {site.detail}")
    report = replace(report, sites=done.sites, rewrite_s=done.seconds)
    if not report.has_operators:
        return None, report
    return done, replace(report, nodes_after=done.nodes_after)


def _lowered(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    options: Options,
    rewritten: Rewritten | None,
    report: CompileReport,
) -> tuple[Compiled, CompileReport]:
    """Level 3: the rewritten graph cannot be lowered. Without our operators in it, the graph is plain Inductor's."""
    if rewritten is not None:
        try:
            key = cache_key(options.disable_patterns)
            return lower(rewritten.module, example_inputs, options.lower, options.inductor, key), report
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if options.strict:
                raise
            fallback = f"lowering failed: {_told(error)}"
            LOG.warning("%s; the unmodified graph is compiled", fallback, exc_info=LOG.isEnabledFor(logging.DEBUG))
            report = report.without_operators(fallback)
    return lower(module, example_inputs, options.lower, options.inductor, None), report


def _told(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300] if text else 'no message'}"


def _dump(folder: Path, module: fx.GraphModule, rewritten: Rewritten | None, report: CompileReport) -> None:
    """The graph as it came and as it went, and the report, as <process>-<number>.* in the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{os.getpid()}-{next(_dump_number)}"
        (folder / f"{stem}.before.py").write_text(module.print_readable(print_output=False))
        if rewritten is not None:
            (folder / f"{stem}.after.py").write_text(rewritten.module.print_readable(print_output=False))
        (folder / f"{stem}.report.json").write_text(json.dumps(report.to_json(), indent=1))
    except OSError as error:
        warn_once(f"paiton.dump: {error}")


def _say_if_never_entered() -> None:
    """At the end of a process that named this backend and never reached it: the usual cause is generate().

    `torch.compile(model).generate()` is the generate of the model inside, which is not compiled.
    """
    from torch._dynamo.backends import registry

    if NAME in getattr(registry, "_COMPILER_FNS", {}) and history.total == 0:
        LOG.warning(
            "backend %r was asked for and never ran. torch.compile(model, backend=%r).generate() runs the model as it "
            "was, uncompiled: use paiton.compile(model)",
            NAME,
            NAME,
        )


atexit.register(_say_if_never_entered)
