"""The conditions under which a number was obtained, as recorded beside it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from ..cache.key import Environment
from ..search_spaces.arch import Device


def installed_version(package: str) -> str:
    """The version of an installed package, empty where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def triton_source_key() -> str:
    """Digest of Triton's own sources and compiler library: a version number does not change in nightly builds."""
    import hashlib

    from triton.runtime.cache import triton_key

    return hashlib.blake2b(triton_key().encode(), digest_size=16).hexdigest()


def offline_environment(device: Device, model_version: str) -> Environment:
    """Where an estimate comes from: no GPU, the target compiler and the version of the static model."""
    return Environment(
        arch_raw=device.arch.name,
        triton=installed_version("triton"),
        triton_key=triton_source_key(),
        torch=installed_version("torch"),
        paiton=__version__,
        policy=f"static model {model_version}, compiled ahead of time, not run",
    )
