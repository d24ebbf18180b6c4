"""Reading a file that somebody else made: nothing in it runs, nothing in it is believed.

First the size and the header, before SQLite sees the file; then an own read-only connection that never meets a
writable one (no ATTACH), with untrusted schema, bounded values and a time budget; then the schema, compared by its
text, which finds planted views and triggers; then every row, with its keys and digests computed again and its
configs looked up in the declared space of its kernel. One fault refuses the whole file, with the table, the row and
the reason.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .connection import APPLICATION_ID, SCHEMA
from .declared import config_faults
from .errors import CorruptDatabase, RowRefused, StoreError, shown
from .key import Environment
from .migrations import SHIPPED_TABLES, statements
from .records import answer, environment_of, source_columns, source_of, tuned_columns
from .rows import OURS, Label, Source, TunedRow

_MAGIC = b"SQLite format 3\x00"
_DAY_MS = 86_400_000
_STEPS_BETWEEN_CLOCKS = 10_000  # of SQLite's virtual machine, a fraction of a millisecond
_ROWS = "SELECT * FROM tuned ORDER BY key, compiler"

T = TypeVar("T")


class Refused(StoreError):
    """A file that must not be used, and why."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may cost: bytes of the file and of one value, rows, and seconds to read and check it."""

    file_bytes: int = 256 << 20
    value_bytes: int = 1 << 20
    rows: int = 1_000_000
    seconds: float = 120.0


LIMITS = Limits()


