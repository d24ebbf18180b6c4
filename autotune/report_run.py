"""What `autotune run` prints when it ends: a table per kernel and shape, what it cost, where the answers are."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.table import Table

from ..cache.errors import shown
from ..cache.rows import Label, TunedRow
from ..search_spaces.config import Config
from ..search_spaces.workload import WorkItem
from .answers import batch_ranges, gain, label_word, tile
from .console import make_console
from .progress import duration
from .tune import TuneOutcome, TuneRequest


def print_summary(outcome: TuneOutcome) -> None:
    """The table and the facts around it, on standard output."""
    request, summary = outcome.request, outcome.summary
    console = make_console()
    if summary.rows:
        console.print(_table(outcome))
        console.print("w warps, s pipeline stages; gain: the default's score over the best config's", style="dim")
    console.print(_honesty(request, summary.rows), highlight=False)
    for line in _facts(outcome):
        console.print(line, highlight=False, markup=False)
    for failure in summary.cells_failed[:10]:
        console.print(f"failed: {failure}", highlight=False, markup=False)
    if summary.was_interrupted or summary.cells_left:
        why = "Interrupted" if summary.was_interrupted else "The budget is used up"
        console.print(
            f"{why}: {summary.cells_left} of {len(request.items)} cells are left. The same command goes on from here.",
            highlight=False,
        )


def _table(outcome: TuneOutcome) -> Table:
    request = outcome.request
    caption = f"{request.model} on {request.device.name} ({request.device.arch.name}), {request.items[0].problem.dtype}"
    table = Table(title=caption, title_justify="left", box=None, pad_edge=False)
    label = label_word(outcome.summary.rows)
    table.add_column("kernel", no_wrap=True)
    table.add_column("shape", overflow="fold")
    table.add_column("tokens", no_wrap=True)
    table.add_column("best, fewest tokens", overflow="fold")
    table.add_column("best, most tokens", overflow="fold")
    table.add_column("distinct", justify="right")
    table.add_column(f"gain ({label})", no_wrap=True)
    shapes: dict[tuple[str, str], list[TunedRow]] = {}
    for row in outcome.summary.rows:
        shapes.setdefault((row.cell.kernel, row.cell.signature), []).append(row)
    for (kernel, signature), rows in shapes.items():
        rows.sort(key=lambda row: row.cell.batch)
        gains = [value for value in map(gain, rows) if value is not None]
        spread = f"{min(gains):.2f} to {max(gains):.2f} x" if gains else "-"
        table.add_row(
            kernel, _told_apart(signature, [s for k, s in shapes if k == kernel]),
            batch_ranges([row.cell.batch for row in rows]),
            _best(rows[0]), _best(rows[-1]), str(len({row.config_json for row in rows})),
            spread,
        )  # fmt: skip
    return table


def _told_apart(signature: str, signatures: Sequence[str]) -> str:
    """The dimensions in which a kernel's shapes differ; nothing where it has one shape."""
    common = set.intersection(*(set(each.split(",")) for each in signatures))
    return " ".join(dim for dim in signature.split(",") if dim not in common)


def _best(row: TunedRow) -> str:
    return tile(Config.from_json(row.config_json)) if row.config_json else "the default"


def _honesty(request: TuneRequest, rows: Sequence[TunedRow]) -> str:
    if any(row.label is Label.MEASURED for row in rows):
        return (
            f"[bold]measured[/] on this machine's {request.device.name}, each candidate checked against its reference."
        )
    return (
        "[bold]estimated[/]: compiled for the target by Triton's own compiler and ranked by a static model, not run. "
        "Speeds are relative scores of that model; measure before you quote them."
    )


def _facts(outcome: TuneOutcome) -> list[str]:
    summary, compiles = outcome.summary, outcome.compiles
    states = ", ".join(f"{count} {state}" for state, count in summary.states.most_common())
    lines = [
        f"{len(summary.rows)} cells answered ({summary.cells_tuned} tuned, {summary.cells_known} known before), "
        f"{summary.trials} new trials ({states or 'none'}) in {duration(summary.seconds)}."
    ]
    if compiles.asked:
        share = 100 * compiles.hits / compiles.asked
        lines.append(
            f"{compiles.compiled} binaries compiled in {compiles.seconds:.0f} CPU-s; {compiles.hits} of "
            f"{compiles.asked} asked for were known already ({share:.0f} %). "
            f"Peak memory of this process: {peak_mib()} MiB."
        )
    path = shown(outcome.request.database)
    lines.append(f"Database: {path}. Every answer: autotune show; why one was chosen: autotune explain.")
    return lines


def peak_mib() -> int:
    """Peak resident memory of this process in MiB; its workers are not counted."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def print_json(outcome: TuneOutcome) -> None:
    """The summary as one JSON object."""
    summary, compiles = outcome.summary, outcome.compiles
    print(
        json.dumps(
            {
                "device": outcome.request.device.name,
                "arch": outcome.request.device.arch.name,
                "model": outcome.request.model,
                "database": str(outcome.request.database),
                "cells": len(outcome.request.items),
                "cells_tuned": summary.cells_tuned,
                "cells_known": summary.cells_known,
                "cells_left": summary.cells_left,
                "cells_failed": summary.cells_failed,
                "trials": summary.trials,
                "states": dict(summary.states),
                "seconds": round(summary.seconds, 3),
                "compiles": {
                    "asked": compiles.asked, "hits": compiles.hits, "compiled": compiles.compiled,
                    "seconds": round(compiles.seconds, 3), "failures": compiles.failures,
                },
                "peak_mib": peak_mib(),
                "was_interrupted": summary.was_interrupted,
            }
        )
    )  # fmt: skip


def print_dry_run(request: TuneRequest, *, as_json: bool) -> None:
    """What a run would do."""
    problems = [item.problem for item in request.items]
    if as_json:
        fields = [{"kernel": p.kernel, "signature": p.signature, "dtype": p.dtype, "batch": p.batch} for p in problems]
        print(json.dumps({"device": request.device.name, "trials_per_cell": request.trials, "cells": fields}))
        return
    table = Table("kernel", "problem", "tokens", box=None, pad_edge=False)
    shapes: dict[tuple[str, str], list[WorkItem]] = {}
    for item in request.items:
        shapes.setdefault((item.problem.kernel, item.problem.signature), []).append(item)
    for (kernel, signature), items in shapes.items():
        table.add_row(kernel, signature.replace(",", " "), batch_ranges([item.problem.batch for item in items]))
    console = make_console()
    console.print(table)
    how = "measured here" if request.measures else "compiled ahead of time and estimated"
    console.print(
        f"{request.model} for {request.device.name}: {len(problems)} cells, at most {request.trials} trials each, "
        f"{how}. Nothing was tuned (dry run). Database: {shown(request.database)}",
        highlight=False,
    )
