"""Which config a kernel gets, and why: the read path of a server. Standard library only (sqlite3 and a dict).

The answer is the first of: the exact cell; the nearest other batch bucket of the same site, within a bounded
log2 distance and inside the range that was tuned; the same on another device of the same arch; the kernel's
default. A row of another kernel version is never served: its config may not even mean the same thing. It is
counted in the reason, because it can seed a new search.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

from .connection import connect
from .errors import CorruptDatabase, DatabaseMissing, StoreError, shown, translated
from .hint import run_line
from .key import Cell, compiler_digest
from .records import ENV_COLUMNS, SOURCE_COLUMNS, row_digest, tuned_row
from .rows import Label, TunedRow

MAX_LOG2_DISTANCE = 1.0

_LOG = logging.getLogger("paiton")

_PROVENANCE = ", ".join(
    [f"env.{name} AS env_{name}" for name in ENV_COLUMNS]
    + [f"source.{name} AS source_{name}" for name in SOURCE_COLUMNS]
)
_ROW = f"SELECT tuned.*, {_PROVENANCE} FROM tuned JOIN env ON env.id = env JOIN source ON source.id = source"
# Two bound keys in turn: the compiler whose rows are preferred, and the cell.
_BEST = (
    f"{_ROW} WHERE tuned.key = ?2 ORDER BY label DESC, compiler = ?1 DESC, samples DESC, ts_ms DESC,"
    " coalesce(us_median, 1e30), coalesce(score, 1e30), row_digest DESC LIMIT 1"
)
_SITE = (
    "SELECT DISTINCT device, kernel_digest, batch FROM tuned"
    " WHERE kernel = ? AND signature = ? AND dtype = ? AND arch = ?"
)
_SITES = "SELECT DISTINCT device, kernel_digest, batch, kernel, signature, dtype, arch FROM tuned"
# Nearest first: fewest key fields that differ, then the nearest bucket, then the better label.
_NEAR = (
    f"{_ROW} WHERE kernel = :kernel ORDER BY (arch <> :arch) + (device <> :device) + (signature <> :signature)"
    " + (kernel_digest <> :kernel_digest) + (dtype <> :dtype) + (batch <> :batch),"
    " 1.0 * max(batch, :batch) / min(batch, :batch), label DESC, tuned.key, compiler LIMIT :limit"
)


class Tier(str, Enum):
    """Where an answer came from, best first."""

    EXACT = "exact"
    OTHER_BATCH = "other batch"
    OTHER_DEVICE = "other device"
    DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a kernel gets: `config_json` None means its own default. `row` is the row served, if any."""

    config_json: str | None
    tier: Tier
    reason: str
    label: Label | None = None
    row: TunedRow | None = None
    database: Path | None = None
    """The file of the row."""


@dataclass(frozen=True, kw_only=True)
class Considered:
    """A stored row beside the cell that was asked for: the key fields that differ, and what follows."""

    row: TunedRow
    differs: tuple[str, ...]
    verdict: str
    database: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An answer, and the stored rows of the kernel beside it, nearest first."""

    cell: Cell
    answer: Answer
    considered: tuple[Considered, ...]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How often each tier answered since the lookup was opened, repeated questions included."""

    exact: int
    other_batch: int
    other_device: int
    default: int

    @property
    def hits(self) -> int:
        return self.exact + self.other_batch + self.other_device

    @property
    def misses(self) -> int:
        return self.default


_Stored = tuple[str, str, int]
"""Device, kernel digest and batch of a row."""


@dataclass(frozen=True)
class _Found:
    path: Path
    row: TunedRow


@dataclass
class _Layer:
    path: Path
    connection: sqlite3.Connection
    is_shipped: bool
    sites: dict[tuple[str, ...], list[_Stored]] | None = None
    """Of a shipped file, which has no index by site: all of them, read at the first cell that has no exact row."""


class _Known:
    """An answer and how often it was given. Threads that race may lose a count, never an answer."""

    __slots__ = ("answer", "count")

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.count = 0


