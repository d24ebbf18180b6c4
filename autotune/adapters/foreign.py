"""A kernel that another project owns, as the tuner and the GPU worker see kernels of ours."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ...kernels_triton.launch import Plan
from ...kernels_triton.spec import KernelSpec
from ..environment import installed_version


class AdapterUnavailable(ValueError):
    """A kernel of another project cannot be tuned here; one line says what is missing and what works without."""


@dataclass(frozen=True)
class ForeignPlan(Plan):
    """A call of somebody else's function, which allocates its outputs and launches as it likes."""

    call: Callable[[], torch.Tensor] | None = None

    def run(self) -> tuple[torch.Tensor, ...]:
        """Call it; the outputs are new ones each time."""
        assert self.call is not None
        return (self.call(),)


@dataclass(frozen=True)
class ForeignSpec(KernelSpec):
    """A spec whose source is not ours: its version stands in the key of every row."""

    source: str = ""

    @property
    def digest(self) -> str:
        """Of the project's release and of its kernel's source: another vLLM is another kernel."""
        return self.source


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """How to reach one kernel of another project.

    `sources` are the files of the kernel below the package, and `make_spec(digest)` the spec; it may import the
    package, which everything else here leaves alone: looking for it is cheap and needs no GPU.
    """

    kernel: str
    project: str
    package: str
    install: str
    sources: tuple[str, ...]
    make_spec: Callable[[str], ForeignSpec]

    def spec(self) -> ForeignSpec:
        """The spec of the installed release. Raises AdapterUnavailable."""
        return self.make_spec(self.digest())

    def check(self, *, measures: bool) -> None:
        """Raise AdapterUnavailable unless this machine can tune the kernel: the package and the GPU are needed."""
        self.digest()
        if not measures:
            raise AdapterUnavailable(
                f"{self.kernel} is {self.project}'s kernel: it can only be measured, on a machine with the GPU, not"
                " estimated. Without one, tune --kernel moe_grouped and write it out with"
                f" `autotune export --for {self.package}`"
            )

    def digest(self) -> str:
        """16 hex digits over the release and the kernel's source files. Raises AdapterUnavailable."""
        found = importlib.util.find_spec(self.package)
        folders = list(found.submodule_search_locations or ()) if found is not None else []
        paths = [Path(folder, source) for folder in folders[:1] for source in self.sources]
        if not paths or not all(path.is_file() for path in paths):
            what = "is not installed" if found is None else f"has no {', '.join(self.sources)}"
            raise AdapterUnavailable(
                f"--kernel {self.kernel} tunes {self.project}'s own kernel and needs {self.project} in this"
                f" environment, where {self.package} {what} ({self.install}). Without it, tune --kernel moe_grouped"
                f" and write it out with `autotune export --for {self.package}`"
            )
        hasher = hashlib.blake2b(installed_version(self.package).encode() + b"\x1f", digest_size=8)
        for path in paths:
            hasher.update(path.read_bytes() + b"\x1e")
        return hasher.hexdigest()
