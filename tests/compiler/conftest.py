"""Every test of the backend begins with nothing compiled, nothing reported and nothing said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from paiton.compiler import log
from paiton.compiler.report import history


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    log.forget()
    history.clear()
    yield
    torch._dynamo.reset()
