"""`autotune import`: answers of somebody else, checked and marked as such."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .files import counted, refusals
from .options import database_option, database_path_of, json_option

if TYPE_CHECKING:
    from ...cache.rows import TunedRow


@click.command("import", short_help="Read answers that somebody else made.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--from", "form", type=click.Choice(["auto", "sqlite", "jsonl", "vllm", "sglang"]), default="auto",
    show_default=True, help="The form; auto: .jsonl, a folder with triton_* folders (sglang), else sqlite.",
)  # fmt: skip
@click.option("--trust", is_flag=True, help="Keep the labels: you know who made the file. Default: all become prior.")
@click.option("--manifest", type=click.Path(path_type=Path), help="The manifest that lists the file; with --signers.")
@click.option("--signers", type=click.Path(path_type=Path), help="OpenSSH allowed-signers file: whose labels you keep.")
@click.option("--origin", help="Name of the source for rows that name none. Default: the file's name.")
@click.option("--version", "version", default="", help="For vllm and sglang: the release that the files are from.")
@database_option
@json_option
def import_answers(
    path: Path, form: str, trust: bool, manifest: Path | None, signers: Path | None, origin: str | None, version: str,
    database: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Read answers from PATH: a database, lines of JSON, or a folder of vLLM's or SGLang's files.

    Every row is checked: keys and digests computed again, configs inside the declared space. Without --trust, or a
    manifest signed by somebody in --signers, all rows become prior: they serve only where nothing better is known.
    Files of vLLM and SGLang tune those projects' kernels and never serve ours.

    \b
    Examples:
      autotune import mi300x.db --manifest mi300x.db.manifest.json --signers signers
      autotune import --from vllm /opt/vllm/model_executor/layers/fused_moe/configs --version 0.33.0
    """
    from ...cache.merge import merge_into
    from ...cache.store import ConfigStore

    if (manifest is None) != (signers is None):
        raise click.UsageError("--manifest and --signers go together: a manifest without a known signer proves nothing")
    form = _form_of(path) if form == "auto" else form
    refused: list[tuple[str, str]] = []
    with refusals():
        if form in ("vllm", "sglang"):
            rows, refused = _read_peer(form, path, version)
        else:
            rows = _read_own(form, path, trust, manifest, signers, origin or path.name)
        with ConfigStore.open(database_path_of(database)) as store:
            report = merge_into(store, rows)
    outcome = {"added": report.added, "replaced": report.replaced, "kept": report.kept, "same": report.same}
    labels = sorted({row.label.name.lower() for row in rows})
    if as_json:
        import json

        left_out = [{"file": file, "reason": reason} for file, reason in refused]
        click.echo(json.dumps({**outcome, "labels": labels, "refused": left_out}))
        return 0 if rows else 1
    for file, reason in refused:
        click.echo(f"left out: {file}: {reason}", err=True)
    counts = ", ".join(f"{count} {word}" for word, count in outcome.items())
    click.echo(f"{counted(len(rows), 'answer')} read as {', '.join(labels) or 'nothing'}: {counts}")
    return 0 if rows else 1


def _form_of(path: Path) -> str:
    if path.suffix == ".jsonl":
        return "jsonl"
    if path.is_dir() and any(path.rglob("triton_*/*.json")):
        return "sglang"
    if path.is_dir() or path.suffix == ".json":
        raise click.UsageError(f"{path}: say --from vllm or --from sglang")
    return "sqlite"


def _read_peer(form: str, path: Path, version: str) -> tuple[list[TunedRow], list[tuple[str, str]]]:
    from ...cache.formats.peer_file import Peer
    from ...cache.formats.peer_rows import read_folder

    found = read_folder(Peer(form), path, version=version)
    return list(found.rows), [(str(file), reason) for file, reason in found.refused]


def _read_own(
    form: str, path: Path, trust: bool, manifest: Path | None, signers: Path | None, origin: str
) -> list[TunedRow]:
    from ...cache.formats import jsonl
    from ...cache.manifest import check_listed, read_text, verify_signature
    from ...cache.untrusted import LIMITS, as_prior, attributed, check_rows, read_untrusted

    signer = ""
    if manifest is not None and signers is not None:
        signer = verify_signature(manifest, signers)
        check_listed(manifest, path)
    if form == "jsonl":
        rows = jsonl.loads(read_text(path, LIMITS.file_bytes))
        check_rows(rows, where=str(path))
    else:
        rows = read_untrusted(path)
    rows = attributed(rows, origin=origin, signer=signer)
    return rows if trust or signer else as_prior(rows)
