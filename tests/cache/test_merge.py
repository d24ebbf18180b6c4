"""Digest, merge, diff and the shipped form: the same answers give the same text, bytes and result."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paiton.cache.diff import diff
from paiton.cache.digest import logical_digest, row_of_line
from paiton.cache.errors import RowRefused, Unwritable
from paiton.cache.export import write_shipped
from paiton.cache.key import Cell, Environment
from paiton.cache.lookup import Lookup
from paiton.cache.merge import evidence, identity, merge_into, merged
from paiton.cache.row_text import line_of
from paiton.cache.rows import Candidate, Label, Source, TunedRow
from paiton.cache.store import ConfigStore
from paiton.cache.untrusted import read_untrusted


def _row(batch: int, label: Label, config: int, us: float, samples: int, ts: int, triton: str, p10: float) -> TunedRow:
    cell = Cell(
        arch="gfx942", device="MI300X", kernel="moe_grouped", kernel_digest="d", signature="experts=8", dtype="bf16",
        batch=batch,
    )  # fmt: skip
    measured = label is Label.MEASURED
    return TunedRow(
        cell=cell, label=label, env=Environment(triton="3.7.1", triton_key=triton),
        config_json=None if config == 0 else f'{{"BLOCK_M":{config}}}', us_median=us if measured else None,
        us_p10=p10 if measured else None, samples=samples if measured else 0,
        score=None if measured else us, shortlist=(Candidate(config_json='{"A":1}', score=1.5),),
        facts_json='{"registers":7}', source=Source(name="other", licence="MIT"), ts_ms=ts,
    )  # fmt: skip


# Few values of each, so that ties and rivals are common.
rows = st.builds(
    _row, st.sampled_from([1, 2]), st.sampled_from(list(Label)), st.sampled_from([0, 16, 32]),
    st.sampled_from([1.0, 2.5]), st.sampled_from([1, 9]), st.sampled_from([1, 2]), st.sampled_from(["a", "b"]),
    st.sampled_from([0.5, 0.75]),
)  # fmt: skip
groups = st.lists(rows, max_size=6)


@given(rows)
def test_a_line_gives_its_row_back(row: TunedRow) -> None:
    assert row_of_line(line_of(row)) == row
    assert line_of(row_of_line(line_of(row))) == line_of(row)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[]", "no answer of ours"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"cell":{},"cell":{}}', "names a field twice"),
        ('{"cell":{}}', "missing or unknown"),
    ],
)
def test_other_lines_are_refused(line: str, why: str) -> None:
    with pytest.raises(RowRefused, match=why):
        row_of_line(line)


@pytest.mark.parametrize("part", ["NaN", "Infinity", "-1", "1e999", '"4"', "true", "[4]"])
def test_a_time_that_is_none_is_refused(part: str) -> None:
    line = line_of(_row(1, Label.MEASURED, 16, 3.25, 2, 5, "a", 0.5))
    with pytest.raises(RowRefused):
        row_of_line(line.replace('"us_median":3.25', f'"us_median":{part}'))


@given(groups, groups, groups)
def test_merge_is_commutative_associative_and_idempotent(
    a: list[TunedRow], b: list[TunedRow], c: list[TunedRow]
) -> None:
    assert merged(a, b) == merged(b, a)
    assert merged(merged(a, b), c) == merged(a, merged(b, c)) == merged(c, b, a)
    assert merged(a, a) == merged(merged(a)) == merged(a)


@settings(max_examples=15)
@given(groups, groups)
def test_the_database_merges_as_memory_does(
    tmp_path_factory: pytest.TempPathFactory, a: list[TunedRow], b: list[TunedRow]
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    with ConfigStore.open(folder / "one.db") as one, ConfigStore.open(folder / "two.db") as two:
        merge_into(one, a)
        merge_into(one, b)
        merge_into(two, b)
        merge_into(two, a)
        again = merge_into(two, b)
        assert logical_digest(one.tuned()) == logical_digest(two.tuned()) == logical_digest(merged(a, b))
        assert (again.added, again.replaced) == (0, 0)


@settings(max_examples=15)
@given(groups)
def test_a_shipped_file_gives_its_rows_back(tmp_path_factory: pytest.TempPathFactory, group: list[TunedRow]) -> None:
    path = tmp_path_factory.mktemp("ship") / "shipped.db"
    answers = merged(group)
    write_shipped(answers, path)
    assert read_untrusted(path, are_configs_checked=False) == answers
    with ConfigStore.open(path, read_only=True) as store:
        assert merged(store.tuned()) == answers


def test_a_merge_reports_what_it_did(store: ConfigStore, build: Any) -> None:
    mine = [build.estimated(build.cell(batch=b), ts_ms=5) for b in (1, 2, 4)]
    for row in mine:
        store.put_tuned(row)
    better = build.measured(build.cell(batch=1), ts_ms=5)
    weaker = build.estimated(build.cell(batch=2), label=Label.PRIOR, config_json='{"BLOCK_M":64}', ts_ms=9)
    new = build.estimated(build.cell(batch=8), ts_ms=5)
    report = merge_into(store, [better, weaker, new, mine[2]])
    assert (report.added, report.replaced, report.kept, report.same) == (1, 1, 1, 1)
    assert [(each.kept, each.dropped) for each in report.conflicts] == [(better, mine[0]), (mine[1], weaker)]
    assert {row.cell.batch: row for row in store.tuned()} == {1: better, 2: mine[1], 4: mine[2], 8: new}


def test_the_order_in_memory_is_the_order_in_sql(store: ConfigStore, build: Any) -> None:
    ladder = sorted(
        (build.measured(ts_ms=t, samples=n, us_median=us) for t in (1, 2) for n in (3, 4) for us in (5.0, 6.0)),
        key=evidence,
    )
    assert len({identity(row) for row in ladder}) == 1
    assert [store.put_tuned(row) for row in ladder] == [True] * len(ladder)
    assert [store.put_tuned(row) for row in reversed(ladder)] == [False] * len(ladder)


def test_diff_by_row_and_by_speed(build: Any) -> None:
    cells = [build.cell(batch=b) for b in (1, 2, 4, 8)]
    first = [build.measured(cells[0], us_median=20.0), build.measured(cells[1]), build.estimated(cells[2], score=8.0)]
    second = [
        build.measured(cells[0], us_median=10.0),
        build.measured(cells[1], config_json=None, us_median=40.0),
        build.estimated(cells[2], score=4.0, model_version="2"),
        build.estimated(cells[3]),
    ]
    found = diff(first, second)
    assert not found.is_equal and found.equal == 0
    assert [pair.first for pair in found.config_differs] == [first[1]]
    assert {pair.first.cell.batch for pair in found.evidence_differs} == {1, 4}
    assert found.only_first == () and found.only_second == (second[3],)
    assert {pair.first.cell.batch: pair.speedup for pair in found.speeds} == {1: 2.0, 2: 0.5}
    assert found.mean_speedup(Label.MEASURED) == pytest.approx(1.0)
    assert found.mean_speedup(Label.ESTIMATED) is None
    assert diff(first, list(reversed(first))).is_equal


def test_a_shipped_file_is_the_same_bytes_whatever_its_history(tmp_path: Path, build: Any) -> None:
    answers = [build.estimated(build.cell(batch=b, device=d), ts_ms=b) for b in range(1, 60) for d in ("A", "B")]
    answers += [build.measured(build.cell(batch=b), ts_ms=b) for b in range(1, 60)]
    files = []
    for seed in (1, 2):
        random.Random(seed).shuffle(answers)
        with ConfigStore.open(tmp_path / f"{seed}.db") as store:
            store.put_all_tuned(answers[: seed * 20])
            store.put_all_tuned(replace(row, ts_ms=1) for row in answers)
            store.put_all_tuned(answers)
            files.append(tmp_path / f"shipped {seed} # ?.db")
            assert write_shipped(store.tuned(), files[-1]) == len(answers)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes()[18:20] == b"\x01\x01"  # rollback journal: opens from a read-only place
    assert [each.name for each in tmp_path.iterdir() if "shipped" in each.name and each not in files] == []
    with ConfigStore.open(files[0], read_only=True) as shipped:
        assert logical_digest(shipped.tuned()) == logical_digest(answers)
    with Lookup.open(files[0]) as lookup:
        assert lookup.find(answers[0].cell).row == answers[0]
    tables = sqlite3.connect(files[0]).execute("SELECT name FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    assert {name for (name,) in tables} == {"tuned", "env", "source", "meta"}


def test_a_shipped_file_replaces_another_by_rename_or_not_at_all(tmp_path: Path, build: Any) -> None:
    path = tmp_path / "shipped.db"
    write_shipped([build.estimated()], path)
    before = path.read_bytes()
    with open(path, "rb") as reader:
        write_shipped([build.measured()], path)
        assert reader.read() == before
    with pytest.raises(RowRefused, match="UNIQUE"):  # two rows for one cell; the old file stays
        write_shipped([build.measured(), build.measured()], path)
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(Unwritable, match="is a folder"):
        write_shipped([], tmp_path)


def test_only_a_shipped_file_is_replaced(tmp_path: Path, store: ConfigStore, build: Any) -> None:
    store.put_tuned(build.estimated())
    (tmp_path / "notes.txt").write_text("mine" * 500)
    (tmp_path / "empty.db").touch()
    for path, why in ((store.path, "a working database with its trials"), (tmp_path / "notes.txt", "no database of")):
        before = path.read_bytes()
        with pytest.raises(Unwritable, match=why):
            write_shipped([build.measured()], path)
        assert path.read_bytes() == before
    assert write_shipped([build.measured()], tmp_path / "empty.db") == 1
