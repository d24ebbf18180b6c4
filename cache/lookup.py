"""Which config a kernel gets, and why: the read path of a server. Standard library only (sqlite3 and a dict).

The answer is the first of: the exact cell; the nearest other batch bucket of the same site, within a bounded
log2 distance and inside the range that was tuned; the same on another device of the same arch; the kernel's
default. A row of another kernel version is never served: its config may not even mean the same thing. It is
counted in the reason, because it can seed a new search.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType

from .connection import connect
from .errors import translated
from .key import Cell, compiler_digest
from .records import ENV_COLUMNS, SOURCE_COLUMNS, tuned_row
from .rows import Label, TunedRow

MAX_LOG2_DISTANCE = 1.0

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


@dataclass(frozen=True, kw_only=True)
class Considered:
    """A stored row beside the cell that was asked for: the key fields that differ, and what follows."""

    row: TunedRow
    differs: tuple[str, ...]
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An answer, and the stored rows of the kernel beside it, nearest first."""

    cell: Cell
    answer: Answer
    considered: tuple[Considered, ...]


class Lookup:
    """Answers from one database, remembered: the life of a Lookup is one snapshot as far as it was asked.

    `compiler` (key.compiler_digest of the running environment) marks answers whose timing was taken under
    another compiler. Safe to share between threads.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, compiler: bytes | None, max_log2_distance: float
    ) -> None:
        self.path = path
        self._connection = connection
        self._compiler = compiler
        self._max_ratio = 2.0**max_log2_distance
        self._known: dict[Cell, Answer] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        compiler: bytes | None = None,
        max_log2_distance: float = MAX_LOG2_DISTANCE,
    ) -> Lookup:
        """Open for reading; the file is not changed. Raises StoreError as ConfigStore.open does."""
        where = Path(path)
        connection = connect(where, read_only=True)
        connection.row_factory = sqlite3.Row
        return cls(where, connection, compiler, max_log2_distance)

    def close(self) -> None:
        """Close the file; answers already given stay available."""
        self._connection.close()

    def __enter__(self) -> Lookup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, cell: Cell) -> Answer:
        """The answer for `cell` and its reason. Raises StoreError when the file is damaged or gone."""
        answer = self._known.get(cell)
        if answer is None:
            with self._lock, translated(self.path):
                answer = self._search(cell)
                self._known[cell] = answer
        return answer

    def explain(self, cell: Cell, *, limit: int = 20) -> Explanation:
        """The answer for `cell`, and the `limit` nearest rows of its kernel with the key fields that differ."""
        answer = self.find(cell)
        with self._lock, translated(self.path):
            found = self._connection.execute(_NEAR, {**asdict(cell), "limit": limit}).fetchall()
        rows = [tuned_row(dict(values)) for values in found]
        return Explanation(cell=cell, answer=answer, considered=tuple(self._weigh(cell, answer, row) for row in rows))

    def _search(self, cell: Cell) -> Answer:
        row = self._best(cell)
        if row is not None:
            return self._serve(Tier.EXACT, row, "exact")
        site = (cell.kernel, cell.signature, cell.dtype, cell.arch)
        stored = [
            replace(cell, device=device, kernel_digest=digest, batch=batch)
            for device, digest, batch in self._connection.execute(_SITE, site)
        ]
        same_kernel = [other for other in stored if other.kernel_digest == cell.kernel_digest]
        here = [other for other in same_kernel if other.device == cell.device]
        row = self._nearest(cell, here)
        if row is not None:
            return self._serve(Tier.OTHER_BATCH, row, f"batch {row.cell.batch} serves batch {cell.batch}")
        row = self._nearest(cell, [other for other in same_kernel if other.device != cell.device])
        if row is not None:
            bucket = "" if row.cell.batch == cell.batch else f", batch {row.cell.batch} serves batch {cell.batch}"
            return self._serve(Tier.OTHER_DEVICE, row, f"tuned on {row.cell.device}, not {cell.device}{bucket}")
        return Answer(config_json=None, tier=Tier.DEFAULT, reason=self._miss(cell, stored, same_kernel))

    def _best(self, cell: Cell) -> TunedRow | None:
        values = self._connection.execute(_BEST, (self._compiler or b"", cell.key)).fetchone()
        return None if values is None else tuned_row(dict(values))

    def _nearest(self, cell: Cell, stored: list[Cell]) -> TunedRow | None:
        """Best row among the cells whose bucket is nearest, if near enough and each device's range covers
        it."""
        covered = [
            other
            for other in stored
            if _covers((s.batch for s in stored if s.device == other.device), cell.batch)
            and _ratio(other, cell) <= self._max_ratio
        ]
        if not covered:
            return None
        least = min(_ratio(other, cell) for other in covered)
        rows = [row for other in covered if _ratio(other, cell) == least and (row := self._best(other)) is not None]
        # At equal distance: the better label, then the larger bucket (a bucket is an upper bound), then by
        # name.
        return min(rows, key=lambda row: (-row.label, -row.cell.batch, row.cell.device), default=None)

    def _serve(self, tier: Tier, row: TunedRow, why: str) -> Answer:
        reason = f"{why}; {row.label.name.lower()}"
        if row.config_json is None:
            reason += "; the default is best"
        if self._compiler is not None and compiler_digest(row.env) != self._compiler:
            reason += f"; under another compiler (Triton {row.env.triton or 'unknown'}), retune to confirm"
        return Answer(config_json=row.config_json, tier=tier, reason=reason, label=row.label, row=row)

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

    def _weigh(self, cell: Cell, answer: Answer, row: TunedRow) -> Considered:
        differs = cell.differs(row.cell)
        if answer.row == row:
            verdict = "served"
        elif "kernel_digest" in differs:
            verdict = "another kernel version: a seed, never served"
        elif not differs:
            verdict = "same cell, weaker evidence"
        elif set(differs) <= {"batch", "device"}:
            verdict = "usable, but a nearer row was served" if answer.row else "too far, or outside the tuned range"
        else:
            verdict = "another problem"
        return Considered(row=row, differs=differs, verdict=verdict)


def _ratio(a: Cell, b: Cell) -> float:
    """Distance of two buckets as a factor of at least 1; its log2 is what is bounded."""
    return max(a.batch, b.batch) / min(a.batch, b.batch)


def _covers(batches: Iterable[int], batch: int) -> bool:
    known = list(batches)
    return min(known) <= batch <= max(known)


def _listed(batches: list[int]) -> str:
    return ", ".join(map(str, batches[:16])) + (" ..." if len(batches) > 16 else "")
