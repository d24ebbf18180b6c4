"""One file that a lookup asks: the user's database, or a shipped one. Standard library only (sqlite3)."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from .connection import BUSY_TIMEOUT_S, connect
from .errors import CorruptDatabase, translated
from .key import Cell
from .records import ENV_COLUMNS, SOURCE_COLUMNS, tuned_row
from .rows import TunedRow

_PROVENANCE = ", ".join(
    [f"env.{name} AS env_{name}" for name in ENV_COLUMNS]
    + [f"source.{name} AS source_{name}" for name in SOURCE_COLUMNS]
)
_ROW = f"SELECT tuned.*, {_PROVENANCE} FROM tuned JOIN env ON env.id = env JOIN source ON source.id = source"
# Bound: the cell, and the two digests of the running compiler: with its toolkit, and without as estimates have it.
_BEST = (
    f"{_ROW} WHERE tuned.key = ?1 ORDER BY label DESC, compiler IN (?2, ?3) DESC, samples DESC, ts_ms DESC,"
    " coalesce(us_median, 1e30), coalesce(score, 1e30), row_digest DESC LIMIT 1"
)
_SITE = (
    "SELECT DISTINCT device, kernel_digest, batch FROM tuned"
    " WHERE kernel = ? AND signature = ? AND dtype = ? AND arch = ?"
)
_SITES = "SELECT DISTINCT device, kernel_digest, batch, kernel, signature, dtype, arch FROM tuned"
_SIGNATURES = "SELECT DISTINCT signature FROM tuned WHERE kernel = ? AND kernel_digest = ? AND dtype = ? AND arch = ?"
# Nearest first: fewest key fields that differ, then the nearest bucket, then the better label.
_NEAR = (
    f"{_ROW} WHERE kernel = :kernel ORDER BY (arch <> :arch) + (device <> :device) + (signature <> :signature)"
    " + (kernel_digest <> :kernel_digest) + (dtype <> :dtype) + (batch <> :batch),"
    " 1.0 * max(batch, :batch) / min(batch, :batch), label DESC, tuned.key, compiler LIMIT :limit"
)


class Site(NamedTuple):
    """What all rows that could serve a problem on one arch share; their device, kernel version and batch vary."""

    kernel: str
    signature: str
    dtype: str
    arch: str


Stored = tuple[str, str, int]
"""Device, kernel digest and batch of a row."""


class Layer:
    """Questions to one file. Each raises StoreError when the file is damaged or gone; not safe between threads."""

    def __init__(self, path: Path, *, is_shipped: bool, timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self._is_shipped = is_shipped
        self._connection = connect(path, read_only=True, is_immutable=is_shipped, timeout_s=timeout_s)
        self._connection.row_factory = sqlite3.Row
        self._sites: dict[Site, list[Stored]] | None = None

    def close(self) -> None:
        self._connection.close()

    def best(self, key: bytes, compilers: tuple[bytes, bytes]) -> list[TunedRow]:
        """The best row of a cell, or none; of equal labels one of `compilers` comes first."""
        return self._rows(_BEST, (key, *compilers))

    def near(self, cell: Cell, limit: int) -> list[TunedRow]:
        """The rows of the cell's kernel that differ from it in the fewest fields, nearest first."""
        return self._rows(_NEAR, {**asdict(cell), "limit": limit})

    def stored(self, site: Site) -> list[Stored]:
        """The rows of a site, best or not, each once."""
        if not self._is_shipped:
            return [tuple(found) for found in self._ask(_SITE, site)]
        return self._all_sites().get(site, [])

    def signatures(self, kernel: str, kernel_digest: str, dtype: str, arch: str) -> list[str]:
        """The problems of one kernel version with a row, each once."""
        if not self._is_shipped:
            return [signature for (signature,) in self._ask(_SIGNATURES, (kernel, kernel_digest, dtype, arch))]
        return [
            site.signature
            for site, stored in self._all_sites().items()
            if (site.kernel, site.dtype, site.arch) == (kernel, dtype, arch)
            and any(digest == kernel_digest for _, digest, _ in stored)
        ]

    def _all_sites(self) -> dict[Site, list[Stored]]:
        """A shipped file has no index by site: all are read at the first question that is not for an exact row."""
        if self._sites is None:
            sites = defaultdict(list)
            for device, digest, batch, *site in self._ask(_SITES, ()):
                sites[Site(*site)].append((device, digest, batch))
            self._sites = sites
        return self._sites

    def _ask(self, sql: str, values: Any) -> list[sqlite3.Row]:
        with translated(self.path):
            return self._connection.execute(sql, values).fetchall()

    def _rows(self, sql: str, values: Any) -> list[TunedRow]:
        return [_checked(dict(found)) for found in self._ask(sql, values)]


def _checked(values: dict[str, Any]) -> TunedRow:
    """The row, if its digests are those of its content: a flipped bit in a file must not become a config."""
    row = tuned_row(values)
    if values["key"] != row.cell.key or values["row_digest"] != row.digest:
        raise CorruptDatabase(f"row for {row.cell} of table tuned is damaged: its digests do not match")
    return row
