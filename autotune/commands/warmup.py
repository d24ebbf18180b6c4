"""`autotune warmup`: compile a model's binaries before a server starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from .options import database_option, json_option, shipped_paths, usage_errors, workload_options

if TYPE_CHECKING:
    from ...search_spaces.arch import Device
    from ..warmup import Served, WarmUp

SHOWN_FAILURES = 10


@click.command(short_help="Compile what a server of a model will launch, before it starts.")
@workload_options
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=None,
    help="Compile workers. [default: the CPUs of this machine]",
)
@database_option
@json_option
def warmup(**options: Any) -> int:
    """Compile what the databases say for a model and a GPU into Triton's cache, so that a server that starts on this
    machine finds every binary. Nothing is tried or measured, and no GPU is needed.

    One call serves all ranks of a node; a second finds everything in the cache. Problems without an answer get their
    kernel's default, and the line that tunes them is printed. Exit status 1 when a binary fails to compile or does
    not fit the chip.

    \b
    Examples:
      autotune warmup --model Qwen3-30B-A3B --tp 4
      autotune warmup --arch gfx942 --model Qwen3-30B-A3B --batch-sizes 1,2,4,8
    """
    import logging

    from ...cache.lookup import Lookup
    from ..environment import running_environment
    from ..request import make_request
    from ..warmup import warm_up

    with usage_errors(options["device"]):
        request = make_request(
            options["model"],
            arch=options["arch"],
            device=options["device"],
            kernels=options["kernels"],
            batch_sizes=options["batch_sizes"],
            prefill_lengths=options["prefill_lengths"],
            context=options["context"],
            dtype=options["dtype"],
            tp=options["tp"],
            jobs=options["jobs"],
            database=options["database"],
        )
    logging.getLogger("paiton").addHandler(logging.NullHandler())  # what the lookup would log is printed here
    with Lookup.open(request.database, shipped=shipped_paths(), running=running_environment()) as lookup:
        outcome = warm_up(request.items, request.device, lookup, request.jobs)
        for line in lookup.skipped:
            click.echo(f"left out: {line}", err=True)
    if options["as_json"]:
        _print_json(outcome, request.model, request.device, options)
    else:
        _print_text(outcome, request.model, request.device, options)
    return 1 if outcome.failures else 0


def _tune_lines(misses: list[Served], options: dict[str, Any]) -> list[str]:
    """One `autotune run` line for each kernel and phase, with all its batches."""
    import shlex

    from ...cache.hint import run_line

    groups: dict[tuple[str, str], list[Served]] = {}
    for served in misses:
        groups.setdefault((served.cell.kernel, served.item.phase), []).append(served)
    database = [] if options["database"] is None else ["--db", os.fspath(options["database"])]
    lines = []
    for (_, phase), group in groups.items():
        line = run_line(
            group[0].cell, model=options["model"], tp=options["tp"], is_prefill=phase == "prefill",
            batches=sorted({served.cell.batch for served in group}),
        )  # fmt: skip
        lines.append(f"{line} {shlex.join(database)}" if database else line)
    return lines


def _print_json(outcome: WarmUp, model: str, device: Device, options: dict[str, Any]) -> None:
    import json

    plain = {
        "model": model,
        "device": device.name,
        "arch": device.arch.name,
        "cache": str(outcome.cache),
        "problems": len(outcome.served),
        "tiers": [{"tier": tier, "label": label or None, "problems": count} for tier, label, count in outcome.tiers()],
        "other_compiler": outcome.of_other_compilers(),
        "compiled": outcome.compiled,
        "cached": outcome.cached,
        "failures": [
            {"cell": str(each.served.cell), "config": dict(each.served.config or {}), "error": each.error}
            for each in outcome.failures
        ],
        "misses": [
            {"cell": str(each.cell), "reason": each.answer.reason, "tune": _tune_lines([each], options)[0]}
            for each in outcome.misses()
        ],
        "seconds": round(outcome.seconds, 3),
        "cpu_seconds": round(outcome.cpu_seconds, 3),
    }
    click.echo(json.dumps(plain))


def _print_text(outcome: WarmUp, model: str, device: Device, options: dict[str, Any]) -> None:
    from ...cache.errors import shown

    tiers = ", ".join(
        f"{count} {tier}{f' ({label})' if label else ''}" for tier, label, count in outcome.tiers()
    )  # fmt: skip
    click.echo(f"{model} on {device.name} ({device.arch.name}): {len(outcome.served)} problems, answered {tiers}.")
    if outcome.cached and not outcome.compiled and not outcome.failures:
        done = f"Nothing to compile: all {outcome.cached} binaries were in the cache already"
    else:
        done = f"{outcome.compiled} binaries compiled, {outcome.cached} were in the cache already"
    spent = f"{outcome.seconds:.1f} s ({outcome.cpu_seconds:.1f} CPU-s)"
    click.echo(f"{done}; {spent}. Cache: {shown(outcome.cache)}")
    for failure in outcome.failures[:SHOWN_FAILURES]:
        click.echo(f"failed: {failure.served.cell}: {failure.served.config or 'default'}: {failure.error}")
    if len(outcome.failures) > SHOWN_FAILURES:
        click.echo(f"failed: {len(outcome.failures) - SHOWN_FAILURES} more; --json lists them all")
    others = outcome.of_other_compilers()
    if others:
        click.echo(f"{others} answers were found under another compiler than this one; retune to confirm them.")
    misses = outcome.misses()
    if misses:
        click.echo(f"{len(misses)} problems have no answer and get the default of their kernel. To tune them:")
        for line in _tune_lines(misses, options):
            click.echo(f"  {line}")