def read_untrusted(
    path: Path,
    *,
    limits: Limits = LIMITS,
    are_configs_checked: bool = True,
    clock: Callable[[], float] = time.time,
) -> list[TunedRow]:
    """All answers of the database at `path`, as they stand there, labels included.

    `are_configs_checked` False leaves out the search spaces, for files of one's own that older kernels made. The file
    is not changed and nothing is created beside it. Raises Refused.
    """
    deadline = time.monotonic() + limits.seconds
    _check_file(path, limits)
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _STEPS_BETWEEN_CLOCKS)
        if sys.version_info >= (3, 11):  # before, only the size of the file bounds a value
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.value_bytes)
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
            connection.execute(f"PRAGMA {pragma}")
        _check_schema(connection, path)
        (fault,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if fault != "ok":
            raise Refused(f"{shown(path)} is damaged: {_one_line(fault)}")
        rows = _read_rows(connection, path, limits, deadline)
    except (sqlite3.Error, UnicodeError, RecursionError) as error:
        if isinstance(error, sqlite3.OperationalError) and "interrupted" in str(error):
            raise Refused(f"{shown(path)}: not read within {limits.seconds:g} s") from None
        raise Refused(f"{shown(path)} is damaged: {_one_line(error)}") from None
    finally:
        connection.close()
    if are_configs_checked:
        check_rows(rows, where=shown(path), clock=clock, deadline=deadline)
    return rows


def check_rows(
    rows: Iterable[TunedRow],
    *,
    where: str,
    clock: Callable[[], float] = time.time,
    deadline: float | None = None,
) -> None:
    """Refuse rows from the future and configs outside the declared space of their kernel and device.

    `where` names the file in the message, `deadline` is a time of time.monotonic(). Raises Refused.
    """
    latest = int(clock() * 1000) + _DAY_MS
    known: dict[tuple[object, ...], str | None] = {}
    for row in rows:
        if deadline is not None and time.monotonic() > deadline:
            raise Refused(f"{where}: not checked within the time limit")
        if row.ts_ms > latest:
            raise Refused(f"{where}: row for {row.cell}: its time lies in the future ({row.ts_ms} ms)")
        configs = (row.config_json, *(each.config_json for each in row.shortlist))
        for config in dict.fromkeys(configs):
            question = (replace(row.cell, kernel_digest="-"), config)
            if question not in known:
                known[question] = config_faults(row, config)
            fault = known[question]
            if fault is not None:
                raise Refused(f"{where}: row for {row.cell}: {fault}")


def as_prior(rows: Iterable[TunedRow]) -> list[TunedRow]:
    """The rows as somebody else's word: measured and estimated lose their label."""
    return [replace(row, label=Label.PRIOR) for row in rows]


def attributed(rows: Iterable[TunedRow], *, origin: str, signer: str = "") -> list[TunedRow]:
    """The rows with their provenance: what called itself ours came from `origin`; `signer` vouches for all."""
    return [
        replace(
            row,
            source=Source(name=origin, version=row.env.paiton, licence=row.source.licence, signer=signer)
            if replace(row.source, licence="") == OURS
            else replace(row.source, signer=signer or row.source.signer),
        )
        for row in rows
    ]


def _check_file(path: Path, limits: Limits) -> None:
    try:
        with open(path, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            header = opened.read(100)
    except (OSError, ValueError) as error:
        raise Refused(f"{shown(path)} cannot be read: {_one_line(getattr(error, 'strerror', None) or error)}") from None
    if size > limits.file_bytes:
        raise Refused(f"{shown(path)} has {size} bytes, at most {limits.file_bytes} are accepted")
    if len(header) < 100 or not header.startswith(_MAGIC):
        raise Refused(f"{shown(path)} is not a SQLite database")
    # With immutable=1 a write-ahead log is ignored: rows would be missing without a word.
    side_files = [f"{path}{suffix}" for suffix in ("-wal", "-journal") if os.path.exists(f"{path}{suffix}")]
    if header[18:20] != b"\x01\x01" or side_files:
        raise Refused(f"{shown(path)} is in use, or was left in WAL mode; `autotune export` makes a file to pass on")
    application_id, version = (int.from_bytes(header[at : at + 4], "big") for at in (68, 60))
    if application_id != APPLICATION_ID:
        raise Refused(f"{shown(path)} is not Paiton's: application id {application_id:#x}, not {APPLICATION_ID:#x}")
    if version != SCHEMA:
        raise Refused(f"{shown(path)} has schema {version}, this Paiton reads {SCHEMA}")


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Every object must be one of ours, to the letter."""
    ours = sqlite3.connect(":memory:")
    try:
        for statement in statements():
            ours.execute(statement)
        expected = {tuple(row) for row in ours.execute("SELECT type, name, sql FROM sqlite_master")}
    finally:
        ours.close()
    found = [tuple(row) for row in connection.execute("SELECT type, name, sql FROM sqlite_master LIMIT 100")]
    for kind, name, sql in found:
        if (kind, name, sql) not in expected:
            raise Refused(f"{shown(path)} holds a {_one_line(kind)} {_one_line(name)} that Paiton does not make")
    needed = {statement.split()[2] for statement in SHIPPED_TABLES}
    missing = needed - {name for _, name, _ in found}
    if missing or len(found) != len(set(found)):
        raise Refused(f"{shown(path)} lacks the tables {', '.join(sorted(missing))}")


def _read_rows(connection: sqlite3.Connection, path: Path, limits: Limits, deadline: float) -> list[TunedRow]:
    counts = {}
    for table in ("env", "source", "tuned"):
        (counts[table],) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        if counts[table] > limits.rows:
            raise Refused(f"{shown(path)} has {counts[table]} rows in {table}, at most {limits.rows} are accepted")
    rows = []
    try:
        envs = _shared(connection, "env", environment_of, lambda env: env.digest)
        sources = _shared(connection, "source", source_of, lambda source: source_columns(source)["digest"])
        for values in _dicts(connection.execute(_ROWS)):
            if time.monotonic() > deadline:
                raise Refused(f"{shown(path)}: not read within {limits.seconds:g} s")
            rows.append(_checked(values, envs, sources))
    except (CorruptDatabase, RowRefused) as error:
        raise Refused(f"{shown(path)}: {_one_line(error)}") from None
    if len(rows) != counts["tuned"]:
        raise Refused(f"{shown(path)}: {counts['tuned']} rows counted, {len(rows)} read")
    return rows


def _dicts(cursor: sqlite3.Cursor) -> Iterator[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in cursor)


def _shared(
    connection: sqlite3.Connection,
    table: str,
    value_of: Callable[[dict[str, Any]], T],
    digest_of: Callable[[T], bytes],
) -> dict[object, T]:
    """The rows of env or source by id, each if these are to the bit the columns that we would write for it."""
    found: dict[object, T] = {}
    for values in _dicts(connection.execute(f"SELECT * FROM {table}")):
        value = value_of(values)
        if values["digest"] != digest_of(value):
            raise CorruptDatabase(f"row {values['id']} of table {table}: column digest is not what the row says")
        found[values["id"]] = value
    return found


def _checked(values: dict[str, Any], envs: Mapping[object, Environment], sources: Mapping[object, Source]) -> TunedRow:
    """The row, if these are to the bit the columns that we would write for it."""
    env, source = envs.get(values["env"]), sources.get(values["source"])
    if env is None or source is None:
        raise CorruptDatabase(f"row of table tuned: env {values['env']!r} or source {values['source']!r} is not there")
    row = answer(values, env, source)
    for name, value in tuned_columns(row).items():
        if type(values[name]) is not type(value) or values[name] != value:
            raise CorruptDatabase(f"row for {row.cell} of table tuned: column {name} is not what the row says")
    return row


def _one_line(text: object) -> str:
    """At most 200 printable characters."""
    line = " ".join(str(text).split())[:200]
    return line if line.isprintable() else ascii(line)
