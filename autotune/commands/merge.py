"""`autotune merge`: several databases of one's own become one."""

from __future__ import annotations

from pathlib import Path

import click

from .files import counted, plain, refusals
from .options import database_option, database_path_of, json_option


@click.command(short_help="Merge databases of your own into one.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--report", type=click.Path(path_type=Path), help="Write every disagreement as a line of JSON.")
@database_option
@json_option
def merge(paths: tuple[Path, ...], report: Path | None, database: str | None, as_json: bool) -> int:
    """Merge the databases or .jsonl files PATHS into the database, for instance those of several machines.

    For each problem and compiler the better evidence stays: measured before estimated before prior, then more samples,
    then the later; the order of merging does not matter. Labels are kept, so merge only what you made yourself;
    `import` is for the rest.

    \b
    Example:
      autotune merge node1.db node2.db --db all.db --report conflicts.jsonl
    """
    import gc

    from ...cache.checks import canonical
    from ...cache.digest import logical_digest
    from ...cache.errors import translated
    from ...cache.manifest import read_answers
    from ...cache.merge import merge_into
    from ...cache.store import ConfigStore

    gc.disable()  # rows make no cycles: walking hundreds of thousands of them again and again costs a third of the time
    target = database_path_of(database)
    with refusals():
        groups = [read_answers(path) for path in paths]
        with ConfigStore.open(target) as store:
            done = merge_into(store, (row for group in groups for row in group))
            digest = logical_digest(store.tuned())
    if report is not None:
        with translated(report):
            report.write_text(
                "".join(
                    canonical({"kept": plain(each.kept), "dropped": plain(each.dropped)}) + "\n"
                    for each in done.conflicts
                ),
                encoding="utf-8",
            )
    counts = {"added": done.added, "replaced": done.replaced, "kept": done.kept, "same": done.same}
    if as_json:
        import json

        click.echo(json.dumps({**counts, "conflicts": len(done.conflicts), "logical_digest": digest}))
        return 0
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    click.echo(f"{target}: {said}; {counted(len(done.conflicts), 'disagreement')} about a config")
    for each in done.conflicts[:5]:
        click.echo(
            f"  {each.kept.cell}: kept {each.kept.label.name.lower()} {each.kept.config_json or 'default'},"
            f" gave up {each.dropped.label.name.lower()} {each.dropped.config_json or 'default'}"
        )
    click.echo(f"logical digest {digest}")
    return 0
