"""`autotune export`: the answers as a file to pass on, or as files for vLLM or SGLang."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .files import counted, digests_of, own_answers, refusals
from .options import database_option, database_path_of, json_option

if TYPE_CHECKING:
    from ...cache.formats.peer_file import Peer, PeerFile
    from ...cache.rows import TunedRow

NOTES = "paiton-notes.txt"
MANIFEST_SUFFIX = ".manifest.json"


@click.command(short_help="Write the answers to a file to pass on.")
@click.option(
    "--for", "form", type=click.Choice(["sqlite", "jsonl", "vllm", "sglang"]), default="sqlite", show_default=True,
    help="The form: a shipped database, lines of JSON, or a folder of files for vLLM or SGLang.",
)  # fmt: skip
@click.option("--out", required=True, metavar="PATH", help="File, or for vllm and sglang the folder, to write.")
@click.option("--arch", help="Only this architecture.")
@click.option("--device", help="Only this device.")
@click.option("--kernel", help="Only this kernel. For vllm and sglang: moe_grouped, or rows of their own kernel.")
@click.option(
    "--label", type=click.Choice(["measured", "estimated", "prior"]), help="Only answers with at least this label."
)
@click.option(
    "--device-name", "device_names", multiple=True, metavar="DEVICE=NAME",
    help="For vllm and sglang: their name of a device, as their log prints it.",
)  # fmt: skip
@click.option(
    "--licence", metavar="SPDX", help="Licence of the rows that name none, for sqlite and jsonl, such as Apache-2.0."
)
@click.option("--manifest", is_flag=True, help="Write PATH.manifest.json with sizes and digests.")
@click.option("--sign", metavar="KEY", help="Sign the manifest with this OpenSSH key (implies --manifest).")
@database_option
@json_option
def export(
    form: str, out: str, arch: str | None, device: str | None, kernel: str | None, label: str | None,
    device_names: tuple[str, ...], licence: str | None, manifest: bool, sign: str | None, database: str | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Write the answers to a file: a database that opens anywhere, lines of JSON for a review, or the folder that
    VLLM_TUNED_CONFIG_FOLDER or SGLANG_MOE_CONFIG_DIR names. Trials and runs stay behind.

    Only moe_grouped goes out to vLLM and SGLang: its parameters mean the same there. How far the evidence carries is
    printed and written beside the files.

    \b
    Examples:
      autotune export --out mi300x.db --device MI300X --sign ~/.ssh/id_ed25519
      autotune export --for jsonl --out answers.jsonl
      autotune export --for vllm --out moe-configs
    """
    from ...cache.rows import Label

    if arch is not None or device is not None:
        from .options import device_of

        target = device_of(arch or device or "", device if arch else None)
        arch, device = target.arch.name if arch else None, target.name if device else None
    rows = [
        row
        for row in own_answers(database_path_of(database))
        if arch in (None, row.cell.arch)
        and device in (None, row.cell.device)
        and kernel in (None, row.cell.kernel)
        and (label is None or row.label >= Label[label.upper()])
    ]
    path = Path(out)
    with refusals():
        if form in ("vllm", "sglang"):
            if licence:
                raise click.UsageError("--licence goes with sqlite and jsonl; a peer's files have no place for it")
            if manifest or sign:
                raise click.UsageError("--manifest and --sign go with sqlite and jsonl; a peer's loader reads neither")
            return _export_peer(form, rows, path, kernel, device_names, as_json)
        if device_names:
            raise click.UsageError("--device-name goes with --for vllm and --for sglang")
        if licence:
            rows = [_licensed(row, licence) for row in rows]
        return _export_own(form, rows, path, manifest or sign is not None, sign, as_json)


def _licensed(row: TunedRow, licence: str) -> TunedRow:
    """The row under this licence, unless it has one: somebody else's word keeps its own."""
    return row if row.source.licence else replace(row, source=replace(row.source, licence=licence))


def _export_own(form: str, rows: list[TunedRow], path: Path, manifest: bool, key: str | None, as_json: bool) -> int:
    from ...cache.digest import logical_digest
    from ...cache.export import write_shipped
    from ...cache.formats import jsonl
    from ...cache.manifest import describe, sign

    if not rows:
        raise click.ClickException("no answers match; `autotune show` lists what there is")
    if form == "sqlite":
        write_shipped(rows, path)
    else:
        _write_text(path, jsonl.dumps(rows))
    written = [str(path)]
    if manifest:
        listing = Path(f"{path}{MANIFEST_SUFFIX}")
        _write_text(listing, describe([path]).text())
        written.append(str(listing))
        if key is not None:
            written.append(str(sign(listing, Path(key).expanduser())))
    digest = logical_digest(rows)
    if as_json:
        import json

        click.echo(json.dumps({"written": written, "answers": len(rows), "logical_digest": digest}))
    else:
        click.echo(f"{counted(len(rows), 'answer')} in {', '.join(written)}; logical digest {digest}")
    return 0


def _export_peer(
    form: str, rows: list[TunedRow], folder: Path, kernel: str | None, device_names: tuple[str, ...], as_json: bool
) -> int:
    from ...cache.formats.grouped_moe import KERNEL
    from ...cache.formats.peer_file import Peer
    from ...cache.formats.peer_rows import written

    peer = Peer(form)
    if kernel not in (None, KERNEL, peer.kernel):
        raise click.UsageError(
            f"--for {form} takes --kernel {KERNEL} or {peer.kernel}: {kernel} means something else there"
        )
    files, notes = _peer_files(peer, rows, kernel or KERNEL, device_names)
    if not files:
        raise click.ClickException(
            f"no answers of {kernel or KERNEL} match; tune it with `autotune run --kernel {KERNEL}`"
        )
    texts = written(files)
    for each in texts:
        _write_text(folder / each.path, each.text)
    if notes:
        _write_text(folder / NOTES, "".join(f"{note}\n" for note in notes))
    if as_json:
        import json

        click.echo(json.dumps({"written": [str(folder / each.path) for each in texts], "notes": notes}))
        return 0
    for each in texts:
        click.echo(str(folder / each.path))
    for note in notes:
        click.echo(f"note: {note}")
    variable = "VLLM_TUNED_CONFIG_FOLDER" if peer is Peer.VLLM else "SGLANG_MOE_CONFIG_DIR"
    click.echo(f"use it with {variable}={folder.absolute()}")
    return 0


def _peer_files(
    peer: Peer, rows: list[TunedRow], kernel: str, device_names: tuple[str, ...]
) -> tuple[list[PeerFile], list[str]]:
    from ...cache.formats.grouped_moe import export_grouped, known_device_names
    from ...cache.formats.peer_rows import files_of

    names = {}
    for text in device_names:
        device, equals, name = text.partition("=")
        if not equals:
            raise click.UsageError(
                f"--device-name {text!r}: expected DEVICE=NAME, such as MI355X=AMD_Instinct_MI355_OAM"
            )
        names[device] = name
    mine = [row for row in rows if row.cell.kernel == kernel]
    found = export_grouped(
        peer, mine, device_names=known_device_names(names), kernel_digest=digests_of(mine).get(kernel), kernel=kernel
    )
    if kernel != peer.kernel:
        return list(found.files), list(found.notes)
    # Rows of the peer's own kernel: measured by a run, and imported from files. Of one name the measured goes out.
    measured = {each.name for each in found.files}
    imported = [each for each in files_of(peer, mine) if each.name not in measured]
    return [*found.files, *imported], list(found.notes)


def _write_text(path: Path, text: str) -> None:
    from ...cache.errors import translated

    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