class Lookup:
    """Answers from the user's database over any number of shipped ones, remembered: the life of a Lookup is one
    snapshot as far as it was asked.

    At equal tier the better label wins, at equal label the earlier file. `compiler` (key.compiler_digest of the running
    environment) marks answers whose timing was taken under another compiler. Safe to share between threads.
    """

    def __init__(
        self,
        path: Path,
        layers: Iterable[tuple[Path, sqlite3.Connection, bool]],
        compiler: bytes | None,
        max_log2_distance: float,
        skipped: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.skipped = skipped
        """Why a file takes no part, one line each."""
        self._layers = [_Layer(*layer) for layer in layers]
        self._compiler = compiler
        self._max_ratio = 2.0**max_log2_distance
        self._beyond_range = False
        self._known: dict[Cell, _Known] = {}
        self._missed: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        shipped: Iterable[str | os.PathLike[str]] = (),
        compiler: bytes | None = None,
        max_log2_distance: float = MAX_LOG2_DISTANCE,
        beyond_range: bool = False,
    ) -> Lookup:
        """Open for reading; no file is changed and nothing is created beside a shipped one.

        `shipped` files (see location.shipped_databases) are opened as immutable: they may only ever be replaced by a
        rename. Beside them a file that is missing or cannot be read is left out with one line in the log of `paiton`;
        `path` alone raises StoreError as ConfigStore.open does. `beyond_range` lets the nearest bucket also serve a
        batch outside the range that was tuned, within the same distance.
        """
        user, others = Path(path), [Path(each) for each in shipped]
        layers: list[tuple[Path, sqlite3.Connection, bool]] = []
        skipped: list[str] = []
        for where in (user, *others):
            try:
                connection = connect(where, read_only=True, is_immutable=where is not user)
            except StoreError as error:
                if not others:
                    raise
                skipped.append(str(error))
                _LOG.log(logging.INFO if isinstance(error, DatabaseMissing) else logging.WARNING, "left out: %s", error)
                continue
            connection.row_factory = sqlite3.Row
            layers.append((where, connection, where is not user))
        lookup = cls(user, layers, compiler, max_log2_distance, tuple(skipped))
        lookup._beyond_range = beyond_range
        return lookup

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that answer, first the user's."""
        return tuple(layer.path for layer in self._layers)

    def close(self) -> None:
        """Close the files; answers already given stay available."""
        for layer in self._layers:
            layer.connection.close()

    def __enter__(self) -> Lookup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, cell: Cell) -> Answer:
        """The answer for `cell` and its reason. Raises StoreError when the only file is damaged or gone."""
        known = self._known.get(cell)
        if known is None:
            with self._lock:
                known = self._known.get(cell)
                if known is None:
                    known = self._known[cell] = _Known(self._search(cell))
        known.count += 1
        return known.answer

    def counts(self) -> Counts:
        """Answers given so far, by tier."""
        with self._lock:
            known = list(self._known.values())
        by_tier = {tier: sum(each.count for each in known if each.answer.tier is tier) for tier in Tier}
        return Counts(**{tier.name.lower(): count for tier, count in by_tier.items()})

    def explain(self, cell: Cell, *, limit: int = 20) -> Explanation:
        """The answer for `cell`, and the `limit` nearest rows of its kernel with the key fields that differ."""
        answer = self.find(cell)
        with self._lock:
            asked = {**asdict(cell), "limit": limit}
            near = [(layer.path, row) for layer in list(self._layers) for row in self._rows(layer, _NEAR, asked)]
        near.sort(key=lambda each: (len(cell.differs(each[1].cell)), _ratio(cell, each[1].cell), -each[1].label))
        considered = tuple(self._weigh(cell, answer, path, row) for path, row in near[:limit])
        return Explanation(cell=cell, answer=answer, considered=considered)

    def _ask(self, layer: _Layer, sql: str, values: Any) -> list[sqlite3.Row]:
        """The rows of a query. A file that breaks under way is left out from then on, unless it is the only one."""
        try:
            with translated(layer.path):
                return layer.connection.execute(sql, values).fetchall()
        except StoreError as error:
            self._drop(layer, error)
            return []

    def _rows(self, layer: _Layer, sql: str, values: Any) -> list[TunedRow]:
        try:
            return [_checked(dict(found)) for found in self._ask(layer, sql, values)]
        except CorruptDatabase as error:
            self._drop(layer, error)
            return []

    def _drop(self, layer: _Layer, error: StoreError) -> None:
        if len(self._layers) == 1:
            raise error
        self._layers.remove(layer)
        layer.connection.close()
        self.skipped = (*self.skipped, f"{shown(layer.path)}: {error}")
        _LOG.warning("%s is left out from now on: %s", shown(layer.path), error)

    def _search(self, cell: Cell) -> Answer:
        found = self._best(cell)
        if found is not None:
            return self._serve(Tier.EXACT, found, "exact")
        site = (cell.kernel, cell.signature, cell.dtype, cell.arch)
        stored = list(
            dict.fromkeys(
                replace(cell, device=device, kernel_digest=digest, batch=batch)
                for layer in list(self._layers)
                for device, digest, batch in self._stored(layer, site)
            )
        )
        same_kernel = [other for other in stored if other.kernel_digest == cell.kernel_digest]
        here = [other for other in same_kernel if other.device == cell.device]
        found = self._nearest(cell, here)
        if found is not None:
            return self._serve(Tier.OTHER_BATCH, found, f"batch {found.row.cell.batch} serves batch {cell.batch}")
        found = self._nearest(cell, [other for other in same_kernel if other.device != cell.device])
        if found is not None:
            row = found.row
            bucket = "" if row.cell.batch == cell.batch else f", batch {row.cell.batch} serves batch {cell.batch}"
            return self._serve(Tier.OTHER_DEVICE, found, f"tuned on {row.cell.device}, not {cell.device}{bucket}")
        reason = self._miss(cell, stored, same_kernel)
        self._report_miss(cell, reason)
        return Answer(config_json=None, tier=Tier.DEFAULT, reason=reason)

    def _stored(self, layer: _Layer, site: tuple[str, ...]) -> list[_Stored]:
        if not layer.is_shipped:
            return [tuple(found) for found in self._ask(layer, _SITE, site)]
        if layer.sites is None:
            layer.sites = defaultdict(list)
            for device, digest, batch, *key in self._ask(layer, _SITES, ()):
                layer.sites[tuple(key)].append((device, digest, batch))
        return layer.sites.get(site, [])

    def _report_miss(self, cell: Cell, reason: str) -> None:
        """One line in the log for each kernel and problem, with the command that fills the gap."""
        site = (cell.kernel, cell.signature, cell.dtype, cell.device)
        if site not in self._missed:
            self._missed.add(site)
            _LOG.warning("%s: %s; tune it with: %s", cell, reason, run_line(cell))

    def _best(self, cell: Cell) -> _Found | None:
        """Best row over all files; of equal labels the earlier file's."""
        best: _Found | None = None
        for layer in list(self._layers):
            for row in self._rows(layer, _BEST, (self._compiler or b"", cell.key)):
                if best is None or row.label > best.row.label:
                    best = _Found(layer.path, row)
        return best

    def _nearest(self, cell: Cell, stored: list[Cell]) -> _Found | None:
        """Best row among the cells whose bucket is nearest, if near enough and each device's range covers
        it."""
        covered = [
            other
            for other in stored
            if (self._beyond_range or _covers((s.batch for s in stored if s.device == other.device), cell.batch))
            and _ratio(other, cell) <= self._max_ratio
        ]
        if not covered:
            return None
        least = min(_ratio(other, cell) for other in covered)
        near = [each for other in covered if _ratio(other, cell) == least and (each := self._best(other)) is not None]
        # At equal distance: the better label, then the larger bucket (a bucket is an upper bound), then by
        # name.
        return min(near, key=lambda each: (-each.row.label, -each.row.cell.batch, each.row.cell.device), default=None)

    def _serve(self, tier: Tier, found: _Found, why: str) -> Answer:
        row = found.row
        reason = f"{why}; {row.label.name.lower()}"
        if row.config_json is None:
            reason += "; the default is best"
        if self._compiler is not None and compiler_digest(row.env) != self._compiler:
            reason += f"; under another compiler (Triton {row.env.triton or 'unknown'}), retune to confirm"
        if found.path != self.path:
            reason += f"; from {shown(found.path.name)}"
        return Answer(
            config_json=row.config_json, tier=tier, reason=reason, label=row.label, row=row, database=found.path
        )

    def _miss(self, cell: Cell, stored: list[Cell], same_kernel: list[Cell]) -> str:
        here = sorted({other.batch for other in same_kernel if other.device == cell.device})
        if here:
            why = f"batch {cell.batch} is too far from the tuned buckets {_listed(here)}"
        elif same_kernel:
            devices = ", ".join(sorted({other.device for other in same_kernel}))
            why = f"no bucket near batch {cell.batch}, only on other devices ({devices})"
        elif stored:
            why = f"{len(stored)} row(s) of another kernel version, never served; they can seed a new search"
        else:
            why = f"no row for {cell}"
        return f"default: {why}"

    def _weigh(self, cell: Cell, answer: Answer, path: Path, row: TunedRow) -> Considered:
        differs = cell.differs(row.cell)
        if answer.row == row and answer.database == path:
            verdict = "served"
        elif "kernel_digest" in differs:
            verdict = "another kernel version: a seed, never served"
        elif not differs:
            verdict = "same cell, weaker evidence"
        elif set(differs) <= {"batch", "device"}:
            verdict = "usable, but a nearer row was served" if answer.row else "too far, or outside the tuned range"
        else:
            verdict = "another problem"
        return Considered(row=row, differs=differs, verdict=verdict, database=path)


def _checked(values: dict[str, Any]) -> TunedRow:
    """The row, if its digests are those of its content: a flipped bit in a file must not become a config."""
    row = tuned_row(values)
    if values["key"] != row.cell.key or values["row_digest"] != row_digest(row):
        raise CorruptDatabase(f"row for {row.cell} of table tuned is damaged: its digests do not match")
    return row


def _ratio(a: Cell, b: Cell) -> float:
    """Distance of two buckets as a factor of at least 1; its log2 is what is bounded."""
    return max(a.batch, b.batch) / min(a.batch, b.batch)


def _covers(batches: Iterable[int], batch: int) -> bool:
    known = list(batches)
    return min(known) <= batch <= max(known)


def _listed(batches: list[int]) -> str:
    return ", ".join(map(str, batches[:16])) + (" ..." if len(batches) > 16 else "")
