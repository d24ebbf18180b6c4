"""Everything that can be wrong with the path or the file: one clear line each, nothing lost or changed."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paiton.cache import errors
from paiton.cache.lookup import Lookup
from paiton.cache.rows import Label
from paiton.cache.store import ConfigStore

OPENERS: list[Callable[[Path], Any]] = [
    lambda path: ConfigStore.open(path),
    lambda path: ConfigStore.open(path, read_only=True),
    lambda path: Lookup.open(path),
]


def one_line(error: errors.StoreError, path: Path) -> str:
    text = str(error)
    assert "\n" not in text and len(text) < 400
    assert str(path) in text
    return text


def refused(path: Path, kind: type[errors.StoreError]) -> list[str]:
    messages = []
    for opener in OPENERS:
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(kind) as caught:
            opener(path)
        assert type(caught.value) is kind
        messages.append(one_line(caught.value, path))
        assert (path.read_bytes() if path.is_file() else None) == before
        if path.parent.is_dir():
            assert [p for p in path.parent.iterdir() if p.name != path.name] == []
    return messages


def test_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    assert "is a folder; name a file in it, such as" in refused(path, errors.Unwritable)[0]


def test_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "p.db"
    for opener in OPENERS:
        with pytest.raises(errors.Unwritable, match="Not a directory; name a file that is writable") as caught:
            opener(path)
        one_line(caught.value, path)


def test_folder_that_cannot_be_made() -> None:
    # Permissions do not bind root; /proc takes new entries from nobody.
    path = Path("/proc/paiton/p.db")
    with pytest.raises(errors.Unwritable) as caught:
        ConfigStore.open(path)
    one_line(caught.value, path)
    with pytest.raises(errors.Unwritable, match=r"cannot open /proc/p\.db; the file and its folder must be"):
        ConfigStore.open("/proc/p.db")


def test_not_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    assert "is not a regular file" in refused(path, errors.Unwritable)[0]


def test_impossible_names(tmp_path: Path) -> None:
    for name in ("a" * 5000, "a\0b"):
        with pytest.raises(errors.Unwritable) as caught:
            ConfigStore.open(tmp_path / name)
        assert "\0" not in str(caught.value)


def test_not_sqlite(path: Path) -> None:
    for content in (b"hello, this is a text file\n" * 100, b"\0" * 4096, b"short"):
        path.write_bytes(content)
        messages = refused(path, errors.NotADatabase)
        assert all("is not a SQLite database; name a Paiton database or a new file" in m for m in messages)


@pytest.mark.parametrize("application_id", [0, 7])
def test_sqlite_of_somebody_else(path: Path, application_id: int) -> None:
    other = sqlite3.connect(path)
    other.executescript(
        f"PRAGMA application_id={application_id}; CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)"
    )
    other.close()
    messages = refused(path, errors.NotPaitonDatabase)
    assert all(f"(application id {application_id:#x}, expected 0x50414954)" in m for m in messages)


def test_newer_schema(path: Path) -> None:
    ConfigStore.open(path).close()
    newer = sqlite3.connect(path)
    newer.executescript("PRAGMA journal_mode=DELETE; PRAGMA user_version=9")
    newer.close()
    messages = refused(path, errors.NewerDatabase)
    assert all("has schema 9, this Paiton knows up to 1; update Paiton or name another file" in m for m in messages)


def test_empty_file(path: Path) -> None:
    path.touch()
    with pytest.raises(errors.DatabaseMissing, match="is empty; `autotune run` fills it"):
        Lookup.open(path)
    ConfigStore.open(path).close()
    Lookup.open(path).close()


def test_missing_table(path: Path, build: Any) -> None:
    with ConfigStore.open(path):
        pass
    damage = sqlite3.connect(path)
    damage.executescript("DROP TABLE tuned")
    damage.close()
    with (
        ConfigStore.open(path) as store,
        pytest.raises(errors.CorruptDatabase, match=r"no such table: tuned"),
    ):
        store.put_tuned(build.estimated())
    with Lookup.open(path) as lookup, pytest.raises(errors.CorruptDatabase, match=r"no such table: tuned"):
        lookup.find(build.cell())


def test_damaged_pages(path: Path, build: Any) -> None:
    with ConfigStore.open(path) as store:
        for batch in range(1, 200):
            store.put_tuned(build.estimated(build.cell(batch=batch)))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with ConfigStore.open(path) as store, pytest.raises(errors.CorruptDatabase, match="is damaged") as caught:
        store.tuned()
    one_line(caught.value, path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("us_median", "fast"),
        ("us_median", -1.0),
        ("score", float("inf")),
        ("config", "os.system"),
        ("shortlist", "[[1]]"),
        ("shortlist", None),
        ("batch", "many"),
        ("samples", 2.5),
        ("arch", b"\xff"),
        ("model_version", b"\xff"),
    ],
)
def test_damaged_value_is_never_served(path: Path, build: Any, column: str, value: object) -> None:
    with ConfigStore.open(path) as store:
        store.put_tuned(build.measured(label=Label.MEASURED))
    damage = sqlite3.connect(path)
    damage.execute("PRAGMA writable_schema=ON")
    damage.execute("UPDATE sqlite_master SET sql = replace(sql, 'shortlist TEXT NOT NULL', 'shortlist TEXT')")
    damage.commit()
    damage.close()
    damage = sqlite3.connect(path)
    damage.execute(f"UPDATE tuned SET {column} = ?", (value,))
    damage.commit()
    damage.close()
    with (
        ConfigStore.open(path) as store,
        pytest.raises(errors.CorruptDatabase, match="of table tuned is damaged"),
    ):
        store.find(build.cell())
    with (
        Lookup.open(path) as lookup,
        pytest.raises(errors.CorruptDatabase, match="of table tuned is damaged"),
    ):
        lookup.find(build.cell())


def test_disk_full_loses_nothing_and_goes_on(store: ConfigStore, path: Path, build: Any) -> None:
    run = store.begin_run({}, 0, build.env())
    store.record_trial(run, build.trial(told=0.0))
    with store._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
    recorded: list[float] = [0.0]

    def fill() -> None:
        while len(recorded) < 1000:
            store.record_trial(run, build.trial(told=float(len(recorded)), error="x" * 900))
            recorded.append(float(len(recorded)))

    with pytest.raises(errors.DiskFull, match=r"no space left for .*committed rows are safe") as caught:
        fill()
    one_line(caught.value, path)
    assert len(recorded) > 2
    with ConfigStore.open(path, read_only=True) as reader:
        assert [row.told for row in reader.trials(build.cell())] == recorded
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=100000")
    assert store.record_trial(run, build.trial()) == len(recorded)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_while_making_the_folder(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(errors.DiskFull, match="no space left"):
        ConfigStore.open(path)


def test_locked_by_another_process(path: Path, build: Any) -> None:
    with ConfigStore.open(path, timeout_s=0.2) as store:
        store.put_tuned(build.estimated())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(errors.DatabaseLocked, match="is locked by another process") as caught:
            store.put_tuned(build.estimated())
        assert 0.15 < time.monotonic() - began < 20
        one_line(caught.value, path)
        # Reading, and opening a file that needs no migration, do not wait for the writer.
        assert store.find(build.cell()) is not None
        ConfigStore.open(path, timeout_s=0.2).close()
        other.rollback()
        other.close()
        assert store.put_tuned(build.estimated())


def test_programming_errors_pass_through(store: ConfigStore) -> None:
    with pytest.raises(TypeError):
        store.begin_run({"when": object()}, 0, None)  # type: ignore[arg-type]
    assert errors.from_sqlite(sqlite3.ProgrammingError("Cannot operate on a closed database."), "p") is None


def test_unprintable_path_stays_one_line(tmp_path: Path) -> None:
    with pytest.raises(errors.DatabaseMissing) as caught:
        Lookup.open(tmp_path / "two\nlines.db")
    assert "\n" not in str(caught.value) and r"two\nlines.db" in str(caught.value)


def test_a_header_that_lies_about_its_schema(path: Path, build: Any) -> None:
    with ConfigStore.open(path) as store:
        store.put_tuned(build.estimated())
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA user_version=0")
    connection.close()
    with pytest.raises(errors.CorruptDatabase, match="already exists"):
        ConfigStore.open(path)


def test_a_column_of_another_name(path: Path, build: Any) -> None:
    with ConfigStore.open(path) as store:
        store.put_tuned(build.estimated())
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("ALTER TABLE tuned RENAME COLUMN score TO scope")
    connection.close()
    with ConfigStore.open(path) as store, pytest.raises(errors.CorruptDatabase, match=r"has no column|no such column"):
        store.put_tuned(build.measured())
