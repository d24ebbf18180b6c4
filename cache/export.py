"""The shipped form of a database: the answers and nothing else, in one file that is the same, byte for byte, for the
same answers, whatever their history (with one SQLite version; the logical digest is equal across versions).

Rollback journal, no side files: it opens from a read-only place, and `immutable=1` is safe because it is only ever
replaced by a rename, never rewritten in place.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from .connection import APPLICATION_ID, SCHEMA
from .errors import Unwritable, shown, translated
from .migrations import SHIPPED_TABLES
from .records import Columns, env_columns, source_columns, tuned_columns
from .rows import TunedRow

META = (("format", "paiton tuned configs"), ("lowest_reader", "1"))


def write_shipped(rows: Iterable[TunedRow], path: Path) -> int:
    """Write `rows` as a shipped database at `path`, atomically; returns their number.

    Raises RowRefused for two rows of one cell and compiler, Unwritable (also for a file at `path` that is no shipped
    database), DiskFull; a file already at `path` is then untouched.
    """
    with translated(path):
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            count = _fill(temporary, list(rows))
            os.chmod(temporary, 0o644)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return count


def _check_replaceable(path: Path) -> None:
    """A slip of the keyboard must not cost a database with all its trials, or any other file."""
    if path.is_dir():
        raise Unwritable(f"{shown(path)} is a folder; name a file in it")
    if not path.exists() or path.stat().st_size == 0:
        return
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError:
        application_id, names = 0, set()
    finally:
        connection.close()
    if application_id != APPLICATION_ID or "trial" in names:
        what = "a working database with its trials" if "trial" in names else "no database of Paiton"
        raise Unwritable(f"{shown(path)} exists and is {what}; name a new file")


def _fill(path: Path, rows: list[TunedRow]) -> int:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        # A row with its shortlist is 2.3 kB. SQLite keeps a quarter of a page of a row at its place and gives the rest
        # a page of its own: with pages of 4 KiB a file is three times as large.
        connection.execute("PRAGMA page_size=16384")
        connection.execute("PRAGMA encoding='UTF-8'")
        connection.execute("PRAGMA journal_mode=MEMORY")  # a crash here costs a temporary file
        connection.execute("BEGIN")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA}")
        for statement in SHIPPED_TABLES:
            connection.execute(statement)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", META)
        env_of, source_of = cache(env_columns), cache(source_columns)
        env_ids = _insert_shared(connection, "env", [env_of(row.env) for row in rows])
        source_ids = _insert_shared(connection, "source", [source_of(row.source) for row in rows])
        columns = [
            {
                **tuned_columns(row),
                "env": env_ids[env_of(row.env)["digest"]],
                "source": source_ids[source_of(row.source)["digest"]],
            }
            for row in rows
        ]
        for values in sorted(columns, key=lambda each: (each["key"], each["compiler"])):
            _insert(connection, "tuned", values)
        connection.execute("COMMIT")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode=DELETE")
    finally:
        connection.close()
    return len(rows)


def _insert_shared(connection: sqlite3.Connection, table: str, rows: list[Columns]) -> dict[bytes, int]:
    """Insert each distinct row once, in the order of its digest; ids by digest."""
    distinct = {row["digest"]: row for row in rows}
    ids = {digest: number for number, digest in enumerate(sorted(distinct), start=1)}
    for digest, number in ids.items():
        _insert(connection, table, {"id": number, **distinct[digest]})
    return ids


def _insert(connection: sqlite3.Connection, table: str, values: Columns) -> None:
    names = ", ".join(values)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(values))})", tuple(values.values()))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
