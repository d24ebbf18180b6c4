"""`autotune show`: what is in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import database_option, database_path_of, json_option

if TYPE_CHECKING:
    from ...cache.rows import TunedRow


@click.command(short_help="Show the answers in the database.")
@click.option("--arch", help="Only this architecture.")
@click.option("--device", help="Only this device.")
@click.option("--kernel", help="Only this kernel.")
@click.option("--batch", type=click.IntRange(1), help="Only this batch size.")
@click.option("--trials", is_flag=True, help="Count the trials of each cell instead.")
@database_option
@json_option
def show(
    arch: str | None,
    device: str | None,
    kernel: str | None,
    batch: int | None,
    trials: bool,
    database: str | None,
    as_json: bool,
) -> int:
    """Show the stored answers: config, label, gain over the default, and what the compiler said of it.

    \b
    Examples:
      autotune show
      autotune show --kernel moe_gate_up --batch 8
      autotune show --json > answers.json
    """
    from ...cache.store import ConfigStore, TunedFilter
    from .options import device_of

    if arch is not None:
        arch = device_of(arch, None).arch.name
    if device is not None:
        device = device_of(device, None).name
    path = database_path_of(database)
    with ConfigStore.open(path, read_only=True) as store:
        if trials:
            _show_trials(store.trial_counts(), as_json)
            return 0
        rows = store.tuned(TunedFilter(arch=arch, device=device, kernel=kernel, batch=batch))
    if as_json:
        import json

        click.echo(json.dumps([_plain(row) for row in rows]))
    elif rows:
        _print_table(rows)
    else:
        click.echo(f"no answers match in {path}; `autotune run --arch gfx942 --model Qwen3-30B-A3B` makes some")
    return 0


def _show_trials(counts: Any, as_json: bool) -> None:
    import json

    from rich.table import Table

    from ..console import make_console

    if as_json:
        click.echo(json.dumps([{"cell": str(cell), "trials": count} for cell, count in counts.items()]))
        return
    table = Table("device", "kernel", "problem", "dtype", "tokens", "trials", box=None, pad_edge=False)
    for cell, count in counts.items():
        table.add_row(cell.device, cell.kernel, cell.signature, cell.dtype, str(cell.batch), str(count))
    make_console().print(table)


def _print_table(rows: list[TunedRow]) -> None:
    from rich.table import Table

    from ...search_spaces.config import Config
    from ..answers import gain
    from ..console import make_console

    table = Table(
        "device",
        "kernel",
        "problem",
        "tokens",
        "config",
        "label",
        "vs default",
        "registers",
        "LDS",
        box=None,
        pad_edge=False,
    )
    for row in rows:
        facts = _facts(row)
        won = gain(row)
        table.add_row(
            row.cell.device, row.cell.kernel, row.cell.signature.replace(",", " "), str(row.cell.batch),
            str(Config.from_json(row.config_json)) if row.config_json else "the default is best",
            row.label.name.lower(), f"{won:.2f}x" if won else "-", str(facts.get("registers", "-")),
            str(facts.get("shared_bytes", "-")),
        )  # fmt: skip
    make_console(220).print(table)
    click.echo(
        "estimated = compiled for the target and ranked by a static model, not run; measured = timed on the device."
    )


def _facts(row: TunedRow) -> dict[str, Any]:
    import json

    return dict(json.loads(row.facts_json)) if row.facts_json else {}


def _plain(row: TunedRow) -> dict[str, Any]:
    import dataclasses
    import json

    from ..answers import gain

    cell = dataclasses.asdict(row.cell)
    config = json.loads(row.config_json) if row.config_json else None
    return {
        **cell, "config": config, "label": row.label.name.lower(), "gain": gain(row), "us_median": row.us_median,
        "us_default": row.us_default, "score": row.score, "score_default": row.score_default, "samples": row.samples,
        "model_version": row.model_version, "facts": _facts(row), "triton": row.env.triton, "torch": row.env.torch,
        "policy": row.env.policy, "ts_ms": row.ts_ms,
        "shortlist": [{"config": json.loads(each.config_json), "score": each.score} for each in row.shortlist],
    }  # fmt: skip
