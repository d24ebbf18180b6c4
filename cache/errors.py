"""What can be wrong with a database file, each as one line that names the value and what would be
accepted."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StoreError(Exception):
    """Base of everything the cache package raises on purpose; `str()` is one line fit for the user."""


class DatabaseMissing(StoreError):
    """A database was to be read and there is none."""


class Unwritable(StoreError):
    """The path cannot hold a database, or we may not write there."""


class NotADatabase(StoreError):
    """The file is not SQLite."""


class NotPaitonDatabase(StoreError):
    """The file is SQLite, but somebody else's."""


class NewerDatabase(StoreError):
    """The file was written by a later Paiton."""


class OlderDatabase(StoreError):
    """The file has an older schema and was opened read-only, so it cannot be migrated."""


class CorruptDatabase(StoreError):
    """SQLite or our own checks found damage."""


class DiskFailure(StoreError):
    """The disk refused to read or write."""


class DiskFull(DiskFailure):
    """No space left; what was committed before is safe."""


class DatabaseLocked(StoreError):
    """Another process held the lock for longer than we wait."""


class RowRefused(StoreError, ValueError):
    """A value that must not enter the database (NaN, negative time, unknown name)."""


def shown(path: Path | str) -> str:
    """`path` for a message: as it is, or escaped when it holds characters that would break the line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


_FULL = "no space left for {path}; committed rows are safe, free some space and run again"
_LOCKED = "{path} is locked by another process; wait for it to end, or name another file"
_FOREIGN = "{path} is not a SQLite database; name a Paiton database or a new file"
_DAMAGED = "{path} is damaged ({detail}); restore a copy, or name a new file"
_CLOSED = "cannot open {path}; the file and its folder must be readable and writable"
_READ_ONLY = "cannot write {path}: it is read-only; name a file that is writable"
_BROKEN = "the disk refused to read or write {path} ({detail}); committed rows are safe"

# SQLite's own words, because result codes are attributes of the exception only since Python 3.11.
_SQLITE_WORDS: tuple[tuple[str, type[StoreError], str], ...] = (
    ("disk is full", DiskFull, _FULL),
    ("is locked", DatabaseLocked, _LOCKED),
    ("not a database", NotADatabase, _FOREIGN),
    ("malformed", CorruptDatabase, _DAMAGED),
    ("could not decode", CorruptDatabase, _DAMAGED),
    ("too big", CorruptDatabase, _DAMAGED),
    ("unsupported file format", CorruptDatabase, _DAMAGED),
    ("no such ", CorruptDatabase, _DAMAGED),
    ("already exists", CorruptDatabase, _DAMAGED),
    ("has no column", CorruptDatabase, _DAMAGED),
    ("unable to open", Unwritable, _CLOSED),
    ("readonly database", Unwritable, _READ_ONLY),
    ("disk i/o error", DiskFailure, _BROKEN),
)


def from_sqlite(error: BaseException, path: Path | str) -> StoreError | None:
    """The StoreError for what SQLite reported about `path`; None for a bug of ours, to be let through."""
    if isinstance(error, sqlite3.IntegrityError):
        return RowRefused(f"row refused by {shown(path)}: {error}")
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.ProgrammingError):
        return None
    detail = " ".join(str(error).split())[:200]  # SQLite quotes damaged values whole
    if not detail.isprintable():
        detail = ascii(detail)
    for words, kind, message in _SQLITE_WORDS:
        if words in detail.lower():
            return kind(message.format(path=shown(path), detail=detail))
    return None


def from_os(error: OSError, path: Path | str) -> StoreError:
    """The StoreError for what the operating system reported about `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(_FULL.format(path=shown(path)))
    reason = error.strerror or error
    return Unwritable(f"cannot use {shown(path)} as a database: {reason}; name a file that is writable")


@contextmanager
def translated(path: Path | str) -> Iterator[None]:
    """Turn what SQLite or the operating system raises inside into a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        raise from_os(error, path) from error
    except UnicodeDecodeError as error:  # sqlite3 decodes SQLite's own message, which may quote damaged bytes
        raise CorruptDatabase(_DAMAGED.format(path=shown(path), detail="text that is not UTF-8")) from error
    except sqlite3.Error as error:
        known = from_sqlite(error, path)
        if known is None:
            raise
        raise known from error
