"""One SQLite connection, opened the way every part of Paiton opens it. Standard library only."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from .errors import (
    CorruptDatabase,
    DatabaseMissing,
    NewerDatabase,
    NotPaitonDatabase,
    OlderDatabase,
    Unwritable,
    shown,
    translated,
)
from .filesystem import network_filesystem

APPLICATION_ID = 0x50414954  # "PAIT": readable from the file's header without trusting its schema
SCHEMA = 1  # the newest schema this program knows; migrations.py holds the step that leads to each
BUSY_TIMEOUT_S = 30.0

# SQLite answers "locked" at once, whatever the busy timeout, when two connections switch a file to WAL
# together.
_WAL_RACE_S = 4.0
_WAL_PAUSE_S = 0.02

T = TypeVar("T")


def check_path(path: Path, *, read_only: bool) -> None:
    """Refuse a path that cannot hold a database; for writing, make its folder. Raises StoreError."""
    with translated(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            if read_only:
                raise DatabaseMissing(f"no database at {shown(path)}; `autotune run` makes one") from None
            path.parent.mkdir(parents=True, exist_ok=True)
            return
        except ValueError as error:  # a NUL in the path
            raise Unwritable(f"cannot use {shown(path)} as a database: {error}; name another file") from None
    if stat.S_ISDIR(mode):
        raise Unwritable(f"{shown(path)} is a folder; name a file in it, such as {shown(path / 'paiton.db')}")
    if not stat.S_ISREG(mode):
        raise Unwritable(f"{shown(path)} is not a regular file; name a Paiton database or a new file")


def _check_local(path: Path) -> None:
    """Refuse to write where the locks of several machines do not hold."""
    kind = network_filesystem(path)
    if kind is not None:
        raise Unwritable(
            f"{shown(path)} is on a network file system ({kind}), where SQLite's locks do not hold; name a file on a"
            " local disk with --db or PAITON_DB, and share it with `autotune export`"
        )


def connect(
    path: Path, *, read_only: bool, is_immutable: bool = False, timeout_s: float = BUSY_TIMEOUT_S
) -> sqlite3.Connection:
    """A connection in autocommit mode with our settings, to a file found to be ours (or, for writing, empty).

    A foreign or newer file is refused before anything in it changes. `is_immutable`, for reading, switches off locks
    and side files: for shipped files, which are only ever replaced by a rename. Raises StoreError.
    """
    if not read_only:
        _check_local(path)
    check_path(path, read_only=read_only)
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    if is_immutable:
        _check_alone(path)
        uri += "&immutable=1"
    with translated(path):
        connection = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA trusted_schema=OFF")
            # A reader may be a server, which asked for a bound; a writer starting up has to live through the race.
            wait_s = min(_WAL_RACE_S, timeout_s) if read_only else _WAL_RACE_S
            version = _retrying(lambda: identify(connection, path), wait_s)
            if read_only and version == 0:
                raise DatabaseMissing(f"{shown(path)} is empty; `autotune run` fills it")
            if read_only and version < SCHEMA:
                raise OlderDatabase(
                    f"{shown(path)} has schema {version}, this Paiton reads {SCHEMA};"
                    " open it once for writing (`autotune run`) to migrate it"
                )
            if not read_only:
                _retrying(lambda: connection.execute("PRAGMA journal_mode=WAL").fetchone(), wait_s)
                # One driver writes, a few commits a second: an fsync per commit is affordable and keeps a
                # finished trial through a power cut, where NORMAL would only keep it through a killed
                # process.
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
        except BaseException:
            connection.close()
            raise
    return connection


def _check_alone(path: Path) -> None:
    """Refuse a file whose newest rows may lie beside it: an immutable connection would answer without them."""
    with translated(path), open(path, "rb") as opened:
        journal_mode = opened.read(20)[18:20]
    if journal_mode == b"\x02\x02" or any(os.path.exists(f"{path}{suffix}") for suffix in ("-wal", "-journal")):
        raise CorruptDatabase(
            f"{shown(path)} is no shipped database: it is in use or was left in WAL mode;"
            " `autotune export` makes one that is"
        )


def identify(connection: sqlite3.Connection, path: Path) -> int:
    """Schema number of the open file, 0 when it is empty. Raises NotPaitonDatabase or NewerDatabase."""
    # One transaction, so that the answers belong to one state of a file that another process may be creating.
    connection.execute("BEGIN")
    try:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        connection.rollback()
    if application_id == 0 and version == 0 and objects == 0:
        return 0
    if application_id != APPLICATION_ID:
        raise NotPaitonDatabase(
            f"{shown(path)} is a SQLite database but not Paiton's (application id {application_id:#x},"
            f" expected {APPLICATION_ID:#x}); name a Paiton database or a new file"
        )
    if version > SCHEMA:
        raise newer(path, version)
    return int(version)


def fold(path: Path) -> None:
    """Leave a database that nobody else has open as one plain file: no write-ahead log, no shared memory.

    A file left in WAL mode cannot be opened from a read-only place, makes every reader create files beside
    it, and loses rows when it is copied without them. While others have it open this does nothing: the last
    writer folds.
    """
    with suppress(sqlite3.Error):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0)
        try:
            connection.execute("PRAGMA journal_mode=DELETE")
        finally:
            connection.close()


def newer(path: Path, version: int) -> NewerDatabase:
    """The refusal of a file from a later program."""
    return NewerDatabase(
        f"{shown(path)} has schema {version}, this Paiton knows up to {SCHEMA}; update Paiton or name another file"
    )


def _retrying(step: Callable[[], T], wait_s: float) -> T:
    """Result of `step`, tried again for `wait_s` seconds while SQLite says the file is locked."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_WAL_PAUSE_S)
