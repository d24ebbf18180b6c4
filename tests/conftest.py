"""What every test shares: the Triton interpreter, private caches, and the rule for tests that need a GPU.

This file is read before any test module, so the environment is set before triton is imported.
"""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, and no verdict that depends on how busy the machine is.
settings.register_profile(
    "paiton", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("paiton")

if os.environ.get("PAITON_TEST_GPU") != "1":
    os.environ["TRITON_INTERPRET"] = "1"
else:
    os.environ.pop("TRITON_INTERPRET", None)

# The directory object lives as long as the session; it removes the folder when the interpreter ends.
_private = tempfile.TemporaryDirectory(prefix="paiton-tests-", ignore_cleanup_errors=True)
for _name, _leaf in {
    "PAITON_DB": "tuned.db",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "cache",
    "XDG_DATA_HOME": "data",
}.items():
    os.environ[_name] = str(Path(_private.name) / _leaf)
# What the wheel ships changes with every release: a test that is about it says so.
os.environ["PAITON_SHIPPED"] = "0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where they cannot run, and say why."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    reason = _why_no_gpu()
    if reason is not None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu() -> str | None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "needs a GPU and the compiler, and this run uses Triton's interpreter: set PAITON_TEST_GPU=1"
    import torch

    return None if torch.cuda.is_available() else "needs a GPU: torch.cuda.is_available() is false"
