"""Several processes on one file: first start, and writers that are killed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from paiton.cache.rows import RunStatus
from paiton.cache.store import ConfigStore

BUILD = """
import sys
from paiton.cache.key import Cell, Environment
from paiton.cache.rows import Label, TrialRow, TrialState, TunedRow
from paiton.cache.store import ConfigStore

env = Environment(triton_key="k")
def cell(batch):
    return Cell(arch="gfx942", device="MI300X", kernel="moe_down", kernel_digest="d1",
                signature="experts=128,hidden=2048,inter=768,top_k=8", dtype="bf16", batch=batch)
def trial(told, worker=""):
    return TrialRow(cell=cell(8), params_json="{}", state=TrialState.OK, told=told, worker=worker)
def tuned(batch, score):
    return TunedRow(cell=cell(batch), label=Label.ESTIMATED, env=env, config_json="{}", score=score)
"""

START = (
    BUILD
    + """
number = int(sys.argv[2])
sys.stdin.readline()
with ConfigStore.open(sys.argv[1]) as store:
    run = store.begin_run({"number": number}, number, env)
    store.record_trials(run, [trial(float(number))] * 3)
    store.put_tuned(tuned(number + 1, 1.0))
"""
)

WRITE = (
    BUILD
    + """
with ConfigStore.open(sys.argv[1]) as store:
    run = store.begin_run({}, 0, env)
    for number in range(1, 100000):
        store.record_trials(run, [trial(float(number), "single")])
        print("single", number, flush=True)
        store.record_trials(run, [trial(float(number), "batch")] * 5)
        print("batch", number, flush=True)
        store.put_tuned(tuned(number, float(number)))
        print("tuned", number, flush=True)
"""
)


def spawn(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_eight_processes_start_on_a_missing_file(path: Path) -> None:
    processes = [spawn(START, str(path), str(number)) for number in range(8)]
    for process in processes:  # all are waiting for this line: the race starts here
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [error for error in errors if error] == []
    with ConfigStore.open(path) as store:
        assert sorted(run.seed for run in store.runs()) == list(range(8))
        assert [row.cell.batch for row in store.tuned()] == list(range(1, 9))
        assert list(store.trial_counts().values()) == [24]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM meta").fetchone() == (2,)
    connection.close()


def test_opening_waits_out_the_switch_to_wal(path: Path, build: Any) -> None:
    # While another connection switches the journal mode SQLite says "locked" at once, whatever the timeout.
    with ConfigStore.open(path) as store:
        store.put_tuned(build.estimated())
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.3, other.rollback)
    release.start()
    with ConfigStore.open(path, timeout_s=0.0) as store:
        assert store.find(build.cell()) is not None
    release.join()
    other.close()


@pytest.mark.parametrize("acknowledgements", [1, 8, 29, 64])
def test_killed_writer_loses_no_acknowledged_row(path: Path, build: Any, acknowledgements: int) -> None:
    process = spawn(WRITE, str(path))
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(acknowledgements)]
    process.send_signal(signal.SIGKILL)
    rest, error = process.communicate(timeout=60)
    assert error == "" and process.returncode == -signal.SIGKILL
    acknowledged = "".join(lines) + rest[: rest.rfind("\n") + 1]
    last = {"single": 0, "batch": 0, "tuned": 0}
    for line in acknowledged.splitlines():
        kind, number = line.split()
        last[kind] = int(number)
    assert sum(last.values()) >= acknowledgements

    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with ConfigStore.open(path) as store:
        told: dict[str, list[float]] = {"single": [], "batch": []}
        for row in store.trials(build.cell()):
            told[row.worker].append(row.told)
        # What was acknowledged is there, at most one write beyond it, and each batch whole or not at all.
        for kind, size in (("single", 1), ("batch", 5)):
            count = len(told[kind]) // size
            assert count in (last[kind], last[kind] + 1)
            assert told[kind] == [float(n) for n in range(1, count + 1) for _ in range(size)]
        tuned = [(row.cell.batch, row.score) for row in store.tuned()]
        assert len(tuned) in (last["tuned"], last["tuned"] + 1)
        assert tuned == [(n, float(n)) for n in range(1, len(tuned) + 1)]
        (killed,) = store.runs()
        assert killed.status is RunStatus.RUNNING
        store.finish_run(killed.run, RunStatus.INTERRUPTED)
        run = store.begin_run({}, 1, build.env())
        assert store.record_trial(run, build.trial()) == 0
