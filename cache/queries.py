"""The pieces of SQL that the store's methods share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Executable, Select, Table, func, select
from sqlalchemy.dialects.sqlite import Insert, insert

from .errors import CorruptDatabase
from .records import ENV_COLUMNS, SOURCE_COLUMNS, answer, environment_of, source_of
from .rows import TunedRow
from .schema import ENV, SOURCE, TUNED


def evidence(columns: Any) -> list[Any]:
    """The total order of ConfigStore.put_tuned, ascending, over the columns of tuned (or of the row put in).

    Numbers and bytes only: the order of text depends on a collation, and a NULL would make the comparison
    unknown.
    """
    return [
        columns.label,
        columns.samples,
        columns.ts_ms,
        -func.coalesce(columns.us_median, 1e30),
        -func.coalesce(columns.score, 1e30),
        columns.row_digest,
    ]


def replacing(statement: Insert, table: Table, where: Any = None) -> Insert:
    """`statement` as an upsert: on conflict of the primary key all other columns are replaced, if `where`
    holds."""
    keys = [column.name for column in table.primary_key]
    others = {column.name: statement.excluded[column.name] for column in table.c if column.name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=others, where=where)


def shared_id(connection: Connection, table: Table, columns: Mapping[str, object]) -> int:
    """Id of the row of `table` (env or source) with these columns, inserted if new."""
    known = select(table.c.id).where(table.c.digest == columns["digest"])
    found = connection.scalar(known)
    if found is None:
        connection.execute(insert(table).values(dict(columns)))
        found = connection.scalar(known)
    assert found is not None
    return int(found)


def joined(query: Select[Any], table: Table, names: Sequence[str], on: Any) -> Select[Any]:
    """`query` with the columns of `table` as `<table>_<column>`."""
    return query.add_columns(*(table.c[name].label(f"{table.name}_{name}") for name in names)).join(table, on)


def tuned_with_provenance() -> Select[Any]:
    """All of tuned with its env and source spelled out, as records.tuned_row takes it."""
    query = joined(select(TUNED), ENV, ENV_COLUMNS, TUNED.c.env == ENV.c.id)
    return joined(query, SOURCE, SOURCE_COLUMNS, TUNED.c.source == SOURCE.c.id)


def dicts(connection: Connection, query: Executable) -> list[dict[str, Any]]:
    """The rows of `query`, each as a dict by column name."""
    return [row._asdict() for row in connection.execute(query)]


def answers(connection: Connection, queries: Iterator[Select[Any]]) -> Iterator[TunedRow]:
    """The rows of queries of tuned. Their env and source are read once: few are shared by many."""
    envs = {values["id"]: environment_of(values) for values in dicts(connection, select(ENV))}
    sources = {values["id"]: source_of(values) for values in dicts(connection, select(SOURCE))}
    names = [column.name for column in TUNED.c]
    for query in queries:
        for found in connection.execute(query):
            values = dict(zip(names, found, strict=True))
            env, source = envs.get(values["env"]), sources.get(values["source"])
            if env is None or source is None:
                raise CorruptDatabase(
                    f"row {values['key'].hex()} of table tuned is damaged: it has no env or no source"
                )
            yield answer(values, env, source)
