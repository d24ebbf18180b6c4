"""`autotune lint`: faults in a database, or in a folder of vLLM's or SGLang's files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .files import counted, digests_of, own_answers, refusals
from .options import database_option, database_path_of, json_option

if TYPE_CHECKING:
    from ...cache.lint import Finding


@click.command(short_help="Find faults in a database or a folder of configs.")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--from", "form", type=click.Choice(["vllm", "sglang"]), help="PATH is a folder of files of this project."
)
@database_option
@json_option
def lint(path: Path | None, form: str | None, database: str | None, as_json: bool) -> int:
    """Find faults in the database (or the file PATH), or with --from in a folder of vLLM's or SGLang's tuned files:
    names that no loader looks for, sparse ladders, configs the chip cannot run, copies, files never tuned again.

    Exit status 1 with findings.

    \b
    Examples:
      autotune lint
      autotune lint --from vllm /opt/vllm/model_executor/layers/fused_moe/configs
    """
    if form is not None and (path is None or not path.is_dir()):
        raise click.UsageError("--from needs the folder of the files")
    if form is None and path is not None and path.is_dir():
        raise click.UsageError(f"{path} is a folder: say --from vllm or --from sglang")
    with refusals():
        found, explanations = _peer_findings(form, path) if form and path else _own_findings(path, database)
    if as_json:
        import dataclasses
        import json

        plain = [{**dataclasses.asdict(each), "explanation": explanations[each.kind]} for each in found]
        click.echo(json.dumps({"findings": plain}))
        return 1 if found else 0
    for each in found:
        click.echo(f"{each.where}: {each.kind}: {each.detail}")
    for kind, count in sorted(Counter(each.kind for each in found).items()):
        click.echo(f"{kind} ({count}): {explanations[kind]}")
    click.echo(counted(len(found), "finding"))
    return 1 if found else 0


def _peer_findings(form: str, folder: Path) -> tuple[list[Finding], dict[str, str]]:
    from ...cache.formats.peer_file import Peer
    from ...cache.lint_peers import EXPLANATIONS, lint_folder

    return lint_folder(Peer(form), folder), dict(EXPLANATIONS)


def _own_findings(path: Path | None, database: str | None) -> tuple[list[Finding], dict[str, str]]:
    from ...cache.lint import EXPLANATIONS, Finding, lint_rows
    from ...cache.manifest import read_answers
    from ...cache.untrusted import Refused

    try:
        rows = own_answers(database_path_of(database)) if path is None else read_answers(path)
    except Refused as error:
        return [Finding(kind="file", where=str(path), detail=str(error))], dict(EXPLANATIONS)
    return lint_rows(rows, digests=digests_of(rows)), dict(EXPLANATIONS)
