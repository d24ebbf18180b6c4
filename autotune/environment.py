"""The conditions under which a number was obtained, as recorded beside it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from ..cache.key import Environment
from ..search_spaces.arch import Device
from ..version import __version__


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


def toolkit() -> str:
    """The toolkit that torch was built with: it brings the driver's counterpart on a machine with a GPU."""
    import torch

    return f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"


def running_environment() -> Environment | None:
    """What compiles here, to be compared with the environment of stored answers; None where Triton is not installed.

    Without a GPU the toolkit stays unknown: what torch was built with says nothing of the machine that will serve.
    """
    try:
        key = triton_source_key()
    except ImportError:
        return None
    from .local_gpu import find_local_gpu

    return Environment(
        triton=installed_version("triton"), triton_key=key, toolkit=toolkit() if find_local_gpu() else ""
    )


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
