"""The read path of a server: it answers as the store does, imports nothing heavy, serves no wrong row."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paiton.cache.answer import Tier
from paiton.cache.key import Cell, compiler_digest
from paiton.cache.lookup import Lookup
from paiton.cache.rows import Label, TunedRow
from paiton.cache.store import ConfigStore


def filled(path: Path, *rows: TunedRow) -> Path:
    with ConfigStore.open(path) as store:
        for row in rows:
            store.put_tuned(row)
    return path


def test_exact(path: Path, build: Any) -> None:
    row = build.measured(us_p10=19.0, us_default=33.0, ts_ms=7)
    with Lookup.open(filled(path, row)) as lookup:
        answer = lookup.find(row.cell)
    assert answer.row == row
    assert (answer.config_json, answer.label, answer.tier) == (row.config_json, Label.MEASURED, Tier.EXACT)
    assert answer.reason == "exact; measured"


def test_the_default_can_be_the_answer(path: Path, build: Any) -> None:
    with Lookup.open(filled(path, build.measured(config_json=None))) as lookup:
        answer = lookup.find(build.cell())
    assert answer.config_json is None and answer.tier is Tier.EXACT
    assert answer.reason == "exact; measured; the default is best"


@pytest.mark.parametrize(
    ("buckets", "asked", "served"),
    [
        ([2, 4, 8], 3, 4),
        ([2, 8], 4, 8),  # equally far: a bucket is an upper bound, so the larger
        ([2, 16], 4, 2),
        ([1, 64], 8, None),  # inside the range, but too far from both ends
        ([1, 2, 4], 5, None),  # one token outside what was tuned
        ([2, 4], 1, None),
        ([256], 128, None),  # a single bucket covers only itself
        ([128, 256], 129, 128),
    ],
)
def test_other_batch(path: Path, build: Any, buckets: list[int], asked: int, served: int | None) -> None:
    with Lookup.open(filled(path, *(build.estimated(build.cell(batch=b)) for b in buckets))) as lookup:
        answer = lookup.find(build.cell(batch=asked))
    if served is None:
        assert (answer.tier, answer.config_json, answer.label, answer.row) == (Tier.DEFAULT, None, None, None)
        assert answer.reason.startswith(f"default: batch {asked} is too far from the tuned buckets {buckets[0]}")
    else:
        assert answer.tier is Tier.OTHER_BATCH
        assert answer.row is not None and answer.row.cell.batch == served
        assert answer.reason == f"batch {served} serves batch {asked}; estimated"


def test_distance_is_configurable(path: Path, build: Any) -> None:
    filled(path, *(build.estimated(build.cell(batch=b)) for b in (1, 64)))
    with Lookup.open(path, max_log2_distance=3.0) as lookup:
        assert lookup.find(build.cell(batch=8)).reason == "batch 64 serves batch 8; estimated"
    with Lookup.open(path, max_log2_distance=0.0) as lookup:
        assert lookup.find(build.cell(batch=63)).tier is Tier.DEFAULT


def test_beyond_the_tuned_range_only_when_said(path: Path, build: Any) -> None:
    filled(path, *(build.estimated(build.cell(batch=b)) for b in (4, 8)))
    with Lookup.open(path) as lookup, Lookup.open(path, beyond_range=True) as wide:
        for asked, served in ((3, 4), (2, 4), (12, 8), (16, 8), (1, None), (17, None)):
            assert lookup.find(build.cell(batch=asked)).tier is Tier.DEFAULT
            row = wide.find(build.cell(batch=asked)).row
            assert (row.cell.batch if row else None) == served


def test_other_device_of_the_same_arch(path: Path, build: Any) -> None:
    theirs = [
        build.estimated(build.cell(device="MI325X", batch=8)),
        build.measured(build.cell(device="MI300A", batch=8)),
        build.measured(build.cell(arch="gfx950", device="MI355X", batch=8)),
    ]
    with Lookup.open(filled(path, *theirs)) as lookup:
        answer = lookup.find(build.cell())
        assert answer.tier is Tier.OTHER_DEVICE
        assert answer.reason == "tuned on MI300A, not MI300X; measured"
        far = lookup.find(build.cell(batch=64))
        assert far.tier is Tier.DEFAULT
        assert far.reason == "default: no bucket near batch 64, only on other devices (MI300A, MI325X)"
        none = lookup.find(build.cell(arch="gfx90a", device="MI250X"))
        assert none.reason == f"default: no row for {build.cell(arch='gfx90a', device='MI250X')}"


def test_own_device_comes_before_another_device(path: Path, build: Any) -> None:
    rows = [build.estimated(build.cell(batch=b)) for b in (4, 16)] + [build.measured(build.cell(device="MI325X"))]
    with Lookup.open(filled(path, *rows)) as lookup:
        assert lookup.find(build.cell(batch=8)).reason == "batch 16 serves batch 8; estimated"


def test_another_kernel_version_is_never_served(path: Path, build: Any) -> None:
    old = [build.measured(build.cell(kernel_digest="old", batch=b)) for b in (4, 8, 16)]
    with Lookup.open(filled(path, *old)) as lookup:
        answer = lookup.find(build.cell())
    assert answer.config_json is None and answer.tier is Tier.DEFAULT
    assert answer.reason == ("default: 3 row(s) of another kernel version, never served; they can seed a new search")


def test_another_compiler_is_flagged(path: Path, build: Any) -> None:
    row = build.measured(env=build.env(triton="3.5.0", triton_key="old"))
    filled(path, row)
    with Lookup.open(path, running=build.env(triton_key="new")) as lookup:
        answer = lookup.find(build.cell())
    assert answer.config_json == row.config_json
    assert answer.reason == "exact; measured; under another compiler (Triton 3.5.0), retune to confirm"
    with Lookup.open(path, running=row.env) as lookup:
        assert lookup.find(build.cell()).reason == "exact; measured"


def test_a_toolkit_counts_where_both_are_known(path: Path, build: Any) -> None:
    """An estimate has none, a machine without a GPU has none; that alone is no other compiler."""
    measured = build.measured(build.cell(batch=1), env=build.env(toolkit="ROCm 7.0"))
    filled(path, measured, build.estimated(build.cell(batch=2)))
    filled(path, build.estimated(build.cell(batch=2), env=build.env(triton_key="old"), score=1.0, ts_ms=2**60))
    for toolkit, is_flagged in (("ROCm 7.0", False), ("", False), ("ROCm 7.1", True)):
        with Lookup.open(path, running=build.env(toolkit=toolkit)) as lookup:
            assert ("under another compiler" in lookup.find(measured.cell).reason) == is_flagged
            assert lookup.find(build.cell(batch=2)).reason == "exact; estimated", "this Triton's, though older"


def test_label_comes_before_compiler(path: Path, build: Any) -> None:
    theirs = build.measured(env=build.env(triton_key="theirs"), ts_ms=1)
    mine = build.estimated(env=build.env(triton_key="mine"), ts_ms=2)
    older = build.estimated(env=build.env(triton_key="older"), ts_ms=1)
    filled(path, mine, older)
    with Lookup.open(path, running=older.env) as lookup:
        assert lookup.find(build.cell()).row == older
    filled(path, theirs)
    with Lookup.open(path, running=older.env) as lookup:
        assert lookup.find(build.cell()).row == theirs


ENVS = [{"triton_key": "k1"}, {"triton_key": "k2"}, {"triton_key": "k1", "driver": "2"}]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_lookup_agrees_with_the_store(tmp_path_factory: Any, build: Any, data: st.DataObject) -> None:
    cells = st.builds(
        build.cell,
        batch=st.sampled_from([1, 2, 3, 8, 64]),
        device=st.sampled_from(["MI300X", "MI325X"]),
        kernel_digest=st.sampled_from(["d1", "d2"]),
    )
    envs = st.sampled_from([build.env(**values) for values in ENVS])
    rows = st.one_of(
        st.builds(build.estimated, cells, env=envs, score=st.sampled_from([1.0, 2.0]), ts_ms=st.integers(1, 3)),
        st.builds(build.measured, cells, env=envs, samples=st.integers(1, 2), ts_ms=st.integers(1, 3)),
    )
    path = filled(tmp_path_factory.mktemp("agree") / "p.db", *data.draw(st.lists(rows, max_size=8)))
    asked = data.draw(st.lists(cells, min_size=1, max_size=4))
    running = data.draw(st.sampled_from([None, *(build.env(**values) for values in ENVS)]))
    compiler = None if running is None else compiler_digest(running)
    with ConfigStore.open(path, read_only=True) as store, Lookup.open(path, running=running) as lookup:
        for cell in asked:
            answer = lookup.find(cell)
            exact = store.find(cell, compiler=compiler)
            assert (answer.tier is Tier.EXACT) == (exact is not None)
            if exact is not None:
                assert answer.row == exact
            if answer.row is not None:
                # Whatever the tier, the row served is the store's answer for the cell it is filed under.
                assert answer.row == store.find(answer.row.cell, compiler=compiler)
                assert answer.row.cell.kernel_digest == cell.kernel_digest
                assert set(cell.differs(answer.row.cell)) <= {"batch", "device"}
            else:
                assert not any(near(cell, row.cell, store) for row in store.tuned())


def near(cell: Cell, other: Cell, store: ConfigStore) -> bool:
    """The rule in words: same site, within a factor of two, inside the range of that device."""
    if not set(cell.differs(other)) <= {"batch", "device"}:
        return False
    batches = [r.cell.batch for r in store.tuned() if not set(r.cell.differs(other)) - {"batch"}]
    return min(batches) <= cell.batch <= max(batches) and 0.5 <= other.batch / cell.batch <= 2


def test_explain_names_the_field_that_differs(path: Path, build: Any) -> None:
    rows = [
        build.estimated(build.cell(batch=8)),
        build.estimated(build.cell(batch=8), env=build.env(triton_key="k0"), score=9.0, ts_ms=1),
        build.estimated(build.cell(batch=16)),
        build.estimated(build.cell(kernel_digest="old")),
        build.estimated(build.cell(dtype="fp16")),
        build.estimated(build.cell(kernel="moe_gate_up")),
    ]
    with Lookup.open(filled(path, *rows)) as lookup:
        explanation = lookup.explain(build.cell(batch=8))
        missing = lookup.explain(build.cell(batch=64))
        assert len(lookup.explain(build.cell(batch=64), limit=2).considered) == 2
    assert explanation.answer.reason == "exact; estimated"
    assert [(c.differs, c.verdict) for c in explanation.considered] == [
        ((), "served"),
        ((), "same cell, weaker evidence"),
        (("kernel_digest",), "another kernel version: a seed, never served"),
        (("dtype",), "another problem"),
        (("batch",), "usable, but a nearer row was served"),
    ]
    assert missing.answer.tier is Tier.DEFAULT
    assert missing.considered[0].differs == ("batch",)
    assert missing.considered[0].verdict == "too far, or outside the tuned range"


def test_an_answer_is_remembered(path: Path, build: Any) -> None:
    lookup = Lookup.open(filled(path, build.estimated()))
    first = lookup.find(build.cell())
    lookup.close()
    assert lookup.find(build.cell()) is first


def test_threads_share_one_lookup(path: Path, build: Any) -> None:
    filled(path, *(build.estimated(build.cell(batch=b), score=float(b)) for b in range(1, 65)))
    wrong: list[int] = []
    with Lookup.open(path) as lookup:

        def ask() -> None:
            for batch in range(1, 65):
                row = lookup.find(build.cell(batch=batch)).row
                if row is None or row.score != float(batch):
                    wrong.append(batch)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_reader_sees_committed_rows_of_a_live_writer(store: ConfigStore, path: Path, build: Any) -> None:
    store.put_tuned(build.estimated())
    with Lookup.open(path) as lookup:
        assert lookup.find(build.cell()).tier is Tier.EXACT
        store.put_tuned(build.estimated(build.cell(batch=16)))
        assert lookup.find(build.cell(batch=16)).tier is Tier.EXACT


def test_nothing_heavy_is_imported(path: Path, build: Any) -> None:
    filled(path, build.estimated())
    code = (
        "import sys\n"
        "from paiton.cache.lookup import Lookup\n"
        "from paiton.cache.key import Cell\n"
        f"cell = {build.cell()!r}\n"
        "answer = Lookup.open(sys.argv[1]).find(cell)\n"
        "heavy = {'sqlalchemy', 'torch', 'triton', 'optuna', 'numpy', 'ray', 'alembic'}\n"
        "print(answer.reason, sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "exact; estimated []\n", done.stderr
