"""Our answers for moe_grouped as files for vLLM and SGLang, and their files as seeds for its search.

Only this kernel: sorted blocks of routed rows, one config for both GEMMs, parameters that mean the same thing. What
does not carry over is said in the notes that come with every export.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from ...search_spaces.arch import UnknownDevice, device_named
from ...search_spaces.config import Config
from ...search_spaces.fused_moe import FIELD_OF
from ...search_spaces.moe_grouped import MOE_GROUPED
from ..lookup import MAX_LOG2_DISTANCE
from ..merge import evidence
from ..rows import Label, TunedRow
from .peer_devices import PEER_DEVICE, UNCERTAIN_NAMES
from .peer_file import FormatRefused, Ladder, Peer, PeerConfig, PeerFile, PeerName
from .peer_rows import FORMAT_DIGEST, SIXTEEN_BIT

KERNEL = MOE_GROUPED.kernel

# Ours -> theirs.
_FIELD_OF = {
    **FIELD_OF,
    **{name: name for name in ("num_warps", "num_stages", "waves_per_eu", "matrix_instr_nonkdim", "kpack")},
}
_KEPT = frozenset({*_FIELD_OF, *_FIELD_OF.values()})
_OF_FIELD = {theirs: ours for ours, theirs in _FIELD_OF.items()}
_DTYPE_OF = {"bf16": "", "fp16": "", "fp32": "float32"}
_NAMES_OF_DTYPE = {"bf16": (SIXTEEN_BIT,), "fp16": (SIXTEEN_BIT,), "fp32": ("float32",)}

_KERNEL_NOTE = (
    "Tuned for Paiton's moe_grouped kernel: the same sort, tiles and parameters, but its first GEMM computes a gate and"
    " an up tile per program (BLOCK_SIZE_N counts intermediate columns, twice as many columns of w13). A good start for"
    " {project}, not a measurement of it: time both before you rely on it."
)
_OWN_NOTE = "Measured with {project}'s own kernel, of the release and on the device that each row names."
_LABEL_NOTE = {
    Label.ESTIMATED: "compiled for the device and ranked by a static model; nobody has timed them",
    Label.MEASURED: "timed on the device",
    Label.PRIOR: "somebody else's word, not tried",
}


@dataclass(frozen=True, kw_only=True)
class GroupedExport:
    """Files for a peer, and what a reader of them must know."""

    files: tuple[PeerFile, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Variant:
    """Rows that share a file name but not a meaning: the name has neither hidden size nor top-k."""

    signature: str
    dtype: str
    kernel_digest: str


def export_grouped(
    peer: Peer,
    rows: Iterable[TunedRow],
    *,
    device_names: Mapping[str, str] = PEER_DEVICE,
    kernel_digest: str | None = None,
    kernel: str = KERNEL,
) -> GroupedExport:
    """One file per (E, N, dtype, device) from the rows of moe_grouped, or of the peer's own kernel where a run has
    measured that; other kernels are ignored, and so are rows imported from files.

    `device_names` gives the peer's name of each device, `kernel_digest` keeps rows of one version of the kernel.
    Between two buckets with different configs the file gets an entry at the last M that the lower and the first that
    the upper one serves in our lookup, because the peer's rule (least |M - tokens|) would switch elsewhere. Raises
    FormatRefused for a device without a name.
    """
    groups: dict[tuple[PeerName, str], dict[_Variant, list[TunedRow]]] = defaultdict(lambda: defaultdict(list))
    notes: list[str] = []
    for row in rows:
        is_asked = row.cell.kernel == kernel and row.cell.kernel_digest != FORMAT_DIGEST
        if is_asked and kernel_digest in (None, row.cell.kernel_digest):
            variant = _Variant(row.cell.signature, row.cell.dtype, row.cell.kernel_digest)
            triton = row.env.triton.split("+")[0] if peer is Peer.SGLANG else ""
            groups[_name_of(row, device_names), triton][variant].append(row)
    files = []
    for (name, triton), variants in sorted(groups.items(), key=lambda item: (str(item[0][0]), item[0][1])):
        chosen = max(variants, key=lambda each: (max(map(evidence, variants[each])), len(variants[each])))
        what = f"E={name.experts},N={name.inter} on {name.device}"
        for other in variants:
            if other != chosen:
                notes.append(
                    f"{what}: the name has no hidden size, top-k or 16-bit type; {other.signature} {other.dtype} is"
                    f" left out for {chosen.signature} {chosen.dtype}, which has the better evidence"
                )
        best = _best_by_batch(variants[chosen])
        files.append(_file(peer, name, triton, best))
        notes += [f"{what}: {note}" for note in _notes_of(best)]
    if files:
        notes.insert(0, (_KERNEL_NOTE if kernel == KERNEL else _OWN_NOTE).format(project=peer.project))
    return GroupedExport(files=tuple(files), notes=tuple(dict.fromkeys(notes)))


def seeds_of(rows: Iterable[TunedRow], *, experts: int, inter: int, dtype: str, batch: int, limit: int) -> list[Config]:
    """Peers' configs for this shape as configs of moe_grouped, nearest M first: starts of a search, never answers.

    Fields without a counterpart are left out, so a config need not be complete.
    """
    near = []
    for row in rows:
        dims = dict(part.split("=") for part in row.cell.signature.split(","))
        is_same = dims == {"E": str(experts), "N": str(inter)} and row.cell.dtype in _NAMES_OF_DTYPE.get(dtype, ())
        if row.cell.kernel in {peer.kernel for peer in Peer} and is_same and row.config_json:
            theirs = json.loads(row.config_json)
            config = Config({_OF_FIELD[name]: value for name, value in theirs.items() if name in _OF_FIELD})
            near.append((abs(math.log2(row.cell.batch / batch)), row.cell.kernel, row.cell.key, config))
    return list(dict.fromkeys(config for *_, config in sorted(near, key=lambda each: each[:3])))[:limit]


def _name_of(row: TunedRow, device_names: Mapping[str, str]) -> PeerName:
    problem = MOE_GROUPED.problem_from(row.cell.signature, row.cell.dtype, row.cell.batch)
    if row.cell.device not in device_names:
        raise FormatRefused(f"device {row.cell.device} has no name in these files; give one with --device-name")
    dims = problem.dims()
    return PeerName(
        experts=dims["experts"], inter=dims["inter"], device=device_names[row.cell.device],
        dtype=_DTYPE_OF[row.cell.dtype],
    )  # fmt: skip


def _best_by_batch(rows: list[TunedRow]) -> list[TunedRow]:
    best: dict[int, TunedRow] = {}
    for row in rows:
        rival = best.get(row.cell.batch)
        if rival is None or evidence(row) > evidence(rival):
            best[row.cell.batch] = row
    return [best[batch] for batch in sorted(best)]


def _file(peer: Peer, name: PeerName, triton: str, rows: list[TunedRow]) -> PeerFile:
    said = triton if peer is Peer.SGLANG else rows[0].env.triton
    return PeerFile(peer=peer, name=name, ladder=_with_switches(rows), triton=said)


def _translated(row: TunedRow, batch: int | None = None) -> PeerConfig:
    """The config that a launch served by the row would use, in the peer's words."""
    if row.config_json is None:
        problem = MOE_GROUPED.problem_from(row.cell.signature, row.cell.dtype, batch or row.cell.batch)
        config = MOE_GROUPED.default_config(problem, device_named(row.cell.device))
    else:
        config = Config.from_json(row.config_json)
    fields = {_FIELD_OF.get(name, name): value for name, value in config.items() if name in _KEPT}
    if row.cell.arch == "gfx950":
        fields.pop("kpack", None)  # Triton forces it to 1 there, with a warning for every compile
    return fields


