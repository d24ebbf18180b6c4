"""A tuned file of vLLM or SGLang as a value: its name, the ladder of configs by M, and the Triton it was tuned with.

M is the number of tokens of a forward pass on the rank, before top-k expansion. The files hold no timings. Both
projects pick the entry with the least |M - tokens|, the first in the file among equals, hence the ladder keeps the
order of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..errors import StoreError

MAX_FILE_BYTES = 1 << 20
_MAX_NUMBER = 2**31 - 1
_MAX_TILE = 1 << 16

PeerConfig = Mapping[str, int | str | bool]
Ladder = tuple[tuple[int, PeerConfig], ...]

# In the order in which vLLM's writer puts them.
FIELDS: Mapping[str, type] = {
    "BLOCK_SIZE_M": int, "BLOCK_SIZE_N": int, "BLOCK_SIZE_K": int, "GROUP_SIZE_M": int, "num_warps": int,
    "num_stages": int, "waves_per_eu": int, "matrix_instr_nonkdim": int, "kpack": int, "grf_mode": str,
    "num_ctas": int, "USE_TMA": bool, "SPLIT_K": int,
}  # fmt: skip
REQUIRED = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")
_MAY_BE_ZERO = ("waves_per_eu", "matrix_instr_nonkdim")


class FormatRefused(StoreError):
    """A name or a body that is not in the format, with the part that is not."""


class Peer(str, Enum):
    """The projects whose files are read and written."""

    VLLM = "vllm"
    SGLANG = "sglang"

    @property
    def kernel(self) -> str:
        """The kernel that the files tune: theirs, never one of ours."""
        return f"{self.value}.fused_moe"

    @property
    def project(self) -> str:
        return {"vllm": "vLLM", "sglang": "SGLang"}[self.value]


@dataclass(frozen=True, kw_only=True)
class PeerName:
    """What a file name says. `experts` = those held by the rank, `inter` = N = intermediate size per TP shard.

    `dtype` is empty where the name has none (bf16 and fp16), `block_shape` = (n, k) of block-quantised weights;
    `per_channel` and `down` (the down projection's own file) exist in SGLang only, `backend` in vLLM only.
    """

    experts: int
    inter: int
    device: str
    dtype: str = ""
    block_shape: tuple[int, int] | None = None
    per_channel: bool = False
    down: bool = False
    backend: str = ""


@dataclass(frozen=True, kw_only=True)
class PeerFile:
    """One file: `ladder` in the order of the file; `triton` is the version of the tuning run, "" if not said."""

    peer: Peer
    name: PeerName
    ladder: Ladder
    triton: str = ""


_NUMBER = r"(0|[1-9]\d{0,8})"
_NAMES = {
    Peer.VLLM: re.compile(
        rf"E={_NUMBER},N={_NUMBER},device_name=([^,/]*?)(?:,dtype=([a-z0-9_]+?))?"
        rf"(?:,block_shape=\[{_NUMBER},{_NUMBER}\])?(?:,backend=([a-z0-9_]+))?\.json"
    ),
    Peer.SGLANG: re.compile(
        rf"E={_NUMBER},N={_NUMBER},device_name=([^,/]*?)(?:,dtype=([a-z0-9_]+?))?"
        rf"(?:,block_shape=\[{_NUMBER}, {_NUMBER}\])?(,per_channel_quant=True)?(_down)?\.json"
    ),
}


def parse_name(peer: Peer, text: str) -> PeerName:
    """The parts of a file name. Raises FormatRefused for a name outside the grammar, to the letter."""
    found = _NAMES[peer].fullmatch(text)
    if found is None:
        raise FormatRefused(
            f"{text[:160]!r} is no file name of {peer.project}: E=..,N=..,device_name=..[,dtype=..] ..."
        )
    experts, inter, device, dtype, block_n, block_k, *rest = found.groups()
    name = PeerName(
        experts=int(experts),
        inter=int(inter),
        device=device,
        dtype=dtype or "",
        block_shape=(int(block_n), int(block_k)) if block_n else None,
        per_channel=peer is Peer.SGLANG and rest[0] is not None,
        down=peer is Peer.SGLANG and rest[1] is not None,
        backend=(rest[0] or "") if peer is Peer.VLLM else "",
    )
    assert format_name(peer, name) == text
    return name


def format_name(peer: Peer, name: PeerName) -> str:
    """The file name that the project's loader looks for, to the letter."""
    parts = [f"E={name.experts}", f"N={name.inter}", f"device_name={name.device}"]
    if name.dtype:
        parts.append(f"dtype={name.dtype}")
    if name.block_shape is not None:
        # vLLM takes the blanks out of the list, SGLang does not.
        parts.append(f"block_shape=[{(', ' if peer is Peer.SGLANG else ',').join(map(str, name.block_shape))}]")
    if name.per_channel:
        parts.append("per_channel_quant=True")
    if name.backend:
        parts.append(f"backend={name.backend}")
    return ",".join(parts) + ("_down" if name.down else "") + ".json"


def parse_body(peer: Peer, text: str) -> tuple[Ladder, str]:
    """(ladder in the order of the file, Triton version or ""). Raises FormatRefused, naming M and the field."""
    if len(text) > MAX_FILE_BYTES:
        raise FormatRefused(f"{len(text)} characters: at most {MAX_FILE_BYTES} are accepted")
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except FormatRefused:
        raise
    except (ValueError, RecursionError):
        raise FormatRefused(f"{text[:60]!r} is not JSON") from None
    if not isinstance(values, dict):
        raise FormatRefused(f"{text[:60]!r} is not a JSON object of configs by M")
    triton = ""
    if "triton_version" in values:
        if peer is Peer.SGLANG:
            raise FormatRefused("triton_version in a file for SGLang, whose loader calls int() on every key")
        triton = values.pop("triton_version")
        if not isinstance(triton, str) or not re.fullmatch(r"[\w.+-]{1,64}", triton):
            raise FormatRefused(f"triton_version={triton!r}: expected a version such as 3.6.0")
    return tuple((_tokens(key), check_config(key, value)) for key, value in values.items()), triton


def format_body(file: PeerFile) -> str:
    """The text of a file: M ascending, fields in the order of FIELDS, four blanks, a newline at the end."""
    body: dict[str, Any] = {}
    if file.triton and file.peer is Peer.VLLM:
        body["triton_version"] = file.triton
    for tokens, config in sorted(file.ladder, key=lambda entry: entry[0]):
        body[str(tokens)] = {name: config[name] for name in FIELDS if name in config}
    return json.dumps(body, indent=4) + "\n"


def _tokens(key: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,9}", key) or int(key) > _MAX_NUMBER:
        raise FormatRefused(f"key {key[:40]!r}: expected M, a positive decimal number of tokens")
    return int(key)


def check_config(key: str, value: object) -> PeerConfig:
    """`value` if it is a config of the format, for M = `key`. Raises FormatRefused."""
    if not isinstance(value, dict):
        raise FormatRefused(f"M={key}: expected a config, got {str(value)[:40]!r}")
    missing = [name for name in REQUIRED if name not in value]
    if missing:
        raise FormatRefused(f"M={key}: {', '.join(missing)} missing")
    for name, entry in value.items():
        if name not in FIELDS:
            raise FormatRefused(f"M={key}: unknown field {name[:40]!r}")
        if type(entry) is not FIELDS[name]:
            raise FormatRefused(f"M={key}: {name}={str(entry)[:40]!r} is no {FIELDS[name].__name__}")
        least = 0 if name in _MAY_BE_ZERO else 1
        if type(entry) is int and not least <= entry <= _MAX_TILE:
            raise FormatRefused(f"M={key}: {name}={str(entry)[:40]} is outside {least}..{_MAX_TILE}")
        if isinstance(entry, str) and not re.fullmatch(r"\w{1,16}", entry):
            raise FormatRefused(f"M={key}: {name}={entry[:40]!r} is no word")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FormatRefused("a JSON object names a field twice")
    return values
