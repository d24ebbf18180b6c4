"""The identity of a cell: pinned, injective, and closed to values that would be stored wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paiton.cache.errors import RowRefused
from paiton.cache.key import Cell, Environment, compiler_digest

NAMES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6)
CELLS = st.builds(
    Cell,
    arch=NAMES,
    device=NAMES,
    kernel=NAMES,
    kernel_digest=NAMES,
    signature=NAMES,
    dtype=NAMES,
    batch=st.integers(1, 10**6),
)


def test_key_is_pinned(build: Any) -> None:
    # A change of this value orphans every stored row: it needs a migration.
    assert build.cell().key.hex() == "5c61403eef83b6edd19b654dfce7175e"
    assert compiler_digest(build.env()).hex() == "a6def2bfeb9efdc7"


@settings(max_examples=200, deadline=None)
@given(CELLS, CELLS)
def test_key_is_injective(a: Cell, b: Cell) -> None:
    assert (a.key == b.key) == (a == b)
    assert (a.differs(b) == ()) == (a == b)


@pytest.mark.parametrize("name", ["arch", "device", "kernel", "kernel_digest", "signature", "dtype", "batch"])
def test_every_field_is_in_the_key(build: Any, name: str) -> None:
    other = build.cell(**{name: 9 if name == "batch" else "other"})
    assert other.key != build.cell().key
    assert build.cell().differs(other) == (name,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("batch", -1),
        ("batch", True),
        ("batch", np.int64(8)),
        ("batch", 2**63),
        ("arch", ""),
        ("kernel", "a\x1fb"),
        ("device", "MI300X\n"),
        ("dtype", "\ud800"),
        ("signature", None),
    ],
)
def test_bad_field_is_refused_by_name(build: Any, name: str, value: object) -> None:
    with pytest.raises(RowRefused, match=f"cell field {name}="):
        build.cell(**{name: value})


def test_compiler_is_triton_source_and_toolkit(build: Any) -> None:
    base = compiler_digest(build.env())
    assert compiler_digest(build.env(gpu="x", driver="y", torch="z", policy="p", triton="9")) == base
    assert compiler_digest(build.env(triton_key="k2")) != base
    assert compiler_digest(build.env(toolkit="6.4")) != base
    assert compiler_digest(Environment(triton_key="ab", toolkit="c")) != compiler_digest(
        Environment(triton_key="a", toolkit="bc")
    )