def _with_switches(rows: list[TunedRow]) -> Ladder:
    """The ladder of the buckets, with entries where our lookup changes from one bucket to the next."""
    ladder = {row.cell.batch: _translated(row) for row in rows}
    for low, high in pairwise(rows):
        first, last = low.cell.batch, high.cell.batch
        if _is_gap(first, last) or ladder[first] == ladder[last]:
            continue
        # The first M that `high` serves: nearer in log distance, or as near without a worse label.
        switch = math.isqrt(first * last - 1) + 1
        if switch * switch == first * last and low.label > high.label:
            switch += 1
        if switch != (first + last) // 2 + 1:  # where the least |M - tokens| switches by itself
            ladder.setdefault(switch - 1, _translated(low, switch - 1))
            ladder.setdefault(switch, _translated(high, switch))
    return tuple(sorted(ladder.items()))


def _is_gap(low: int, high: int) -> bool:
    return math.log2(high / low) > 2 * MAX_LOG2_DISTANCE


def _notes_of(rows: list[TunedRow]) -> list[str]:
    labels = {label: sum(row.label is label for row in rows) for label in Label}
    notes = [f"{count} entries {_LABEL_NOTE[label]}" for label, count in labels.items() if count]
    tuned = [row.cell.batch for row in rows]
    notes.append(f"tuned for M from {tuned[0]} to {tuned[-1]}; the loader stretches the ends over every other M")
    gaps = [f"{low}..{high}" for low, high in pairwise(tuned) if _is_gap(low, high)]
    if gaps:
        notes.append(f"gaps {', '.join(gaps)}: in the middle Paiton uses its default, the loader the nearest entry")
    if any(row.config_json and '"XCD_REMAP":1' in row.config_json for row in rows):
        notes.append("XCD_REMAP=1 is dropped: the peer's kernel does not renumber programs by compute die")
    if any(row.config_json and '"maxnreg"' in row.config_json and '"maxnreg":0' not in row.config_json for row in rows):
        notes.append("maxnreg is dropped: the files have no field for a limit on registers")
    if any(row.config_json is None for row in rows):
        notes.append("where the default won, Paiton's default config is written out; the peer's own default may differ")
    device = rows[0].cell.device
    if device in UNCERTAIN_NAMES:
        notes.append("compare the device name with the one the loader logs; --device-name sets another")
    return notes


def known_device_names(overrides: Mapping[str, str]) -> dict[str, str]:
    """PEER_DEVICE with some names replaced. Raises FormatRefused for a device we do not know or an unusable name."""
    for device, name in overrides.items():
        try:
            device_named(device)
        except UnknownDevice as error:
            raise FormatRefused(str(error)) from None
        if not name or "," in name or "/" in name or not name.isprintable():
            raise FormatRefused(f"device name {name!r}: expected text without commas and slashes")
    return {**PEER_DEVICE, **overrides}
