"""Several sets of answers become one: for each cell and compiler the better evidence stays.

The order is the total order of ConfigStore.put_tuned, so the result depends neither on the order of the sets nor
on how often one is merged. What was given up is reported, never lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .key import compiler_digest
from .records import row_digest
from .rows import TunedRow
from .store import ConfigStore

Identity = tuple[bytes, bytes]
"""What two rows must share to be rivals: the key of the cell, and the compiler's digest."""
Evidence = tuple[int, int, int, float, float, bytes]


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two rows for the same cell and compiler that advise different configs."""

    kept: TunedRow
    dropped: TunedRow


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge did with the rows it was given, and where two rows disagreed about the config."""

    added: int
    replaced: int
    kept: int
    """Incoming rows with weaker evidence than the row already there."""
    same: int
    conflicts: tuple[Conflict, ...]


def identity(row: TunedRow) -> Identity:
    """The primary key of a row."""
    return row.cell.key, compiler_digest(row.env)


def evidence(row: TunedRow) -> Evidence:
    """The total order of ConfigStore.put_tuned for a row in memory: the larger tuple wins."""
    slow = 1e30
    return (
        int(row.label),
        row.samples,
        row.ts_ms,
        -(slow if row.us_median is None else row.us_median),
        -(slow if row.score is None else row.score),
        row_digest(row),
    )


def merged(*groups: Iterable[TunedRow]) -> list[TunedRow]:
    """The best row of each cell and compiler over all groups, by identity."""
    best: dict[Identity, TunedRow] = {}
    for group in groups:
        for row in group:
            rival = best.get(identity(row))
            if rival is None or evidence(row) > evidence(rival):
                best[identity(row)] = row
    return [best[key] for key in sorted(best)]


def merge_into(store: ConfigStore, rows: Iterable[TunedRow]) -> MergeReport:
    """Put `rows` into the database in one transaction, keeping the better evidence. Raises StoreError."""
    before = {identity(row): row for row in store.tuned()}
    after = dict(before)
    conflicts: list[Conflict] = []
    counts = {"added": 0, "replaced": 0, "kept": 0, "same": 0}
    incoming = list(rows)
    for row in incoming:
        rival = after.get(identity(row))
        outcome = _outcome(row, rival)
        counts[outcome] += 1
        if rival is not None and rival.config_json != row.config_json:
            winner, loser = (row, rival) if outcome == "replaced" else (rival, row)
            conflicts.append(Conflict(kept=winner, dropped=loser))
        if outcome in ("added", "replaced"):
            after[identity(row)] = row
    store.put_all_tuned(row for key, row in after.items() if before.get(key) is not row)
    return MergeReport(**counts, conflicts=tuple(conflicts))


def _outcome(row: TunedRow, rival: TunedRow | None) -> str:
    if rival is None:
        return "added"
    mine, theirs = evidence(row), evidence(rival)
    return "replaced" if mine > theirs else "kept" if mine < theirs else "same"
