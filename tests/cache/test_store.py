"""The contract of the store: what is put in comes out, in order, over runs and re-openings."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from paiton.cache.errors import DatabaseMissing, RowRefused, Unwritable
from paiton.cache.key import compiler_digest
from paiton.cache.rows import (
    Candidate,
    CompiledRow,
    Label,
    RunId,
    RunStatus,
    Source,
    TrialState,
    TunedRow,
)
from paiton.cache.schema import TUNED
from paiton.cache.store import ConfigStore, TunedFilter


def test_file_settings(store: ConfigStore, path: Path) -> None:
    with store._engine.connect() as connection:
        got = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "busy_timeout")
        }
    assert got == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "busy_timeout": 30_000,
    }
    store.close()
    header = path.read_bytes()[:100]
    assert header[68:72] == b"PAIT"
    assert int.from_bytes(header[60:64], "big") == 1


def test_closed_file_is_one_plain_file(store: ConfigStore, path: Path, build: Any) -> None:
    store.put_tuned(build.estimated())
    assert sorted(p.name for p in path.parent.iterdir()) == ["paiton.db", "paiton.db-shm", "paiton.db-wal"]
    with ConfigStore.open(path) as other:
        other.put_tuned(build.estimated())
    assert path.read_bytes()[18:20] == b"\2\2"  # still WAL: the first writer has it open
    store.close()
    assert path.read_bytes()[18:20] == b"\1\1"
    assert [p.name for p in path.parent.iterdir()] == ["paiton.db"]


def test_every_write_begins_immediate(store: ConfigStore, build: Any) -> None:
    statements: list[str] = []
    with store._engine.connect() as connection:
        connection.connection.driver_connection.set_trace_callback(statements.append)
    run = store.begin_run({}, 0, build.env())
    store.record_trial(run, build.trial())
    store.put_compiled([CompiledRow(key=b"k" * 16, state=TrialState.OK, seconds=1.0)])
    store.put_tuned(build.estimated())
    store.finish_run(run, RunStatus.DONE)
    begins = [s for s in statements if s.startswith("BEGIN")]
    assert begins == ["BEGIN IMMEDIATE"] * 5
    assert statements.count("COMMIT") == 5
    statements.clear()
    store.trials(build.cell())
    assert [s for s in statements if s.startswith("BEGIN")] == ["BEGIN DEFERRED"]


def test_run_is_recorded(store: ConfigStore, build: Any) -> None:
    run = store.begin_run({"model": "Qwen3", "batch_sizes": [1, 2]}, -7, build.env(policy="static model"))
    (begun,) = store.runs()
    assert (begun.run, begun.seed, begun.status, begun.ended_ms) == (run, -7, RunStatus.RUNNING, None)
    assert begun.arguments_json == '{"batch_sizes":[1,2],"model":"Qwen3"}'
    assert begun.env == build.env(policy="static model")
    store.finish_run(run, RunStatus.INTERRUPTED)
    (ended,) = store.runs()
    assert ended.status is RunStatus.INTERRUPTED
    assert ended.ended_ms is not None and ended.ended_ms >= ended.started_ms


def test_unknown_run_is_refused(store: ConfigStore, build: Any) -> None:
    with pytest.raises(RowRefused, match="is not in"):
        store.finish_run(RunId(b"x" * 16), RunStatus.DONE)
    with pytest.raises(RowRefused, match="FOREIGN KEY"):
        store.record_trial(RunId(b"x" * 16), build.trial())
    assert store.trials(build.cell()) == []
    with pytest.raises(RowRefused, match="seed="):
        store.begin_run({}, 2**63, build.env())


def test_trial_comes_back_as_it_was(store: ConfigStore, build: Any) -> None:
    run = store.begin_run({}, 0, build.env())
    rows = [
        build.trial(us=3.5, samples_us=(3.4, 3.6), told=3.5, worker="gpu0", ts_ms=11),
        build.trial(score=0.1 + 0.2, told=0.30000000000000004, facts_json='{"lds":1024}', ts_ms=12),
        build.trial(state=TrialState.TIMEOUT, told=-1e300, error="60 s\nüber", model_version="2", ts_ms=13),
    ]
    assert [store.record_trial(run, row) for row in rows] == [0, 1, 2]
    got = store.trials(build.cell())
    assert [(row.run, row.no) for row in got] == [(run, 0), (run, 1), (run, 2)]
    stripped = [build.trial(**{**vars(row), "run": None, "no": None}) for row in got]
    assert stripped == rows


def test_trials_of_a_cell_come_in_order_over_runs(store: ConfigStore, path: Path, build: Any) -> None:
    cells = [build.cell(batch=1), build.cell(batch=2)]
    expected: dict[int, list[float]] = {1: [], 2: []}
    clock = iter([1000.0, 900.0, 800.0])  # a clock that is set back between runs
    told = 0.0
    for _ in range(3):
        now = next(clock)
        with ConfigStore.open(path, clock=lambda now=now: now) as again:
            run = again.begin_run({}, 0, build.env())
            for cell in (cells[0], cells[1], cells[0]):
                told += 1
                again.record_trial(run, build.trial(cell, told=told))
                expected[cell.batch].append(told)
    for cell in cells:
        assert [row.told for row in store.trials(cell)] == expected[cell.batch]
    assert store.trial_counts() == {cells[0]: 6, cells[1]: 3}
    assert store.trials(build.cell(kernel_digest="d2", batch=1)) == []


def test_trials_of_one_compiler(store: ConfigStore, build: Any) -> None:
    old, new = build.env(triton_key="old"), build.env(triton_key="new")
    for env, told in ((old, 1.0), (new, 2.0)):
        store.record_trial(store.begin_run({}, 0, env), build.trial(told=told))
    assert [row.told for row in store.trials(build.cell(), compiler=compiler_digest(new))] == [2.0]
    assert [row.told for row in store.trials(build.cell())] == [1.0, 2.0]


def test_batch_of_trials_is_all_or_none(store: ConfigStore, build: Any) -> None:
    run = store.begin_run({}, 0, build.env())
    assert store.record_trials(run, [build.trial(told=float(i)) for i in range(3)]) == [0, 1, 2]
    with store._engine.begin() as connection:  # rows are valid when made, so the refusal must be planted
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON trial WHEN new.told = 4 BEGIN SELECT raise(ABORT, 'no 4'); END"
        )
    with pytest.raises(RowRefused, match="no 4"):
        store.record_trials(run, [build.trial(told=3.0), build.trial(told=4.0)])
    assert [row.told for row in store.trials(build.cell())] == [0.0, 1.0, 2.0]
    assert store.record_trials(run, []) == []
    assert store.record_trial(run, build.trial()) == 3


def test_two_stores_number_one_run_without_clash(store: ConfigStore, path: Path, build: Any) -> None:
    run = store.begin_run({}, 0, build.env())
    with ConfigStore.open(path) as other:
        numbers = [s.record_trial(run, build.trial()) for s in (store, other, store, other)]
    assert numbers == [0, 1, 2, 3]


def test_compiled_results_are_shared_and_replaced(store: ConfigStore, path: Path) -> None:
    rows = [
        CompiledRow(key=i.to_bytes(16, "big"), state=TrialState.OK, seconds=0.5, facts_json='{"vgprs":64}', ts_ms=1)
        for i in range(1201)
    ]
    store.put_compiled(rows)
    with ConfigStore.open(path) as other:
        assert other.compiled(row.key for row in rows) == {row.key: row for row in rows}
        failed = CompiledRow(key=rows[7].key, state=TrialState.TIMEOUT, seconds=60.0, error="60 s", ts_ms=2)
        other.put_compiled([failed])
    assert store.compiled([rows[7].key, rows[8].key, b"?" * 16]) == {failed.key: failed, rows[8].key: rows[8]}
    assert store.compiled([]) == {}


def test_tuned_comes_back_as_it_was(store: ConfigStore, path: Path, build: Any) -> None:
    estimated = build.estimated(
        shortlist=(
            Candidate(config_json='{"BLOCK_M":16}', score=10),
            Candidate(config_json="{}", score=11.5),
        ),
        facts_json='{"lds":65536}',
        compute_units=304,
        ts_ms=5,
    )
    measured = build.measured(
        build.cell(batch=16),
        us_p10=19.0,
        us_p90=22.5,
        us_default=30.25,
        score=1.5,
        config_json=None,
        source=Source(name="amd lab", licence="Apache-2.0"),
        ts_ms=6,
    )
    assert store.put_tuned(estimated) and store.put_tuned(measured)
    with ConfigStore.open(path, read_only=True) as reader:
        assert reader.tuned() == [estimated, measured]
        assert reader.find(estimated.cell) == estimated
        assert reader.find(build.cell(batch=32)) is None


def test_filter(store: ConfigStore, build: Any) -> None:
    rows = [
        build.estimated(build.cell(batch=4)),
        build.estimated(build.cell(batch=32)),
        build.estimated(build.cell(device="MI325X")),
        build.measured(build.cell(arch="sm_90", device="H200")),
    ]
    for row in rows:
        store.put_tuned(row)
    assert [row.cell for row in store.tuned()] == [row.cell for row in rows]
    assert [row.cell.batch for row in store.tuned(TunedFilter(device="MI300X"))] == [4, 32]
    assert [row.cell.device for row in store.tuned(TunedFilter(label=Label.MEASURED))] == ["H200"]
    assert [row.cell.device for row in store.tuned(TunedFilter(arch="gfx942", batch=8))] == ["MI325X"]
    assert store.tuned(TunedFilter(kernel="other")) == []


def test_find_prefers_label_then_compiler_then_evidence(store: ConfigStore, build: Any) -> None:
    mine, other = build.env(triton_key="mine"), build.env(triton_key="other")
    store.put_tuned(build.estimated(env=mine, ts_ms=1))
    store.put_tuned(build.estimated(env=other, ts_ms=2))
    cell = build.cell()
    assert store.find(cell).env == other
    assert store.find(cell, compiler=compiler_digest(mine)).env == mine
    store.put_tuned(build.measured(env=other, ts_ms=1))
    assert store.find(cell, compiler=compiler_digest(mine)).label is Label.MEASURED
    assert len(store.tuned()) == 2


def test_later_estimate_replaces_whatever_the_clock_says(path: Path, build: Any) -> None:
    for now, version in ((2000.0, "1"), (2000.0, "2"), (1000.0, "3")):
        with ConfigStore.open(path, clock=lambda now=now: now) as store:
            # Scores of two model versions do not compare: the later one counts even when it looks slower.
            assert store.put_tuned(build.estimated(model_version=version, score=10.0 * int(version)))
            assert store.find(build.cell()).model_version == version


def test_estimate_never_replaces_a_measurement(store: ConfigStore, build: Any) -> None:
    measured = build.measured(ts_ms=1)
    assert store.put_tuned(measured)
    assert not store.put_tuned(build.estimated(env=measured.env))
    assert store.find(build.cell()) == measured
    assert store.put_tuned(build.measured(us_median=99.0))
    assert store.find(build.cell()).us_median == 99.0


def test_same_row_twice_changes_nothing(store: ConfigStore, build: Any) -> None:
    row = build.measured(ts_ms=1)
    assert [store.put_tuned(row), store.put_tuned(row)] == [True, False]


@st.composite
def competing_rows(draw: st.DrawFn, build: Any) -> list[TunedRow]:
    """Rows for one cell and one compiler, full ties likely."""
    number = st.sampled_from([None, 1.0, 2.0])
    time = st.sampled_from([1, 2])
    measured = st.builds(
        build.measured,
        us_median=st.sampled_from([1.0, 2.0]),
        us_p10=number,
        samples=st.sampled_from([1, 2]),
        ts_ms=time,
        env=st.sampled_from([build.env(), build.env(driver="2")]),
    )
    config = st.sampled_from(["{}", '{"BLOCK_M":16}', None])
    estimated = st.builds(build.estimated, score=st.sampled_from([1.0, 2.0]), ts_ms=time, config_json=config)
    prior = st.builds(build.estimated, label=st.just(Label.PRIOR), score=number, ts_ms=time)
    return draw(st.lists(st.one_of(measured, estimated, prior), min_size=1, max_size=5))


def test_answer_does_not_depend_on_the_order(store: ConfigStore, build: Any) -> None:
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def holds(data: st.DataObject) -> None:
        rows = data.draw(competing_rows(build))
        answers = []
        for order in (rows, rows[::-1], data.draw(st.permutations(rows)), rows + rows):
            with store._write() as connection:
                connection.execute(delete(TUNED))
            for row in order:
                store.put_tuned(row)
            answers += store.tuned()
        assert answers == [answers[0]] * 4
        assert answers[0] in rows
        assert answers[0].label == max(row.label for row in rows)

    holds()


def test_read_only_creates_and_changes_nothing(path: Path, build: Any) -> None:
    with pytest.raises(DatabaseMissing, match=r"no database at .*paiton\.db"):
        ConfigStore.open(path, read_only=True)
    with pytest.raises(DatabaseMissing):
        ConfigStore.open(path.parent / "deep" / "paiton.db", read_only=True)
    assert list(path.parent.iterdir()) == []
    with ConfigStore.open(path) as store:
        store.put_tuned(build.estimated())
    before = path.read_bytes()
    with ConfigStore.open(path, read_only=True) as reader:
        assert len(reader.tuned()) == 1
        with pytest.raises(Unwritable, match="opened read-only"):
            reader.put_tuned(build.measured())
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["paiton.db"]


def test_awkward_path(tmp_path: Path, build: Any) -> None:
    path = tmp_path / "a b?c#d%20e&mode=ro" / "ü.db"
    with ConfigStore.open(path) as store:
        store.put_tuned(build.estimated())
    with ConfigStore.open(path, read_only=True) as reader:
        assert reader.find(build.cell()) is not None
    connection = sqlite3.connect(str(path))
    assert connection.execute("SELECT count(*) FROM tuned").fetchone() == (1,)
    connection.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a b?c#d%20e&mode=ro"]
