"""Paiton, an open kernel autotuning compiler for AMD and NVIDIA GPUs.

Importing the package imports nothing heavy: the public names are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autotune.api import tune
    from .cache.store import ConfigStore

__version__ = "0.1.0"
__all__ = ["ConfigStore", "__version__", "tune"]

_HOME_OF = {"ConfigStore": "cache.store", "tune": "autotune.api"}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
