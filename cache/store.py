"""ConfigStore: the one writer of the database. Every method is one transaction; what it returned from is on
disk.

SQLAlchemy and SQLite errors never leave this file: they become a StoreError of one line. A server does not
import this file, see lookup.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from sqlalchemy import Connection, Engine, func, select, tuple_, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from .checks import canonical
from .connection import BUSY_TIMEOUT_S, fold
from .engine import make_engine
from .errors import DatabaseLocked, RowRefused, Unwritable, from_sqlite, shown, translated
from .key import Cell, Environment, compiler_digest
from .migrations import migrate
from .queries import answers, dicts, evidence, joined, replacing, shared_id, tuned_with_provenance
from .records import (
    ENV_COLUMNS,
    cell_columns,
    cell_row,
    compiled_columns,
    compiled_row,
    env_columns,
    run_row,
    source_columns,
    trial_columns,
    trial_row,
    tuned_columns,
    tuned_row,
)
from .rows import CompiledRow, Label, RunId, RunRow, RunStatus, TrialRow, TunedRow
from .schema import CELL, COMPILED, ENV, RUN, SOURCE, TRIAL, TUNED

Stamped = TypeVar("Stamped", TrialRow, CompiledRow)
T = TypeVar("T")

Identity = tuple[bytes, bytes]
"""What two rows must share to be rivals: the key of the cell, and the compiler's digest."""
Evidence = tuple[int, int, int, float, float, bytes]
"""Label, samples, time, then slower is less: of two rivals the larger wins, see `put_tuned`."""

# SQLite before 3.32 takes at most 999 parameters in a statement.
_PER_STATEMENT = 500


@dataclass(frozen=True, kw_only=True)
class TunedFilter:
    """Which answers to read; None accepts all."""

    arch: str | None = None
    device: str | None = None
    kernel: str | None = None
    kernel_digest: str | None = None
    signature: str | None = None
    dtype: str | None = None
    batch: int | None = None
    label: Label | None = None


