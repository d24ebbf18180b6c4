"""What tells two databases apart: row by row, and by speed where both have comparable evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .key import Cell
from .merge import evidence, identity
from .rows import Label, TunedRow


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The rows of one cell in the first and the second database."""

    first: TunedRow
    second: TunedRow

    @property
    def speedup(self) -> float | None:
        """Time of the first over time of the second, None where the two cannot be compared.

        Microseconds compare with microseconds; scores only within one version of the static model. Times taken
        on different machines carry their noise and clocks with them.
        """
        first, second = self.first, self.second
        if first.label is second.label is Label.MEASURED and first.us_median and second.us_median:
            return first.us_median / second.us_median
        same_model = first.model_version == second.model_version and first.label is second.label is Label.ESTIMATED
        if same_model and first.score and second.score:
            return first.score / second.score
        return None


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Two databases side by side. Rows match by cell and compiler; `speeds` by cell, the best row of each side."""

    only_first: tuple[TunedRow, ...]
    only_second: tuple[TunedRow, ...]
    config_differs: tuple[Pair, ...]
    evidence_differs: tuple[Pair, ...]
    """The same config with another label, time, environment or source."""
    equal: int
    speeds: tuple[Pair, ...]
    """Cells with comparable evidence on both sides, by cell."""

    @property
    def is_equal(self) -> bool:
        return not (self.only_first or self.only_second or self.config_differs or self.evidence_differs)

    def mean_speedup(self, label: Label) -> float | None:
        """Geometric mean of the speedups of the pairs with this label, None without any."""
        logs = [math.log(pair.speedup) for pair in self.speeds if pair.first.label is label and pair.speedup]
        return math.exp(sum(logs) / len(logs)) if logs else None


def diff(first: Iterable[TunedRow], second: Iterable[TunedRow]) -> Diff:
    """Compare two sets of answers, each with at most one row per cell and compiler."""
    left, right = ({identity(row): row for row in rows} for rows in (first, second))
    shared = [Pair(first=left[key], second=right[key]) for key in sorted(left.keys() & right.keys())]
    best_left, best_right = _best_by_cell(left.values()), _best_by_cell(right.values())
    cells = sorted(best_left.keys() & best_right.keys(), key=lambda cell: cell.key)
    both = [Pair(first=best_left[cell], second=best_right[cell]) for cell in cells]
    changed = [pair for pair in shared if pair.first != pair.second]
    return Diff(
        only_first=tuple(left[key] for key in sorted(left.keys() - right.keys())),
        only_second=tuple(right[key] for key in sorted(right.keys() - left.keys())),
        config_differs=tuple(pair for pair in changed if pair.first.config_json != pair.second.config_json),
        evidence_differs=tuple(pair for pair in changed if pair.first.config_json == pair.second.config_json),
        equal=len(shared) - len(changed),
        speeds=tuple(pair for pair in both if pair.speedup is not None),
    )


def _best_by_cell(rows: Iterable[TunedRow]) -> dict[Cell, TunedRow]:
    best: dict[Cell, TunedRow] = {}
    for row in rows:
        rival = best.get(row.cell)
        if rival is None or evidence(row) > evidence(rival):
            best[row.cell] = row
    return best
