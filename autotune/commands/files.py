"""What the commands that pass databases around share: refusals in one line, and rows as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ...cache.rows import TunedRow


@contextmanager
def refusals() -> Iterator[None]:
    """A refused file, row or signature ends the command with one line and exit status 1."""
    from ...cache.errors import RowRefused
    from ...cache.formats.peer_file import FormatRefused
    from ...cache.manifest import SignatureRefused
    from ...cache.untrusted import Refused

    try:
        yield
    except (Refused, SignatureRefused, FormatRefused, RowRefused) as error:
        raise click.ClickException(" ".join(str(error).split())) from None


def own_answers(path: Path) -> list[TunedRow]:
    """All answers of the user's own database. Raises StoreError."""
    from ...cache.store import ConfigStore

    with ConfigStore.open(path, read_only=True) as store:
        return store.tuned()


def digests_of(rows: Iterable[TunedRow]) -> dict[str, str]:
    """The digest of the present version of every kernel of ours among the rows."""
    from ...kernels_triton.registry import spec_of
    from ...search_spaces.registry import KERNEL_NAMES

    return {kernel: spec_of(kernel).digest for kernel in sorted({row.cell.kernel for row in rows} & set(KERNEL_NAMES))}


def plain(row: TunedRow) -> dict[str, Any]:
    """The row as JSON data, as in a file of lines."""
    import json

    from ...cache.row_text import line_of

    return dict(json.loads(line_of(row)))


def counted(number: int, noun: str) -> str:
    """`1 answer`, `2 answers`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
