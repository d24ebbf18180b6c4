"""Schema steps: one locked transaction, all or none, and the tables that schema.py declares."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine

from paiton.cache.connection import SCHEMA
from paiton.cache.engine import make_engine
from paiton.cache.errors import NewerDatabase, OlderDatabase
from paiton.cache.lookup import Lookup
from paiton.cache.migrations import MIGRATIONS, create_tables, migrate
from paiton.cache.schema import METADATA
from paiton.cache.store import ConfigStore


def add_noise(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE tuned ADD COLUMN noise INTEGER")


def fill_noise(connection: Connection) -> None:
    connection.exec_driver_sql("UPDATE tuned SET noise = samples * 2")


def fail(connection: Connection) -> None:
    raise RuntimeError("a step that stops half-way")


def shape(path: Path) -> dict[str, object]:
    """Tables, columns, keys and indexes as SQLite reports them, free of how the SQL was laid out."""
    connection = sqlite3.connect(path)
    found: dict[str, object] = {}
    for name, table, without_rowid in connection.execute(
        "SELECT name, tbl_name, sql LIKE '%WITHOUT ROWID%' FROM sqlite_master WHERE type = 'table'"
    ).fetchall():
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        keys = sorted(row[2:] for row in connection.execute(f"PRAGMA foreign_key_list({table})"))
        indexes = sorted(
            (row[2], tuple(c[2] for c in connection.execute(f"PRAGMA index_info({row[1]})")))
            for row in connection.execute(f"PRAGMA index_list({table})")
        )
        found[name] = ([c[1:] for c in columns], keys, indexes, without_rowid)
    connection.close()
    return found


def test_steps_lead_to_the_declared_schema(tmp_path: Path) -> None:
    assert len(MIGRATIONS) == SCHEMA
    declared = create_engine(f"sqlite:///{tmp_path / 'declared.db'}")
    METADATA.create_all(declared)
    declared.dispose()
    ConfigStore.open(tmp_path / "made.db").close()
    made = shape(tmp_path / "made.db")
    assert made == shape(tmp_path / "declared.db")
    assert set(made) == {"tuned", "env", "source", "run", "cell", "trial", "compiled", "meta"}


def test_label_check_is_in_the_file(path: Path, build: Any) -> None:
    with ConfigStore.open(path) as store:
        store.put_tuned(build.estimated())
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="label_known"):
        connection.execute("UPDATE tuned SET label = 3")
    connection.close()


def test_later_steps_keep_the_rows(path: Path, build: Any) -> None:
    with ConfigStore.open(path) as store:
        store.put_tuned(build.measured(samples=21))
    engine = make_engine(path, read_only=False, timeout_s=5.0)
    migrate(engine, path, [create_tables, add_noise, fill_noise])
    migrate(engine, path, [create_tables, add_noise, fill_noise])  # already there: nothing to do
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT samples, noise FROM tuned").all() == [(21, 42)]
        assert connection.exec_driver_sql("PRAGMA user_version").scalar() == 3
    with pytest.raises(NewerDatabase, match="has schema 3, this Paiton knows up to 1"):
        migrate(engine, path, MIGRATIONS)
    engine.dispose()
    with pytest.raises(NewerDatabase, match="has schema 3"):
        ConfigStore.open(path)


@pytest.mark.parametrize("earlier", range(SCHEMA))
def test_every_earlier_schema_leads_to_the_newest(tmp_path: Path, build: Any, earlier: int) -> None:
    """Schema 0 is the empty file; a step that is added later is covered from every schema before it."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    engine = make_engine(old, read_only=False, timeout_s=5.0)
    migrate(engine, old, MIGRATIONS[:earlier])
    engine.dispose()
    for path in (old, new):
        with ConfigStore.open(path) as store:
            assert store.put_tuned(build.measured()) and store.tuned()[0].us_median == 20.0
    assert shape(old) == shape(new)


def test_steps_are_all_or_none(path: Path) -> None:
    engine = make_engine(path, read_only=False, timeout_s=5.0)
    with pytest.raises(RuntimeError, match="half-way"):
        migrate(engine, path, [create_tables, add_noise, fail])
    engine.dispose()
    assert shape(path) == {}
    with ConfigStore.open(path) as store:
        assert store.tuned() == []


def test_read_only_file_of_an_older_schema_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ConfigStore.open(path).close()
    monkeypatch.setattr("paiton.cache.connection.SCHEMA", 2)
    with pytest.raises(OlderDatabase, match="has schema 1, this Paiton reads 2; open it once for writing"):
        Lookup.open(path)
    with pytest.raises(OlderDatabase):
        ConfigStore.open(path, read_only=True)
