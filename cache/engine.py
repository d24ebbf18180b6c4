"""SQLAlchemy on top of connection.py: one engine per store, each of its transactions begun by us."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

from .connection import connect


def make_engine(path: Path, *, read_only: bool, timeout_s: float) -> Engine:
    """Engine for the database at `path`; nothing is opened yet.

    A transaction begins with BEGIN IMMEDIATE unless the execution option `begin` says DEFERRED: one that
    starts as a read and turns into a write fails at once when another process has written in between, and no
    timeout helps.
    """
    engine = create_engine(
        "sqlite://",
        creator=lambda: connect(path, read_only=read_only, timeout_s=timeout_s),
        poolclass=QueuePool,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = "DEFERRED" if read_only else connection.get_execution_options().get("begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine
