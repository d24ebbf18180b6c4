"""What may enter the database: numbers that are numbers, text that is text, JSON that is canonical."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache

from .errors import RowRefused

# Room for every real value, too little for a compiler's whole log or a planted giant.
MAX_JSON_CHARS = 1 << 20
MAX_ERROR_CHARS = 4000

_ENCODE = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
# Configs repeat: a database has many rows and few distinct ones. Longer text (facts) seldom comes twice.
_REMEMBERED = 1 << 14
_REMEMBERED_CHARS = 256


def canonical(value: object) -> str:
    """Canonical JSON of plain data: sorted names, no spaces, ASCII. Raises RowRefused on NaN and infinity."""
    try:
        return _ENCODE(value)
    except ValueError as error:
        raise RowRefused(f"JSON value refused: {error}") from None


def canonical_object(name: str, text: str) -> str:
    """`text`, a JSON object, in canonical form. Raises RowRefused when it is none."""
    if not isinstance(text, str) or len(text) > MAX_JSON_CHARS:
        raise RowRefused(f"{name}: expected JSON text of at most {MAX_JSON_CHARS} characters")
    found = _known_object(text) if len(text) <= _REMEMBERED_CHARS else _object(text)
    if found is None:
        raise RowRefused(f"{name} {text[:80]!r}: expected a JSON object")
    return found


def _object(text: str) -> str | None:
    """`text` in canonical form, None when it is no JSON object. Raises RowRefused on NaN and infinity."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, Mapping):
        return None
    made = canonical(value)
    return text if made == text else made


_known_object = lru_cache(maxsize=_REMEMBERED)(_object)


def positive(name: str, value: float | None) -> float | None:
    """`value` as a float, or None. Refuses all but finite positive numbers: SQLite would turn NaN into NULL
    without a word, and would store a numpy scalar as raw bytes, hence the test by type."""
    if value is None or (type(value) is float and 0 < value < math.inf):
        return value
    number = _number(value)
    if not number > 0:
        raise RowRefused(f"{name}={value!r}: expected a finite positive number")
    return number


def finite(name: str, value: float) -> float:
    """`value` as a float, refused unless it is a finite number."""
    number = _number(value)
    if math.isnan(number):
        raise RowRefused(f"{name}={value!r}: expected a finite number")
    return number


def _number(value: object) -> float:
    """`value` as a float, NaN when it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float
        return math.nan
    return number if math.isfinite(number) else math.nan


def check_text(name: str, value: str) -> None:
    """Refuse what is no text, or text that UTF-8 cannot hold."""
    if not isinstance(value, str) or not is_utf8(value):
        raise RowRefused(f"{name}={value!r}: expected text")


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold `text`: it cannot hold half a surrogate pair."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def check_count(name: str, value: int | None) -> None:
    """Refuse what is neither None nor an int from 0 to SQLite's largest."""
    if value is not None and (type(value) is not int or not 0 <= value < 2**63):
        raise RowRefused(f"{name}={value!r}: expected an int, 0 or more")


def storable(text: str) -> str:
    """Free text (a compiler's message) cut to a bounded length and free of what UTF-8 cannot hold."""
    if len(text) > MAX_ERROR_CHARS:
        text = text[: MAX_ERROR_CHARS // 2] + "\n...\n" + text[-MAX_ERROR_CHARS // 2 + 5 :]
    return text.encode("utf-8", "replace").decode()
