"""Peers' files as rows of the database, and back.

The rows are priors under the peer's own kernel name: a file tunes that project's kernel and holds no timing, so no
kernel of ours is ever served from it. Hidden size, top-k and the compiler's sources are not in the format and stay
unknown.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..checks import canonical
from ..key import Cell, Environment
from ..rows import Label, Source, TunedRow
from .peer_devices import arch_of_peer_device
from .peer_file import (
    FIELDS,
    FormatRefused,
    Ladder,
    Peer,
    PeerConfig,
    PeerFile,
    PeerName,
    format_body,
    format_name,
    parse_body,
    parse_name,
)

LICENCE = "Apache-2.0"  # of both projects' files
FORMAT_DIGEST = "fused-moe-json-1"
SIXTEEN_BIT = "16-bit"
"""dtype of rows whose file name states none: bf16 and fp16 share it. A name cannot hold this word."""
POLICY = "imported file without timings; hidden size, top-k and compiler sources unknown"
UNDATED_MS = 1
"""The files carry no date. A constant keeps a second import of the same file from changing anything."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Rows read, and the files that were left out with the reason."""

    rows: tuple[TunedRow, ...]
    refused: tuple[tuple[Path, str], ...]


@dataclass(frozen=True, kw_only=True)
class PeerFolder:
    """Where in a tree of files something lies: the path that the loader expects, and the text."""

    path: Path
    text: str


def read_folder(peer: Peer, folder: Path, *, version: str = "") -> Imported:
    """Rows of every `.json` file below `folder`, or of the one file that it names; `version` = the project's release.

    A file that cannot be a table of the Triton kernel is refused with its reason, the others are read.
    """
    files = sorted(folder.rglob("*.json")) if folder.is_dir() else [folder]
    rows: list[TunedRow] = []
    refused = []
    for path in files:
        try:
            rows += rows_of(read_file(peer, path), version=version)
        except FormatRefused as error:
            refused.append((path, str(error)))
    return Imported(rows=tuple(rows), refused=tuple(refused))


