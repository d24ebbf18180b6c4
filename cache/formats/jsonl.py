"""Answers as lines of JSON: sorted, one row a line, so that a change is a readable diff in a pull request."""

from __future__ import annotations

from collections.abc import Iterable

from ..digest import row_of_line
from ..errors import RowRefused
from ..row_text import line_of
from ..rows import TunedRow

MAX_ROWS = 1_000_000


def dumps(rows: Iterable[TunedRow]) -> str:
    """The rows as sorted lines, each ended by a newline: equal text for equal answers."""
    return "".join(line + "\n" for line in sorted(map(line_of, rows)))


def loads(text: str) -> list[TunedRow]:
    """The rows of `dumps`; empty lines are skipped. Raises RowRefused with the number of the faulty line."""
    rows: list[TunedRow] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if len(rows) == MAX_ROWS:
            raise RowRefused(f"line {number}: at most {MAX_ROWS} rows are accepted")
        try:
            rows.append(row_of_line(line))
        except RowRefused as error:
            raise RowRefused(f"line {number}: {error}") from None
    return rows
