"""What a lookup says: an answer with its tier and reason, and the rows beside it. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .key import Cell
from .rows import Label, TunedRow


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
    is_other_compiler: bool = False
    """The row was found under another Triton or toolkit than the one that runs here."""


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


def weigh(cell: Cell, answer: Answer, database: Path, row: TunedRow) -> Considered:
    """What became of `row` when `cell` was asked for and `answer` was given."""
    differs = cell.differs(row.cell)
    if answer.row == row and answer.database == database:
        verdict = "served"
    elif "kernel_digest" in differs:
        verdict = "another kernel version: a seed, never served"
    elif not differs:
        verdict = "same cell, weaker evidence"
    elif set(differs) <= {"batch", "device"}:
        verdict = "usable, but a nearer row was served" if answer.row else "too far, or outside the tuned range"
    else:
        verdict = "another problem"
    return Considered(row=row, differs=differs, verdict=verdict, database=database)
