"""What makes a stored config applicable (`Cell`), and what makes its timing hold (`Environment`).

A cell is the unit of tuning: one kernel, at one version, for one problem, dtype and batch bucket on one
device. Everything in it is part of the key; a row whose cell differs in any field is a different row and is
never served as if it were this one. Standard library only: the read path of a server imports this file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property

from .checks import is_utf8
from .errors import RowRefused

_SEPARATOR = "\x1f"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Identity of a tuning cell.

    `arch` is the bare ISA name (`gfx942`, `sm_90`; no feature suffixes), `device` the catalogue name
    (`MI300X`); both are in the key because one ISA is sold with different numbers of compute units and
    bandwidths. `kernel_digest` covers the kernel's source and its declared space, `signature` the sorted
    problem dims (`k=4096,n=11008`), `batch` the bucket in tokens. Raises RowRefused on an empty,
    non-printable or mistyped field.
    """

    arch: str
    device: str
    kernel: str
    kernel_digest: str
    signature: str
    dtype: str
    batch: int

    def __post_init__(self) -> None:
        for name in ("arch", "device", "kernel", "kernel_digest", "signature", "dtype"):
            value: object = getattr(self, name)
            if not isinstance(value, str) or not value or not value.isprintable():
                raise RowRefused(f"cell field {name}={value!r}: expected printable text")
        # A numpy integer would be stored by sqlite3 as raw bytes, hence the exact type.
        if type(self.batch) is not int or not 0 < self.batch < 2**63:
            raise RowRefused(f"cell field batch={self.batch!r}: expected a positive int")

    @cached_property
    def key(self) -> bytes:
        """16-byte BLAKE2b of all fields in declared order: the primary key in the database."""
        text = _SEPARATOR.join(str(getattr(self, name)) for name in _CELL_FIELDS)
        return hashlib.blake2b(text.encode(), digest_size=16, person=b"paiton.cell").digest()

    def differs(self, other: Cell) -> tuple[str, ...]:
        """Names of the fields in which `other` is different, in declared order."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))

    def __str__(self) -> str:
        return f"{self.kernel} {self.signature} {self.dtype} batch {self.batch} on {self.arch} {self.device}"


_CELL_FIELDS = tuple(f.name for f in fields(Cell))


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a number comes from: recorded beside it, not part of the cell. Empty text means "not known here".

    `arch_raw` is the arch as the tool printed it, `toolkit` the ROCm or CUDA version, `triton_key` the digest
    of Triton's own sources (its version text alone does not change in nightly builds), `policy` the
    measurement conditions in words (L2 cold or warm, graph replay, routing set) or the name of the static
    model.
    """

    gpu: str = ""
    arch_raw: str = ""
    driver: str = ""
    toolkit: str = ""
    triton: str = ""
    triton_key: str = ""
    torch: str = ""
    paiton: str = ""
    policy: str = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            value: object = getattr(self, f.name)
            if not isinstance(value, str) or not is_utf8(value):
                raise RowRefused(f"environment field {f.name}={value!r}: expected text")

    @cached_property
    def digest(self) -> bytes:
        """16-byte BLAKE2b of all fields: equal environments share one row."""
        return _digest(tuple(getattr(self, f.name) for f in fields(self)), size=16, person=b"paiton.env")

    @cached_property
    def compiler(self) -> bytes:
        """8 bytes over Triton's source key and the toolkit: what must match for a stored timing to hold."""
        return _digest((self.triton_key, self.toolkit), size=8, person=b"paiton.compiler")


def is_other_compiler(env: Environment, running: Environment) -> bool:
    """Whether `running` compiles with another Triton than `env` did, or by another toolkit as far as both are known."""
    toolkits = {env.toolkit, running.toolkit} - {""}
    return env.triton_key != running.triton_key or len(toolkits) > 1


def compiler_digest(env: Environment) -> bytes:
    """`env.compiler`, the second part of a row's primary key."""
    return env.compiler


def _digest(parts: tuple[str, ...], *, size: int, person: bytes) -> bytes:
    # Lengths in front: free text may hold any separator one could choose.
    framed = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(framed.encode(), digest_size=size, person=person).digest()
