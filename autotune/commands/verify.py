"""`autotune verify`: is a file what it claims to be?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .files import counted, refusals
from .options import json_option


@click.command(short_help="Check a shipped database or a signed manifest.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--signers", type=click.Path(path_type=Path), help="OpenSSH allowed-signers file; checks PATH.sig.")
@json_option
def verify(path: Path, signers: Path | None, as_json: bool) -> int:
    """Check a database, a .jsonl file, or a manifest (.json) with the files it lists beside it.

    A database is read as a stranger's: header, schema, integrity, every row's keys and digests, every config against
    the declared space. Nothing is written. Exit status 1 when something is wrong.

    \b
    Examples:
      autotune verify mi300x.db
      autotune verify mi300x.db.manifest.json --signers signers
    """
    if path.suffix == ".json":
        return _verify_manifest(path, signers, as_json)
    if signers is not None:
        raise click.UsageError("--signers goes with a manifest: signatures are over manifests, which hold the digests")
    from ...cache.digest import logical_digest
    from ...cache.manifest import file_digest, read_answers
    from ...cache.untrusted import check_rows

    with refusals():
        rows = read_answers(path)
        check_rows(rows, where=str(path))
    facts: dict[str, Any] = {
        "path": str(path), "answers": len(rows), "bytes": path.stat().st_size, "sha256": file_digest(path),
        "logical_digest": logical_digest(rows),
    }  # fmt: skip
    if as_json:
        import json

        click.echo(json.dumps(facts))
        return 0
    click.echo(f"{path} is sound: {counted(len(rows), 'answer')} in {facts['bytes']} bytes")
    click.echo(f"sha256          {facts['sha256']}\nlogical digest  {facts['logical_digest']}")
    return 0


def _verify_manifest(path: Path, signers: Path | None, as_json: bool) -> int:
    from ...cache.manifest import faults, read_manifest, verify_signature

    with refusals():
        signer = verify_signature(path, signers) if signers is not None else None
        manifest = read_manifest(path)
        found = faults(manifest, path.parent)
    if as_json:
        import json

        names = [entry.name for entry in manifest.entries]
        click.echo(json.dumps({"path": str(path), "signer": signer, "files": names, "faults": found}))
        return 1 if found else 0
    for fault in found:
        click.echo(fault, err=True)
    if not found:
        click.echo(f"{path} is sound: {counted(len(manifest.entries), 'file')} as listed")
    click.echo(f"signed by {signer}" if signer else "signature not checked: name the signers you know with --signers")
    return 1 if found else 0
