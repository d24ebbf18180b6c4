"""Paiton, an open kernel autotuning compiler for AMD and NVIDIA GPUs.

Importing the package imports nothing heavy: the public names are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .autotune.api import tune
    from .cache.store import ConfigStore
    from .compiler.enable import compile, uncompile
    from .compiler.explain import explain
    from .compiler.registration import register
    from .compiler.selection import reload

__all__ = ["ConfigStore", "__version__", "compile", "explain", "register", "reload", "tune", "uncompile"]

_HOME_OF = {
    "ConfigStore": "cache.store",
    "compile": "compiler.enable",
    "explain": "compiler.explain",
    "register": "compiler.registration",
    "reload": "compiler.selection",
    "tune": "autotune.api",
    "uncompile": "compiler.enable",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
