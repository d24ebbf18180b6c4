"""How the values of rows.py become columns, and how columns become values again. Standard library only,
because the read path of a server decodes the same columns as the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from .checks import canonical
from .errors import CorruptDatabase
from .key import Cell, Environment
from .row_text import shortlist_text
from .rows import (
    Candidate,
    CompiledRow,
    Label,
    RunId,
    RunRow,
    RunStatus,
    Source,
    TrialRow,
    TrialState,
    TunedRow,
)

CELL_COLUMNS = tuple(f.name for f in fields(Cell))
ENV_COLUMNS = tuple(f.name for f in fields(Environment))
SOURCE_COLUMNS = tuple(f.name for f in fields(Source))
# Columns of `tuned` that carry the value of the attribute of the same name.
_TUNED_PLAIN = (
    "compute_units",
    "us_median",
    "us_p10",
    "us_p90",
    "samples",
    "us_default",
    "score",
    "score_default",
    "model_version",
    "ts_ms",
)

Columns = dict[str, Any]


def _plain(value: object, names: tuple[str, ...]) -> Columns:
    """The fields of a flat dataclass; dataclasses.asdict copies each deeply and took most of a merge's time."""
    return {name: getattr(value, name) for name in names}


def cell_columns(cell: Cell) -> Columns:
    return {"key": cell.key, **_plain(cell, CELL_COLUMNS)}


def env_columns(env: Environment) -> Columns:
    return {"digest": env.digest, **_plain(env, ENV_COLUMNS)}


def source_columns(source: Source) -> Columns:
    columns = _plain(source, SOURCE_COLUMNS)
    digest = hashlib.blake2b(canonical(columns).encode(), digest_size=16, person=b"paiton.source").digest()
    return {"digest": digest, **columns}


def tuned_columns(row: TunedRow) -> Columns:
    """Columns of `tuned` but for the ids of env and source, which only the database knows."""
    return {
        **cell_columns(row.cell),
        **_plain(row, _TUNED_PLAIN),
        "compiler": row.env.compiler,
        "config": row.config_json,
        "label": int(row.label),
        "shortlist": shortlist_text(row),
        "facts": row.facts_json,
        "row_digest": row.digest,
    }


def tuned_row(values: Mapping[str, Any]) -> TunedRow:
    """The row in `values`: columns of tuned, and of env and source as `env_...` and `source_...`.

    Raises CorruptDatabase when a value is none that we could have written.
    """
    try:
        return answer(values, _env(values), source_of({name: values[f"source_{name}"] for name in SOURCE_COLUMNS}))
    except (ValueError, TypeError, KeyError) as error:
        raise _corrupt("tuned", values, error) from error


def answer(values: Mapping[str, Any], env: Environment, source: Source) -> TunedRow:
    """The row whose columns of tuned are `values`. Raises CorruptDatabase as `tuned_row` does."""
    try:
        return TunedRow(
            cell=_cell(values),
            label=Label(values["label"]),
            env=env,
            config_json=values["config"],
            facts_json=values["facts"],
            shortlist=tuple([Candidate(config_json=c, score=s) for c, s in json.loads(values["shortlist"])]),
            source=source,
            **{name: values[name] for name in _TUNED_PLAIN},
        )
    except (ValueError, TypeError, KeyError) as error:
        raise _corrupt("tuned", values, error) from error


def environment_of(values: Mapping[str, Any]) -> Environment:
    """The environment in columns of env; equal ones are one object, which knows its digests. Raises RowRefused."""
    return _shared_environment(*[values[name] for name in ENV_COLUMNS])


def source_of(values: Mapping[str, Any]) -> Source:
    """The source in columns of source. Raises RowRefused."""
    return Source(**{name: values[name] for name in SOURCE_COLUMNS})


@lru_cache(maxsize=256)
def _shared_environment(*values: Any) -> Environment:
    return Environment(**dict(zip(ENV_COLUMNS, values, strict=True)))


def trial_columns(row: TrialRow, run: RunId, no: int) -> Columns:
    return {
        "run": run,
        "no": no,
        "cell": row.cell.key,
        "params": row.params_json,
        "state": row.state.value,
        "us": row.us,
        "score": row.score,
        "told": row.told,
        "samples": canonical(list(row.samples_us)),
        "error": row.error,
        "facts": row.facts_json,
        "model_version": row.model_version,
        "worker": row.worker,
        "ts_ms": row.ts_ms,
    }


def trial_row(values: Mapping[str, Any], cell: Cell) -> TrialRow:
    try:
        return TrialRow(
            cell=cell,
            params_json=values["params"],
            state=TrialState(values["state"]),
            told=values["told"],
            us=values["us"],
            score=values["score"],
            samples_us=tuple(json.loads(values["samples"])),
            error=values["error"],
            facts_json=values["facts"],
            model_version=values["model_version"],
            worker=values["worker"],
            ts_ms=values["ts_ms"],
            run=RunId(values["run"]),
            no=values["no"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise _corrupt("trial", values, error) from error


def compiled_columns(row: CompiledRow) -> Columns:
    return {
        "key": row.key,
        "state": row.state.value,
        "facts": row.facts_json,
        "seconds": row.seconds,
        "error": row.error,
        "ts_ms": row.ts_ms,
    }


def compiled_row(values: Mapping[str, Any]) -> CompiledRow:
    try:
        return CompiledRow(
            key=values["key"],
            state=TrialState(values["state"]),
            facts_json=values["facts"],
            seconds=values["seconds"],
            error=values["error"],
            ts_ms=values["ts_ms"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise _corrupt("compiled", values, error) from error


def run_row(values: Mapping[str, Any]) -> RunRow:
    try:
        return RunRow(
            run=RunId(values["id"]),
            arguments_json=values["arguments"],
            seed=values["seed"],
            env=_env(values),
            started_ms=values["started_ms"],
            ended_ms=values["ended_ms"],
            status=RunStatus(values["status"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise _corrupt("run", values, error) from error


def cell_row(values: Mapping[str, Any]) -> Cell:
    try:
        return _cell(values)
    except (ValueError, TypeError, KeyError) as error:
        raise _corrupt("cell", values, error) from error


def _cell(values: Mapping[str, Any]) -> Cell:
    return Cell(**{name: values[name] for name in CELL_COLUMNS})


def _env(values: Mapping[str, Any]) -> Environment:
    return _shared_environment(*[values[f"env_{name}"] for name in ENV_COLUMNS])


def _corrupt(table: str, values: Mapping[str, Any], error: Exception) -> CorruptDatabase:
    key = next((values[name] for name in ("key", "id", "cell") if name in values), b"")
    name = key.hex() if isinstance(key, bytes) else repr(key)
    return CorruptDatabase(f"row {name} of table {table} is damaged: {error}")
