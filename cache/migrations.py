"""From any earlier schema, or an empty file, to the newest: small named steps in one locked transaction.

A step is frozen once released: it must lead to the same schema for ever, so it holds its own SQL and does not
look at schema.py. A change of schema.py is a new step here and a larger SCHEMA in connection.py; tests hold
the three together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import Connection, Engine

from .connection import APPLICATION_ID, newer

Step = Callable[[Connection], None]

_CREATE = (
    """CREATE TABLE env (
        id INTEGER NOT NULL PRIMARY KEY, digest BLOB NOT NULL UNIQUE,
        gpu TEXT NOT NULL, arch_raw TEXT NOT NULL, driver TEXT NOT NULL, toolkit TEXT NOT NULL, triton TEXT
        NOT NULL, triton_key TEXT NOT NULL, torch TEXT NOT NULL, paiton TEXT NOT NULL, policy TEXT NOT
        NULL)""",
    """CREATE TABLE source (
        id INTEGER NOT NULL PRIMARY KEY, digest BLOB NOT NULL UNIQUE,
        name TEXT NOT NULL, version TEXT NOT NULL, licence TEXT NOT NULL, signer TEXT NOT NULL)""",
    """CREATE TABLE tuned (
        key BLOB NOT NULL, compiler BLOB NOT NULL,
        arch TEXT NOT NULL, device TEXT NOT NULL, kernel TEXT NOT NULL, kernel_digest TEXT NOT NULL,
        signature TEXT NOT NULL, dtype TEXT NOT NULL, batch BIGINT NOT NULL, compute_units INTEGER,
        config TEXT, label INTEGER NOT NULL,
        us_median DOUBLE, us_p10 DOUBLE, us_p90 DOUBLE, samples BIGINT NOT NULL, us_default DOUBLE,
        score DOUBLE, score_default DOUBLE, model_version TEXT NOT NULL, shortlist TEXT NOT NULL, facts TEXT,
        env INTEGER NOT NULL REFERENCES env (id), source INTEGER NOT NULL REFERENCES source (id),
        ts_ms BIGINT NOT NULL, row_digest BLOB NOT NULL,
        PRIMARY KEY (key, compiler), CONSTRAINT label_known CHECK (label IN (0, 1, 2))) WITHOUT ROWID""",
    "CREATE INDEX tuned_by_site ON tuned (kernel, signature, dtype, arch, batch)",
    """CREATE TABLE run (
        id BLOB NOT NULL PRIMARY KEY, arguments TEXT NOT NULL, seed BIGINT NOT NULL,
        env INTEGER NOT NULL REFERENCES env (id), compiler BLOB NOT NULL,
        started_ms BIGINT NOT NULL, ended_ms BIGINT, status TEXT NOT NULL)""",
    """CREATE TABLE cell (
        key BLOB NOT NULL PRIMARY KEY, arch TEXT NOT NULL, device TEXT NOT NULL, kernel TEXT NOT NULL,
        kernel_digest TEXT NOT NULL, signature TEXT NOT NULL, dtype TEXT NOT NULL, batch BIGINT NOT NULL)
        WITHOUT ROWID""",
    """CREATE TABLE trial (
        run BLOB NOT NULL REFERENCES run (id), no INTEGER NOT NULL, cell BLOB NOT NULL REFERENCES cell (key),
        params TEXT NOT NULL, state TEXT NOT NULL, us DOUBLE, score DOUBLE, told DOUBLE NOT NULL,
        samples TEXT NOT NULL, error TEXT NOT NULL, facts TEXT, model_version TEXT NOT NULL, worker TEXT NOT
        NULL, ts_ms BIGINT NOT NULL, PRIMARY KEY (run, no)) WITHOUT ROWID""",
    "CREATE INDEX trial_by_cell ON trial (cell)",
    """CREATE TABLE compiled (
        key BLOB NOT NULL PRIMARY KEY, state TEXT NOT NULL, facts TEXT, seconds DOUBLE NOT NULL,
        error TEXT NOT NULL, ts_ms BIGINT NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE meta (k TEXT NOT NULL PRIMARY KEY, v TEXT NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta VALUES ('format', 'paiton tuned configs'), ('lowest_reader', '1')",
)

SHIPPED_TABLES = tuple(
    statement for statement in _CREATE if re.match(r"CREATE TABLE (env|source|tuned|meta) ", statement)
)
"""What export.py makes: the answers without the evidence and without the browsing index."""


def statements() -> tuple[str, ...]:
    """The SQL behind every object of a database of the newest schema, for comparison."""
    return tuple(statement for statement in _CREATE if statement.startswith("CREATE "))


def create_tables(connection: Connection) -> None:
    """0 -> 1: an empty file becomes a Paiton database."""
    connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
    for statement in _CREATE:
        connection.exec_driver_sql(statement)


MIGRATIONS: tuple[Step, ...] = (create_tables,)


def migrate(engine: Engine, path: Path, steps: Sequence[Step] = MIGRATIONS) -> None:
    """Bring the file at `path`, to which `engine` connects, to schema `len(steps)`.

    `engine` is engine.py's, which begins with BEGIN IMMEDIATE: one process creates or migrates, the others
    wait and then find the work done. All steps commit together or not at all. Raises NewerDatabase.
    """
    # Read first: a file that is up to date must open while another process holds the write lock.
    with engine.execution_options(begin="DEFERRED").connect() as connection:
        if _version(connection) == len(steps):
            return
    with engine.begin() as connection:
        version = _version(connection)
        if version > len(steps):
            raise newer(path, version)
        for number, step in enumerate(steps[version:], start=version + 1):
            step(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={number}")


def _version(connection: Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
