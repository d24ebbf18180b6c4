"""`autotune diff`: what tells two databases apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .files import plain, refusals
from .options import json_option

if TYPE_CHECKING:
    from ...cache.diff import Diff

SHOWN = 20


@click.command(short_help="Compare two databases by row and by speed.")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@json_option
def diff(first: Path, second: Path, as_json: bool) -> int:
    """Compare two databases or .jsonl files. Exit status 0 when they hold the same answers, 1 when they differ.

    Speeds are compared where both have a measured time, or an estimate of the same version of the model; times of
    different machines compare only as far as the machines do.

    \b
    Example:
      autotune diff last-week.db today.db
    """
    from ...cache.diff import diff as compare
    from ...cache.manifest import read_answers

    with refusals():
        found = compare(read_answers(first), read_answers(second))
    if as_json:
        _print_json(found)
    else:
        _print_text(found, first.name, second.name)
    return 0 if found.is_equal else 1


def _print_json(found: Diff) -> None:
    import json

    from ...cache.rows import Label

    click.echo(
        json.dumps(
            {
                "equal": found.equal,
                "only_first": [plain(row) for row in found.only_first],
                "only_second": [plain(row) for row in found.only_second],
                "config_differs": [[plain(pair.first), plain(pair.second)] for pair in found.config_differs],
                "evidence_differs": [[plain(pair.first), plain(pair.second)] for pair in found.evidence_differs],
                "speedups": [{"cell": str(pair.first.cell), "speedup": pair.speedup} for pair in found.speeds],
                "mean_speedup": {
                    label.name.lower(): found.mean_speedup(label) for label in (Label.MEASURED, Label.ESTIMATED)
                },
            }
        )
    )


def _print_text(found: Diff, first: str, second: str) -> None:
    from ...cache.rows import Label

    click.echo(
        f"{found.equal} equal, {len(found.config_differs)} with another config, {len(found.evidence_differs)} with"
        f" other evidence, {len(found.only_first)} only in {first}, {len(found.only_second)} only in {second}"
    )
    lines = [
        f"~ {pair.first.cell}: {pair.first.config_json or 'default'} -> {pair.second.config_json or 'default'}"
        for pair in found.config_differs
    ]
    lines += [f"- {row.cell}" for row in found.only_first] + [f"+ {row.cell}" for row in found.only_second]
    for line in lines[:SHOWN]:
        click.echo(line)
    if len(lines) > SHOWN:
        click.echo(f"... and {len(lines) - SHOWN} more; --json prints all")
    for label in (Label.MEASURED, Label.ESTIMATED):
        mean = found.mean_speedup(label)
        if mean is not None:
            count = sum(pair.first.label is label for pair in found.speeds)
            click.echo(f"{label.name.lower()}: {second} is {mean:.3f}x as fast as {first} (geometric mean of {count})")
