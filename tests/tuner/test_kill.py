"""A run that is killed loses nothing it had finished, leaves no process behind, and the next run goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ARGUMENTS = (
    "run", "--arch", "gfx942", "--model", "Qwen3-30B-A3B", "--kernel", "rms_norm", "--kernel", "router",
    "--batch-sizes", "1,4,8", "--jobs", "1",
)  # fmt: skip
PATIENCE_S = 240.0
TRIALS = "SELECT lower(hex(run)), no, lower(hex(cell)), params, state FROM trial ORDER BY run, no"


@dataclass
class Run:
    """A tuner in a process of its own."""

    process: subprocess.Popen[str]
    database: Path

    def trials(self) -> list[tuple[str, int, str, str, str]]:
        """The rows another process can see; none while the database is being made."""
        with contextlib.suppress(sqlite3.OperationalError):
            return rows_of(self.database)
        return []

    def wait_for(self, count: int) -> list[tuple[str, int, str, str, str]]:
        """The trials, once there are so many."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if len(rows := self.trials()) >= count:
                return rows
            assert self.process.poll() is None, "the run ended before it was killed"
            time.sleep(0.05)
        raise AssertionError(f"{len(self.trials())} trials after {PATIENCE_S:g} s, expected {count}")

    def workers(self) -> list[int]:
        """Its compile workers, found by their parent."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == self.process.pid]


def rows_of(database: Path) -> list[tuple[str, int, str, str, str]]:
    """Every trial in the file, read as a stranger would."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        return list(connection.execute(TRIALS))
    finally:
        connection.close()


def assert_sound(database: Path) -> None:
    """SQLite's own check of the whole file."""
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        connection.close()


def assert_nothing_twice(database: Path) -> None:
    """No config of a cell was evaluated a second time."""
    counts = Counter((cell, params) for _, _, cell, params, _ in rows_of(database))
    assert counts and max(counts.values()) == 1


def _status(pid: int) -> list[str]:
    """State, parent, ... of a process; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _parent(pid: int) -> int:
    status = _status(pid)
    return int(status[1]) if status else -1


def assert_ended(pids: list[int]) -> None:
    """The processes end by themselves within seconds: their input has ended."""
    deadline = time.monotonic() + 60
    while (left := [pid for pid in pids if _status(pid)[:1] not in ([], ["Z"])]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start runs into one database; whatever is left of them is killed in the end."""
    runs: list[Run] = []

    def start_run(*more: str) -> Run:
        command = [sys.executable, "-m", "paiton.autotune", *ARGUMENTS, "--db", str(tmp_path / "tuned.db"), *more]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        runs.append(Run(process, tmp_path / "tuned.db"))
        return runs[-1]

    yield start_run
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
        run.process.communicate()


def test_three_kills_lose_nothing(start: Callable[..., Run]) -> None:
    seen: list[tuple[str, int, str, str, str]] = []
    for more in (1, 7, 9):
        run = start()
        rows = run.wait_for(len(seen) + more)
        workers = run.workers()
        os.killpg(run.process.pid, signal.SIGKILL)
        assert run.process.wait() == -signal.SIGKILL
        assert_sound(run.database)
        kept = rows_of(run.database)
        assert set(seen) | set(rows) <= set(kept), "a finished trial is lost"
        assert_ended(workers)
        seen = kept
    last = start("--json")
    out, err = last.process.communicate(timeout=PATIENCE_S)
    assert last.process.returncode == 0, err
    summary = json.loads(out)
    assert summary["cells_tuned"] + summary["cells_known"] == summary["cells"] == 6
    assert summary["cells_known"] >= 1, "cells finished before the kills are not tuned again"
    assert not summary["cells_failed"] and summary["cells_left"] == 0
    assert_sound(last.database)
    assert set(seen) <= set(rows_of(last.database))
    assert len(rows_of(last.database)) == len(seen) + summary["trials"]
    assert_nothing_twice(last.database)
    connection = sqlite3.connect(last.database)
    statuses = [status for (status,) in connection.execute("SELECT status FROM run ORDER BY started_ms")]
    connection.close()
    assert statuses == ["running", "running", "running", "done"], "a killed run has nobody to say how it ended"


def test_an_interrupt_leaves_a_usable_database_and_says_how_to_go_on(start: Callable[..., Run]) -> None:
    run = start()
    rows = run.wait_for(2)
    workers = run.workers()
    assert workers, "it compiles in a process of its own"
    os.kill(run.process.pid, signal.SIGINT)
    out, err = run.process.communicate(timeout=PATIENCE_S)
    assert run.process.returncode == 130 and "Traceback" not in err
    assert re.search(r"Interrupted: [1-6] of 6 cells are left. The same command goes on from here.", out)
    assert_ended(workers)
    assert_sound(run.database)
    assert set(rows) <= set(rows_of(run.database))
    assert sorted(path.name for path in run.database.parent.iterdir()) == ["tuned.db"], "one plain file"
    assert_nothing_twice(run.database)


def test_a_compiler_that_hangs_does_not_outlive_a_killed_driver() -> None:
    """Nobody is left to end it, and inside the compiler it holds Python's lock: only the kernel's alarm is left."""
    code = (
        "import ctypes, sys\n"
        "from paiton.autotune import compile_job, compile_worker\n"
        "compile_job.run_job = lambda job, **options: ctypes.PyDLL(None).sleep(600)\n"
        "compile_worker.GRACE_S = 0.2\n"
        "compile_worker.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "0.2"],
        input="{}\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == -signal.SIGALRM, done.stderr
    assert done.stdout == '{"ready": true}\n'
