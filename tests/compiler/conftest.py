"""Every test of the backend begins with nothing compiled, nothing reported and nothing said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from paiton.compiler import log, selection
from paiton.compiler.report import history


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    log.forget()
    history.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    """The path of a database that is not there yet, the only one that operators ask."""
    path = tmp_path / "tuned.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAITON_DB", str(path))
        selection.reload()
        yield path
    selection.reload()
