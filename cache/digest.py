"""An answer from its line of text, and one digest per database: equal wherever the answers are equal.

Ids, page layout and the order of writing differ between two files with the same answers, and SQLite versions
write different bytes; a line spells everything out and the digest sorts the lines. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from .checks import MAX_JSON_CHARS, canonical
from .errors import RowRefused
from .key import Cell, Environment
from .row_text import line_of
from .rows import Candidate, Label, Source, TunedRow

_NUMBERS = ("us_median", "us_p10", "us_p90", "samples", "us_default", "score", "score_default")
_PLAIN = (*_NUMBERS, "model_version", "compute_units", "ts_ms")
_NAMES = frozenset({*_PLAIN, "cell", "config", "label", "shortlist", "facts", "env", "source"})


def row_of_line(line: str) -> TunedRow:
    """The row that `line_of` wrote. Raises RowRefused for anything else: unknown, missing or mistyped parts."""
    if len(line) > MAX_JSON_CHARS:
        raise RowRefused(f"line of {len(line)} characters: at most {MAX_JSON_CHARS} are accepted")
    try:
        values = json.loads(line, object_pairs_hook=_unique)
    except RowRefused:
        raise
    except (ValueError, RecursionError):
        raise RowRefused(f"line {line[:80]!r} is not JSON") from None
    if not isinstance(values, dict) or set(values) != _NAMES:
        differing = sorted(_NAMES.symmetric_difference(values)) if isinstance(values, dict) else []
        raise RowRefused(f"line {line[:80]!r} is no answer of ours; missing or unknown: {', '.join(differing[:5])}")
    try:
        return TunedRow(
            **{name: values[name] for name in _PLAIN},
            cell=_value_of(Cell, values["cell"]),
            label=Label[_word(values["label"]).upper()],
            env=_value_of(Environment, values["env"]),
            source=_value_of(Source, values["source"]),
            config_json=_text(values["config"]),
            facts_json=_text(values["facts"]),
            shortlist=tuple(Candidate(config_json=canonical(c), score=s) for c, s in values["shortlist"]),
        )
    except RowRefused:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise RowRefused(f"line {line[:80]!r} is no answer of ours: {error}") from None


def logical_digest(rows: Iterable[TunedRow]) -> str:
    """sha256, in hex, over the sorted lines of `rows`: equal across machines, histories and SQLite versions."""
    digest = hashlib.sha256()
    for line in sorted(map(line_of, rows)):
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()


def _text(value: object) -> str | None:
    return None if value is None else canonical(value)


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no word")
    return value


def _value_of(kind: Any, values: Any) -> Any:
    if not isinstance(values, dict) or set(values) != {f.name for f in fields(kind)}:
        raise TypeError(f"{kind.__name__.lower()} has other fields than ours")
    return kind(**values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name comes twice: readers differ in which of the two they believe."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise RowRefused("a JSON object names a field twice")
    return values
