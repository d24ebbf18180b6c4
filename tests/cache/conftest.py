"""Builders of valid values: a test states only what it is about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paiton.cache.key import Cell, Environment
from paiton.cache.rows import Label, TrialRow, TrialState, TunedRow
from paiton.cache.store import ConfigStore


class Build:
    """`build.estimated(score=2.0)`, `build.cell(batch=4)`: defaults for everything not named."""

    @staticmethod
    def cell(**values: Any) -> Cell:
        return Cell(
            **{
                "arch": "gfx942",
                "device": "MI300X",
                "kernel": "moe_down",
                "kernel_digest": "d1",
                "signature": "experts=128,hidden=2048,inter=768,top_k=8",
                "dtype": "bf16",
                "batch": 8,
                **values,
            }
        )

    @staticmethod
    def env(**values: Any) -> Environment:
        return Environment(**{"triton": "3.7.1", "triton_key": "k1", "toolkit": "", "paiton": "0.1.0", **values})

    def estimated(self, cell: Cell | None = None, **values: Any) -> TunedRow:
        return TunedRow(
            **{
                "cell": cell or self.cell(),
                "label": Label.ESTIMATED,
                "env": self.env(),
                "config_json": '{"BLOCK_M":16}',
                "score": 10.0,
                "score_default": 12.0,
                "model_version": "1",
                **values,
            }
        )

    def measured(self, cell: Cell | None = None, **values: Any) -> TunedRow:
        return TunedRow(
            **{
                "cell": cell or self.cell(),
                "label": Label.MEASURED,
                "env": self.env(gpu="AMD Instinct MI300X"),
                "config_json": '{"BLOCK_M":32}',
                "us_median": 20.0,
                "samples": 100,
                **values,
            }
        )

    def trial(self, cell: Cell | None = None, **values: Any) -> TrialRow:
        return TrialRow(
            **{
                "cell": cell or self.cell(),
                "params_json": '{"BLOCK_M":16}',
                "state": TrialState.OK,
                "told": 10.0,
                **values,
            }
        )


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "paiton.db"


@pytest.fixture
def store(path: Path) -> Iterator[ConfigStore]:
    with ConfigStore.open(path) as opened:
        yield opened
