"""Which transformers the tests run with: the one that `make test` says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import transformers

OLDEST = Path(__file__).parent / "transformers-oldest.txt"


@pytest.mark.transformers_versions
def test_the_version_that_is_meant_is_imported() -> None:
    wanted = os.environ.get("PAITON_TEST_TRANSFORMERS")
    if wanted is not None:
        assert transformers.__version__ == wanted
        assert f"transformers=={wanted}" in OLDEST.read_text(encoding="utf-8").splitlines()


def test_the_oldest_is_the_one_that_is_promised() -> None:
    promised = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (pinned,) = (line for line in OLDEST.read_text(encoding="utf-8").splitlines() if line.startswith("transformers=="))
    assert f'"transformers>={pinned.removeprefix("transformers==").removesuffix(".0")}"' in promised