def read_file(peer: Peer, path: Path) -> PeerFile:
    """One file; SGLang's Triton version is the name of its folder. Raises FormatRefused."""
    name = parse_name(peer, path.name)
    if name.backend:
        raise FormatRefused(f"backend={name.backend}: another kernel, not the Triton one")
    if not name.device:
        raise FormatRefused("the device name is empty: no loader looks for it")
    try:
        with open(path, "rb") as opened:
            raw = opened.read(1 + (1 << 20))
        ladder, triton = parse_body(peer, raw.decode("utf-8"))
    except OSError as error:
        raise FormatRefused(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FormatRefused("is not UTF-8 text") from None
    if peer is Peer.SGLANG:
        triton = triton_of_folder(path.parent.name)
    return PeerFile(peer=peer, name=name, ladder=ladder, triton=triton)


def triton_of_folder(folder: str) -> str:
    """`triton_3_7_1` -> `3.7.1`. Raises FormatRefused: SGLang reads the parts as integers and stops at others."""
    parts = folder.removeprefix("triton_").split("_")
    if not folder.startswith("triton_") or not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise FormatRefused(f"folder {folder[:80]!r}: SGLang's files lie in a folder such as triton_3_7_1")
    return ".".join(parts)


def rows_of(file: PeerFile, *, version: str = "") -> list[TunedRow]:
    """A prior row for every entry of the file."""
    name = file.name
    dims = {"E": name.experts, "N": name.inter}
    if name.block_shape is not None:
        dims |= {"block_n": name.block_shape[0], "block_k": name.block_shape[1]}
    dims |= {word: 1 for word, holds in (("down", name.down), ("per_channel", name.per_channel)) if holds}
    signature = ",".join(f"{key}={value}" for key, value in sorted(dims.items()))
    env = Environment(
        gpu=name.device,
        arch_raw=arch_of_peer_device(name.device),
        triton=file.triton,
        # Two runs under different versions are two rows, not rivals; the version stands in for the unknown sources.
        triton_key=f"version {file.triton}" if file.triton else "",
        policy=POLICY,
    )
    return [
        TunedRow(
            cell=Cell(
                arch=arch_of_peer_device(name.device), device=name.device, kernel=file.peer.kernel,
                kernel_digest=FORMAT_DIGEST, signature=signature, dtype=name.dtype or SIXTEEN_BIT, batch=tokens,
            ),
            label=Label.PRIOR,
            env=env,
            config_json=canonical({field: _stored(value) for field, value in config.items()}),
            facts_json=canonical({"position": position}),
            source=Source(name=file.peer.project, version=version, licence=LICENCE),
            ts_ms=UNDATED_MS,
        )
        for position, (tokens, config) in enumerate(file.ladder)
    ]  # fmt: skip


def files_of(peer: Peer, rows: Iterable[TunedRow]) -> list[PeerFile]:
    """The files behind imported rows, each ladder in the order in which it was read; rows of other kernels are
    ignored. vLLM has one file for all Triton versions: of several the newest goes out."""
    ladders: dict[tuple[PeerName, str], list[TunedRow]] = defaultdict(list)
    for row in rows:
        if row.cell.kernel == peer.kernel and row.cell.kernel_digest == FORMAT_DIGEST and row.config_json:
            ladders[_name_of(row.cell), row.env.triton].append(row)
    if peer is Peer.VLLM:
        newest: dict[PeerName, str] = {}
        for name, triton in ladders:
            if name not in newest or _version(triton) > _version(newest[name]):
                newest[name] = triton
        ladders = defaultdict(list, {(n, t): found for (n, t), found in ladders.items() if newest[n] == t})
    files = [
        PeerFile(peer=peer, name=name, ladder=_ladder(found), triton=triton)
        for (name, triton), found in ladders.items()
    ]
    return sorted(files, key=lambda file: str(path_of(file)))


def path_of(file: PeerFile) -> Path:
    """Where the loader looks, below $VLLM_TUNED_CONFIG_FOLDER or $SGLANG_MOE_CONFIG_DIR. Raises FormatRefused."""
    name = format_name(file.peer, file.name)
    if file.peer is Peer.VLLM:
        return Path(name)
    folder = f"triton_{file.triton.replace('.', '_')}"
    triton_of_folder(folder)
    return Path("configs") / folder / name


def written(files: Iterable[PeerFile]) -> list[PeerFolder]:
    """Path and text of every file."""
    return [PeerFolder(path=path_of(file), text=format_body(file)) for file in files]


def _name_of(cell: Cell) -> PeerName:
    parts = [part.partition("=")[::2] for part in cell.signature.split(",")]
    dims = {name: int(value) for name, value in parts if value.isdecimal() and len(value) < 10}
    if len(dims) != len(parts) or not {"E", "N"} <= set(dims) or ("block_n" in dims) != ("block_k" in dims):
        raise FormatRefused(f"signature {cell.signature[:120]!r}: expected E=..,N=..")
    return PeerName(
        experts=dims["E"], inter=dims["N"], device=cell.device,
        dtype="" if cell.dtype == SIXTEEN_BIT else cell.dtype,
        block_shape=(dims["block_n"], dims["block_k"]) if "block_n" in dims else None,
        per_channel="per_channel" in dims, down="down" in dims,
    )  # fmt: skip


def _ladder(rows: list[TunedRow]) -> Ladder:
    ordered = sorted(rows, key=lambda row: (_position(row), row.cell.batch))
    return tuple((row.cell.batch, _restored(row.config_json or "{}")) for row in ordered)


def _position(row: TunedRow) -> int:
    position = json.loads(row.facts_json or "{}").get("position", 0)
    return position if type(position) is int else 0


def _stored(value: int | str | bool) -> int | str:
    """A config of ours holds integers and words, so true and false become 1 and 0."""
    return int(value) if isinstance(value, bool) else value


def _restored(config_json: str) -> PeerConfig:
    return {name: bool(value) if FIELDS.get(name) is bool else value for name, value in json.loads(config_json).items()}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split("+")[0].split("."))