class ConfigStore:
    """The tuned-config database at one path. Open it with `ConfigStore.open`, use it as a context manager."""

    def __init__(self, path: Path, engine: Engine, *, read_only: bool, clock: Callable[[], float]) -> None:
        self.path = path
        self.read_only = read_only
        self._engine = engine
        self._clock = clock
        self._is_open = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        timeout_s: float = BUSY_TIMEOUT_S,
        clock: Callable[[], float] = time.time,
    ) -> ConfigStore:
        """Open the database; for writing, create it (and its folder) or migrate it first.

        `timeout_s` bounds the wait for another process's lock, `clock` gives Unix seconds. Raises a
        StoreError: DatabaseMissing, Unwritable, NotADatabase, NotPaitonDatabase, NewerDatabase,
        OlderDatabase, CorruptDatabase, DatabaseLocked, DiskFull.
        """
        where = Path(path)
        store = cls(
            where,
            make_engine(where, read_only=read_only, timeout_s=timeout_s),
            read_only=read_only,
            clock=clock,
        )
        try:
            with store._translated():
                if not read_only:
                    migrate(store._engine, where)
                store._engine.connect().close()
            store._is_open = True
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the file. The last writer leaves it one plain file, to be copied and read anywhere."""
        self._engine.dispose()
        if self._is_open and not self.read_only:
            fold(self.path)
        self._is_open = False

    def __enter__(self) -> ConfigStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Runs and trials: the evidence.

    def begin_run(self, arguments: Mapping[str, object], seed: int, env: Environment) -> RunId:
        """Record the start of a run and return its id, 16 random bytes. `arguments` must be plain JSON
        data."""
        run = RunId(os.urandom(16))
        if type(seed) is not int or not -(2**63) <= seed < 2**63:
            raise RowRefused(f"seed={seed!r}: expected an int of at most 64 bits")
        with self._write() as connection:
            # Later than every run before it, whatever the clock says: trials() returns runs in this order.
            latest = connection.scalar(select(func.max(RUN.c.started_ms))) or 0
            connection.execute(
                insert(RUN).values(
                    id=run,
                    arguments=canonical(dict(arguments)),
                    seed=seed,
                    env=shared_id(connection, ENV, env_columns(env)),
                    compiler=compiler_digest(env),
                    started_ms=max(self._now_ms(), latest + 1),
                    status=RunStatus.RUNNING.value,
                )
            )
        return run

    def finish_run(self, run: RunId, status: RunStatus) -> None:
        """Record how a run ended. Raises RowRefused for a run that was never begun here."""
        with self._write() as connection:
            changed = connection.execute(
                update(RUN).where(RUN.c.id == run).values(ended_ms=self._now_ms(), status=RunStatus(status).value)
            )
            if changed.rowcount != 1:
                raise RowRefused(f"run {run.hex()} is not in {shown(self.path)}")

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        query = joined(select(RUN), ENV, ENV_COLUMNS, RUN.c.env == ENV.c.id).order_by(RUN.c.started_ms, RUN.c.id)
        with self._read() as connection:
            return [run_row(values) for values in dicts(connection, query)]

    def record_trial(self, run: RunId, row: TrialRow) -> int:
        """Append one finished trial, durable on return; returns its number within the run, from 0."""
        return self.record_trials(run, [row])[0]

    def record_trials(self, run: RunId, rows: Iterable[TrialRow]) -> list[int]:
        """Append finished trials in one transaction, all or none; returns their numbers within the run."""
        rows = list(rows)
        if not rows:
            return []
        cells = {row.cell: cell_columns(row.cell) for row in rows}
        with self._write() as connection:
            last = connection.scalar(select(func.max(TRIAL.c.no)).where(TRIAL.c.run == run))
            first, now = 0 if last is None else last + 1, self._now_ms()
            connection.execute(insert(CELL).on_conflict_do_nothing(), list(cells.values()))
            connection.execute(
                insert(TRIAL),
                [trial_columns(_stamp(row, now), run, no) for no, row in enumerate(rows, start=first)],
            )
        return list(range(first, first + len(rows)))

    def trials(self, cell: Cell, *, compiler: bytes | None = None) -> list[TrialRow]:
        """Finished trials of `cell` over all runs, in the order in which they were recorded.

        With `compiler` (see key.compiler_digest) only those of runs under that compiler: a resumed search
        must not take another Triton's times for its own.
        """
        query = (
            select(TRIAL)
            .join(RUN, TRIAL.c.run == RUN.c.id)
            .where(TRIAL.c.cell == cell.key)
            .order_by(RUN.c.started_ms, RUN.c.id, TRIAL.c.no)
        )
        if compiler is not None:
            query = query.where(RUN.c.compiler == compiler)
        with self._read() as connection:
            return [trial_row(values, cell) for values in dicts(connection, query)]

    def trial_counts(self) -> dict[Cell, int]:
        """Every cell that has trials, and how many."""
        query = select(CELL, func.count().label("trials")).join(TRIAL, TRIAL.c.cell == CELL.c.key).group_by(CELL.c.key)
        with self._read() as connection:
            return {cell_row(values): values["trials"] for values in dicts(connection, query)}

    # Compiles: shared by all runs.

    def put_compiled(self, rows: Iterable[CompiledRow]) -> None:
        """Remember results of the compiler in one transaction; a later one for a key replaces the earlier."""
        now = self._now_ms()
        columns = [compiled_columns(_stamp(row, now)) for row in rows]
        if not columns:
            return
        with self._write() as connection:
            connection.execute(replacing(insert(COMPILED), COMPILED), columns)

    def compiled(self, keys: Iterable[bytes]) -> dict[bytes, CompiledRow]:
        """What is known of the given compile keys; unknown ones are absent."""
        found = {}
        with self._read() as connection:
            for some in _chunks(dict.fromkeys(keys)):
                for values in dicts(connection, select(COMPILED).where(COMPILED.c.key.in_(some))):
                    found[values["key"]] = compiled_row(values)
        return found

    # Answers.

    def put_tuned(self, row: TunedRow) -> bool:
        """Store an answer unless the row already there is better evidence; True when it was stored.

        Better is (label, samples, ts_ms, us_median, score, row_digest), compared in this order: measured
        beats estimated beats prior whatever the time; at equal label and samples the later row wins, so a
        newer model replaces an older one's estimate. Speed comes late on purpose: it would reward lucky
        noise. The order is total, hence the result does not depend on the order of the calls. A row without a
        timestamp gets one later than the row it meets, whatever the clocks of the two machines say.
        """
        return self.put_all_tuned([row]) == 1

    def put_all_tuned(self, rows: Iterable[TunedRow]) -> int:
        """Store many answers in one transaction, each by the rule of put_tuned; how many were stored."""
        upsert = insert(TUNED)
        better = tuple_(*evidence(upsert.excluded)) > tuple_(*evidence(TUNED.c))
        statement = replacing(upsert, TUNED, where=better)
        with self._write() as connection:
            env_id = cache(lambda env: shared_id(connection, ENV, env_columns(env)))
            source_id = cache(lambda source: shared_id(connection, SOURCE, source_columns(source)))
            stored = 0
            for some in _chunks(rows):
                columns = [
                    tuned_columns(row) | {"env": env_id(row.env), "source": source_id(row.source)}
                    for row in self._stamped(connection, some)
                ]
                stored += connection.execute(statement, columns).rowcount
        return stored

    def tuned(self, where: TunedFilter | None = None) -> list[TunedRow]:
        """Answers that pass the filter, by arch, device, kernel, signature, dtype, batch."""
        query = select(TUNED)
        for f in fields(TunedFilter):
            wanted = getattr(where, f.name) if where is not None else None
            if wanted is not None:
                query = query.where(TUNED.c[f.name] == wanted)
        names = ("arch", "device", "kernel", "signature", "dtype", "batch", "kernel_digest", "compiler")
        with self._read() as connection:
            return list(answers(connection, iter([query.order_by(*(TUNED.c[name] for name in names))])))

    def tuned_at(self, keys: Iterable[bytes]) -> list[TunedRow]:
        """The answers for the cells with these keys, of all compilers."""
        queries = (select(TUNED).where(TUNED.c.key.in_(some)) for some in _chunks(dict.fromkeys(keys)))
        with self._read() as connection:
            return list(answers(connection, queries))

    def evidence_at(self, keys: Iterable[bytes]) -> dict[Identity, tuple[Evidence, str | None]]:
        """Of the answers for the cells with these keys only what decides a merge, and the config."""
        columns = (TUNED.c.key, TUNED.c.compiler, TUNED.c.config, *evidence(TUNED.c))
        found: dict[Identity, tuple[Evidence, str | None]] = {}
        with self._read() as connection:
            for some in _chunks(dict.fromkeys(keys)):
                for key, compiler, config_json, *rest in connection.execute(
                    select(*columns).where(TUNED.c.key.in_(some))
                ):
                    label, samples, ts_ms, fast, good, digest = rest
                    found[key, compiler] = ((label, samples, ts_ms, fast, good, digest), config_json)
        return found

    def find(self, cell: Cell, *, compiler: bytes | None = None) -> TunedRow | None:
        """The answer for exactly this cell, or None. Where several compilers left one each: the best label,
        then that of `compiler`, then the better evidence."""
        same_compiler = TUNED.c.compiler == (compiler if compiler is not None else b"")
        label, *rest = evidence(TUNED.c)
        order = [criterion.desc() for criterion in (label, same_compiler, *rest)]
        query = tuned_with_provenance().where(TUNED.c.key == cell.key).order_by(*order).limit(1)
        with self._read() as connection:
            found = dicts(connection, query)
        return tuned_row(found[0]) if found else None

    # Inside.

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _stamped(self, connection: Connection, rows: Iterable[TunedRow]) -> Iterator[TunedRow]:
        """The rows, those without a time with one that is later than that of the row each meets."""
        for row in rows:
            if row.ts_ms:
                yield row
                continue
            here = select(TUNED.c.ts_ms).where(TUNED.c.key == row.cell.key, TUNED.c.compiler == row.env.compiler)
            yield replace(row, ts_ms=max(self._now_ms(), (connection.scalar(here) or 0) + 1))

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if self.read_only:
            raise Unwritable(f"{shown(self.path)} was opened read-only; open it for writing")
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._translated(), self._engine.execution_options(begin="DEFERRED").begin() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with translated(self.path):
            try:
                yield
            except DBAPIError as error:
                known = from_sqlite(error.orig, self.path) if error.orig is not None else None
                if known is None:
                    raise
                raise known from error
            except PoolTimeout as error:
                raise DatabaseLocked(f"{shown(self.path)}: too many threads use one store") from error


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(items)
    while some := list(islice(remaining, _PER_STATEMENT)):
        yield some


def _stamp(row: Stamped, now_ms: int) -> Stamped:
    return row if row.ts_ms else replace(row, ts_ms=now_ms)
