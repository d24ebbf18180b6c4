"""Databases for tests of the selection: rows for the problems of a call, with configs that are legal or made up."""

from __future__ import annotations

from pathlib import Path

from paiton.cache.key import Cell, Environment
from paiton.cache.rows import Label, TunedRow
from paiton.cache.store import ConfigStore
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import device_named
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.registry import space_of

ENV = Environment(triton="3.7.1", triton_key="k", paiton="0.1.0")


def other_config(problem: Problem, device: str = "MI300X") -> Config:
    """A legal config that is not the default, the same at every call."""
    space, where = space_of(problem.kernel), device_named(device)
    default = space.default_config(problem, where)
    return next(config for config in reversed(list(space.enumerate(problem, where))) if config != default)


def row(
    problem: Problem, *, device: str = "MI300X", config: Config | str | None = None, digest: str | None = None,
    us: float | None = None,
) -> TunedRow:  # fmt: skip
    """A row of our own kernel, or of another version of it; measured where a time is given."""
    where = device_named(device)
    cell = Cell(
        arch=where.arch.name, device=device, kernel=problem.kernel,
        kernel_digest=digest or spec_of(problem.kernel).digest, signature=problem.signature, dtype=problem.dtype,
        batch=problem.batch,
    )  # fmt: skip
    text = config if isinstance(config, str) else (config or other_config(problem, device)).json()
    if us is None:
        return TunedRow(
            cell=cell, label=Label.ESTIMATED, env=ENV, config_json=text, score=1.0, score_default=2.0, model_version="1"
        )
    return TunedRow(cell=cell, label=Label.MEASURED, env=ENV, config_json=text, us_median=us, samples=9)


def write(path: Path, *rows: TunedRow) -> None:
    """Add rows to the database at `path`, which is made if need be."""
    with ConfigStore.open(path) as store:
        store.put_all_tuned(rows)
