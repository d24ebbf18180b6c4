"""Where the user's database lives. The environment is an argument: nothing is read at import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .errors import Unwritable


def database_path(explicit: str | Path | None, environ: Mapping[str, str]) -> Path:
    """Path of the user's database: `explicit` (--db), else PAITON_DB, else the XDG data folder.

    A leading `~` becomes HOME. Nothing is created. Raises Unwritable when there is no place to derive a path
    from.
    """
    named = str(explicit) if explicit is not None else environ.get("PAITON_DB", "")
    if explicit is not None and not named.strip():
        raise Unwritable(f"database path {named!r} is empty; name a file such as paiton.db")
    if named.strip():
        return _expanded(named, environ)
    data_home = environ.get("XDG_DATA_HOME", "")
    # The XDG base directory specification asks to ignore a relative path here.
    if data_home and Path(data_home).is_absolute():
        return Path(data_home) / "paiton" / "paiton.db"
    if environ.get("HOME"):
        return Path(environ["HOME"]) / ".local" / "share" / "paiton" / "paiton.db"
    raise Unwritable("no place for the database: HOME is not set; name a file with --db or PAITON_DB")


def _expanded(named: str, environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME", "")
    if home and (named == "~" or named.startswith("~/")):
        return Path(home) / named[2:]
    return Path(named)
