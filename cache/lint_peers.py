"""Faults in folders of vLLM or SGLang files: names that no loader looks for, and configs that cannot be right.

Rules and their evidence are those of the two loaders (vLLM 0.33.0, SGLang 0.5.23) and of Triton's compilers; nothing
here times anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..search_spaces.arch import Arch, known_archs
from ..search_spaces.model.closed_form import DotTile, shared_bytes
from .formats.peer_devices import arch_of_peer_device
from .formats.peer_file import FormatRefused, Peer, PeerConfig, PeerFile, PeerName, format_name, parse_name
from .formats.peer_rows import read_file
from .lint import Finding

EXPLANATIONS: Mapping[str, str] = {
    "dead-name": "no loader ever asks for this name: the file is never read",
    "unreadable": "the file is not in the format: the loader fails on it or ignores it",
    "sparse": "both loaders stretch the nearest entry over every M, however far: entries are missing where it matters",
    "unsorted": "keys are not ascending: among equally near keys the first in the file wins, here not the smaller",
    "shared-memory": "the tiles need more LDS or shared memory than the chip has: OutOfResources at the first launch",
    "nonkdim": "the matrix instruction is wider than the tile: Triton falls back, or aborts the process on gfx950",
    "kpack": "gfx950 has no kpack: Triton forces 1 and warns at every compile",
    "block-k": "K tile above the scale block: vLLM clamps it, an alias; SGLang applies one scale to two blocks",
    "split-k": "vLLM's int4 and int8 weight-only kernel has SPLIT_K without a default: the launch fails without it",
    "implicit": "num_warps or num_stages missing: Triton's default applies, which differs by version and backend",
    "copy": "equal to another device's file in every entry: copied, not tuned on one of them",
    "not-retuned": "a file for a newer Triton with the winners of the older: renamed, not tuned again",
}

_DTYPES = {
    Peer.VLLM: ("fp8_w8a8", "fp8_w8a16", "int8_w8a16", "int4_w4a16", "float32"),
    Peer.SGLANG: ("fp8_w8a8", "int8_w8a8", "int8_w8a16", "int4_w4a16", "float32"),
}
_ITEMSIZE = {"": 2, "fp8_w8a8": 1, "int8_w8a8": 1, "float32": 4}
"""Bytes of both operands; weight-only formats unpack in ways the closed form does not cover."""
_WEIGHT_ONLY = ("int4_w4a16", "int8_w8a16")
# Outside the catalogue, but with the instructions of a member: CUDA C++ Programming Guide, shared memory per block.
_LIKE = {"sm_89": ("sm_80", 99), "sm_120": ("sm_80", 99), "sm_121": ("sm_80", 99), "sm_103": ("sm_100", 227)}
_SHARED_FIELDS = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
_FIRST_AT_MOST, _LAST_AT_LEAST, _RATIO, _LEAST = 16, 512, 4, 6


@dataclass(frozen=True)
class _Read:
    where: str
    file: PeerFile


def lint_folder(peer: Peer, folder: Path) -> list[Finding]:
    """Findings for every `.json` below `folder`, by file."""
    read, found = [], []
    for path in sorted(folder.rglob("*.json")):
        where = str(path.relative_to(folder))
        try:
            name = parse_name(peer, path.name)
        except FormatRefused as error:
            found.append(Finding(kind="dead-name", where=where, detail=str(error)))
            continue
        dead = _why_dead(peer, name)
        if dead is not None:
            found.append(Finding(kind="dead-name", where=where, detail=dead))
        if name.backend or not name.device:
            continue
        try:
            read.append(_Read(where, read_file(peer, path)))
        except FormatRefused as error:
            found.append(Finding(kind="unreadable", where=where, detail=str(error)))
    for each in read:
        found += [Finding(kind=kind, where=each.where, detail=detail) for kind, detail in _faults(each.file)]
    return sorted([*found, *_copies(read), *_not_retuned(read)], key=lambda each: (each.where, each.kind))


def _why_dead(peer: Peer, name: PeerName) -> str | None:
    if not name.device:
        return "the device name is empty"
    if name.dtype and name.dtype not in _DTYPES[peer]:
        return f"dtype={name.dtype}: {peer.project} writes only {', '.join(_DTYPES[peer])}, and nothing for 16 bits"
    if peer is Peer.VLLM and "H200" in name.device.split("_") and name.device != "NVIDIA_H200":
        return f"device {name.device}: vLLM calls every H200 NVIDIA_H200"
    if name.block_shape is not None and 0 in name.block_shape:
        return "block_shape with a 0: the loader leaves such a shape out of the name"
    return None


def _faults(file: PeerFile) -> Iterator[tuple[str, str]]:
    keys = [tokens for tokens, _ in file.ladder]
    ordered = sorted(keys)
    missing = _missing(ordered)
    if missing:
        yield "sparse", f"{len(keys)} entries, {ordered[0]}..{ordered[-1]}: {missing}" if keys else missing
    if keys != ordered:
        yield "unsorted", ", ".join(map(str, keys[:20]))
    for kind, tokens in _by_kind(file).items():
        yield kind, "; ".join(tokens[:3]) + (f"; and {len(tokens) - 3} more" if len(tokens) > 3 else "")


def _missing(keys: list[int]) -> str:
    if not keys:
        return "no entry at all"
    parts = []
    if keys[0] > _FIRST_AT_MOST:
        parts.append(f"every M below {keys[0]} gets its config")
    if keys[-1] < _LAST_AT_LEAST:
        parts.append(f"every M above {keys[-1]} gets its config")
    parts += [f"nothing from {low} to {high}" for low, high in pairwise(keys) if high > _RATIO * low]
    return ", ".join(parts) or (f"{len(keys)} entries for all M" if len(keys) < _LEAST else "")


def _by_kind(file: PeerFile) -> dict[str, list[str]]:
    """Faults of single configs: by kind, the entries that have it."""
    found: dict[str, list[str]] = defaultdict(list)
    arch_name = arch_of_peer_device(file.name.device)
    arch = _arch(arch_name)
    for tokens, config in file.ladder:
        for kind, detail in _config_faults(file, config, arch_name, arch):
            found[kind].append(f"M={tokens}: {detail}")
    return found


def _config_faults(file: PeerFile, config: PeerConfig, arch_name: str, arch: Arch | None) -> Iterator[tuple[str, str]]:
    name, block = file.name, {side: int(config[f"BLOCK_SIZE_{side}"]) for side in "MNK"}
    if name.block_shape is not None and block["K"] > name.block_shape[1]:
        yield "block-k", f"BLOCK_SIZE_K={block['K']} over a block of {name.block_shape[1]}"
        if file.peer is Peer.VLLM:
            block["K"] = name.block_shape[1]
    width = int(config.get("matrix_instr_nonkdim", 0))
    if width > min(block["M"], block["N"]):
        yield "nonkdim", f"matrix_instr_nonkdim={width} over a tile of {block['M']}x{block['N']}"
    if arch_name == "gfx950" and config.get("kpack", 1) != 1:
        yield "kpack", f"kpack={config['kpack']}"
    if file.peer is Peer.VLLM and name.dtype in _WEIGHT_ONLY and "SPLIT_K" not in config:
        yield "split-k", "no SPLIT_K"
    if "num_warps" not in config or "num_stages" not in config:
        yield "implicit", "no num_warps or num_stages"
    elif arch is not None and name.dtype in _ITEMSIZE:
        warps, stages = int(config["num_warps"]), int(config["num_stages"])
        rows, columns, depth = (np.array([float(block[side])]) for side in "MNK")
        tile = DotTile(rows, columns, depth, np.array([1.0 * warps]), np.array([1.0 * stages]), _ITEMSIZE[name.dtype])
        needed = float(shared_bytes(tile, arch)[0])
        if stages > 1 and needed > arch.shared_limit_bytes:
            size = "x".join(str(block[side]) for side in "MNK")
            yield "shared-memory", f"{size} in {stages} stages needs {needed:.0f} > {arch.shared_limit_bytes} bytes"


def _arch(name: str) -> Arch | None:
    known = {arch.name: arch for arch in known_archs()}
    if name in _LIKE:
        like, kib = _LIKE[name]
        return replace(known[like], name=name, shared_limit_bytes=kib * 1024)
    return known.get(name)


def _copies(read: Iterable[_Read]) -> list[Finding]:
    same: dict[object, list[_Read]] = defaultdict(list)
    for each in read:
        nameless = replace(each.file.name, device="")
        same[nameless, each.file.triton if each.file.peer is Peer.SGLANG else "", _content(each.file)].append(each)
    return [
        Finding(kind="copy", where=group[0].where, detail="equal to that of " + ", ".join(map(_device, group[1:])))
        for group in same.values()
        if len(group) > 1
    ]


def _not_retuned(read: Iterable[_Read]) -> list[Finding]:
    """A `_down` file is also compared with an older file for both projections, which it replaces."""
    by_name: dict[PeerName, list[_Read]] = defaultdict(list)
    for each in read:
        by_name[each.file.name].append(each)
    found = []
    for each in read:
        if each.file.peer is not Peer.SGLANG:
            continue
        older = [
            other
            for other in (*by_name[each.file.name], *by_name[replace(each.file.name, down=False)])
            if _version(other) < _version(each) and _shared(other.file) == _shared(each.file)
        ]
        if older:
            names = sorted({f"{other.file.triton} ({format_name(Peer.SGLANG, other.file.name)})" for other in older})
            found.append(Finding(kind="not-retuned", where=each.where, detail=f"equal to {', '.join(names)}"))
    return found


def _content(file: PeerFile) -> tuple[object, ...]:
    return tuple((tokens, tuple(sorted(config.items()))) for tokens, config in file.ladder)


def _shared(file: PeerFile) -> dict[int, tuple[object, ...]]:
    return {tokens: tuple(config.get(name) for name in _SHARED_FIELDS) for tokens, config in file.ladder}


def _device(each: _Read) -> str:
    return each.file.name.device


def _version(each: _Read) -> tuple[int, ...]:
    return tuple(map(int, each.file.triton.split(".")))
