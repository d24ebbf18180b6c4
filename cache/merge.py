"""Several sets of answers become one: for each cell and compiler the better evidence stays.

The order is the total order of ConfigStore.put_tuned, so the result depends neither on the order of the sets nor
on how often one is merged. What was given up is reported, never lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .rows import TunedRow
from .store import ConfigStore, Evidence, Identity


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
    return row.cell.key, row.env.compiler


def evidence(row: TunedRow) -> Evidence:
    """The total order of ConfigStore.put_tuned for a row in memory: the larger tuple wins."""
    slow = 1e30
    return (
        int(row.label),
        row.samples,
        row.ts_ms,
        -(slow if row.us_median is None else row.us_median),
        -(slow if row.score is None else row.score),
        row.digest,
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
    incoming = list(rows)
    # Of the rows that are there only what decides: reading them whole is most of the work, and few are in dispute.
    standing = store.evidence_at(row.cell.key for row in incoming)
    accepted: dict[Identity, TunedRow] = {}
    disputes: list[tuple[TunedRow, TunedRow | None, bool]] = []
    counts = {"added": 0, "replaced": 0, "kept": 0, "same": 0}
    for row in incoming:
        key, mine = identity(row), evidence(row)
        theirs, config_json = standing.get(key, (None, None))
        outcome = _outcome(mine, theirs)
        counts[outcome] += 1
        if theirs is not None and config_json != row.config_json:
            disputes.append((row, accepted.get(key), outcome == "replaced"))
        if outcome in ("added", "replaced"):
            accepted[key], standing[key] = row, (mine, row.config_json)
    conflicts = _conflicts(store, disputes)
    store.put_all_tuned(accepted.values())
    return MergeReport(**counts, conflicts=conflicts)


def _outcome(mine: Evidence, theirs: Evidence | None) -> str:
    if theirs is None:
        return "added"
    return "replaced" if mine > theirs else "kept" if mine < theirs else "same"


def _conflicts(store: ConfigStore, disputes: list[tuple[TunedRow, TunedRow | None, bool]]) -> tuple[Conflict, ...]:
    """Each dispute is a row, its rival (None: the row in the database), and whether the row won."""
    stored = {identity(row): row for row in store.tuned_at(row.cell.key for row, rival, _ in disputes if rival is None)}
    pairs = ((row, rival or stored[identity(row)], has_won) for row, rival, has_won in disputes)
    return tuple(
        Conflict(kept=row, dropped=rival) if has_won else Conflict(kept=rival, dropped=row)
        for row, rival, has_won in pairs
    )
