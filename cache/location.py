"""Where the user's database lives, and the shipped ones under it. The environment is an argument: nothing is read at
import."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from .errors import Unwritable

ENTRY_POINTS = "paiton.databases"
SHIPPED = Path(__file__).parent / "shipped"
"""Databases of our own wheel."""


def database_path(explicit: str | Path | None, environ: Mapping[str, str]) -> Path:
    """Path of the user's database: `explicit` (--db), else the first entry of PAITON_DB, else the XDG data folder.

    PAITON_DB is a list as PATH is; an empty first entry stands for the XDG data folder. A leading `~` becomes HOME.
    Nothing is created. Raises Unwritable when there is no place to derive a path from.
    """
    named = str(explicit) if explicit is not None else _listed(environ)[0]
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


def shipped_databases(
    environ: Mapping[str, str], *, installed: Iterable[EntryPoint] | None = None, own: Path = SHIPPED
) -> tuple[Path, ...]:
    """The databases under the user's, best first: the further entries of PAITON_DB, those of installed packages, ours.

    Ours are left out where PAITON_SHIPPED is 0.
    A package ships databases by an entry point of the group `paiton.databases` whose value is the package that holds
    the `.db` files; it is found but not imported. `installed` replaces the entry points of this environment.
    """
    named = [_expanded(text, environ) for text in _listed(environ)[1:] if text.strip()]
    points = entry_points(group=ENTRY_POINTS) if installed is None else installed
    packaged = [file for point in sorted(points, key=lambda each: each.name) for file in _databases_of(point.value)]
    ours = [] if environ.get("PAITON_SHIPPED") == "0" else sorted(own.glob("*.db"))
    return tuple(dict.fromkeys((*named, *packaged, *ours)))


def _databases_of(package: str) -> list[Path]:
    """The `.db` files of an installed package. Importing its parents would run their code, so only the top is looked
    up and the rest is a path."""
    top, *inner = package.split(":")[0].strip().split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        found = None
    folders = found.submodule_search_locations or () if found is not None else ()
    return sorted(file for folder in folders for file in Path(folder, *inner).glob("*.db"))


def _listed(environ: Mapping[str, str]) -> list[str]:
    return environ.get("PAITON_DB", "").split(os.pathsep)


def _expanded(named: str, environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME", "")
    if home and (named == "~" or named.startswith("~/")):
        return Path(home) / named[2:]
    return Path(named)
