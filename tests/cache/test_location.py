"""Where the user's database lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from paiton.cache.errors import Unwritable
from paiton.cache.location import database_path

HOME = {"HOME": "/home/u"}


@pytest.mark.parametrize(
    ("explicit", "environ", "expected"),
    [
        ("x.db", {"PAITON_DB": "/other.db", **HOME}, "x.db"),
        (Path("/a/x.db"), {}, "/a/x.db"),
        ("~/x.db", HOME, "/home/u/x.db"),
        ("~", HOME, "/home/u"),
        ("~x.db", HOME, "~x.db"),
        (None, {"PAITON_DB": "/other.db", "XDG_DATA_HOME": "/data", **HOME}, "/other.db"),
        (None, {"PAITON_DB": "~/other.db", **HOME}, "/home/u/other.db"),
        (None, {"PAITON_DB": "  ", **HOME}, "/home/u/.local/share/paiton/paiton.db"),
        (None, {"XDG_DATA_HOME": "/data", **HOME}, "/data/paiton/paiton.db"),
        (None, {"XDG_DATA_HOME": "relative", **HOME}, "/home/u/.local/share/paiton/paiton.db"),
        (None, HOME, "/home/u/.local/share/paiton/paiton.db"),
    ],
)
def test_first_place_named_wins(explicit: str | Path | None, environ: dict[str, str], expected: str) -> None:
    assert database_path(explicit, environ) == Path(expected)


def test_no_place() -> None:
    with pytest.raises(Unwritable, match="HOME is not set; name a file with --db or PAITON_DB"):
        database_path(None, {})
    with pytest.raises(Unwritable, match="database path '' is empty"):
        database_path("", HOME)
