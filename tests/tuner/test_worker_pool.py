"""The worker pool against processes that crash, hang, hoard and never start."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paiton.autotune import worker_pool
from paiton.autotune.worker_pool import MAX_WORKER_MIB, Job, WorkerFailed, WorkerPool
from paiton.cache.rows import TrialState

WORKER = """
import json, os, signal, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job.get("exit") is not None:
        os._exit(job["exit"])
    if job.get("signal"):
        os.kill(os.getpid(), getattr(signal, job["signal"]))
    time.sleep(job.get("sleep", 0))
    while job.get("spins"):
        pass
    reply = {"pid": os.getpid(), "echo": job.get("echo"), "peak_mib": job.get("peak_mib", 10)}
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def make_pool() -> Iterator[Any]:
    pools: list[WorkerPool] = []

    def make(workers: int = 1, timeout_s: float = 30.0, code: str = WORKER) -> WorkerPool:
        pool = WorkerPool(workers=workers, timeout_s=timeout_s, command=(sys.executable, "-S", "-c", code))
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def _is_running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _pids(pool: WorkerPool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


def test_every_job_is_answered_under_its_tag(make_pool: Any) -> None:
    pool = make_pool(workers=2)
    answers = list(pool.run(Job(number, {"echo": number * 10}) for number in range(9)))
    assert {answer.tag: answer.reply["echo"] for answer in answers} == {number: number * 10 for number in range(9)}
    assert {answer.state for answer in answers} == {TrialState.OK}
    assert 1 <= len({answer.reply["pid"] for answer in answers}) <= 2
    assert all(answer.seconds >= 0 and not answer.error for answer in answers)


def test_no_job_starts_no_worker(make_pool: Any) -> None:
    pool = make_pool(workers=2)
    assert list(pool.run([])) == [] and _pids(pool) == []


def test_workers_are_kept_between_runs_and_no_more_than_jobs(make_pool: Any) -> None:
    pool = make_pool(workers=4)
    first = next(iter(pool.run([Job(0, {})])))
    second = next(iter(pool.run([Job(1, {})])))
    assert first.reply["pid"] == second.reply["pid"] and len(_pids(pool)) == 1


@pytest.mark.parametrize(
    ("job", "error"),
    [
        ({"exit": 3}, "the worker ended with exit code 3"),
        ({"signal": "SIGSEGV"}, "the worker was killed by SIGSEGV"),
        ({"signal": "SIGKILL"}, "the worker was killed by SIGKILL"),
    ],
)
def test_a_crash_costs_one_job(make_pool: Any, job: dict[str, Any], error: str) -> None:
    pool = make_pool()
    answers = list(pool.run([Job("a", {}), Job("bad", job), Job("b", {})]))
    assert [(each.tag, each.state.value, each.error) for each in answers] == [
        ("a", "ok", ""),
        ("bad", "crash", error),
        ("b", "ok", ""),
    ]
    assert answers[0].reply["pid"] != answers[2].reply["pid"]


def test_a_hang_is_killed_and_replaced(make_pool: Any) -> None:
    pool = make_pool(timeout_s=0.5)
    begin = time.monotonic()
    answers = list(pool.run([Job("a", {}), Job("hang", {"sleep": 600}), Job("b", {})]))
    assert time.monotonic() - begin < 60
    assert [(each.tag, each.state.value) for each in answers] == [("a", "ok"), ("hang", "timeout"), ("b", "ok")]
    assert answers[1].error == "passed the limit of 0.5 s" and answers[1].seconds >= 0.5
    assert not _is_running(answers[0].reply["pid"])


def test_a_job_that_burns_the_cpu_is_ended_at_its_limit(make_pool: Any) -> None:
    (answer,) = make_pool(timeout_s=0.3).run([Job("busy", {"spins": True})])
    assert answer.state is TrialState.TIMEOUT and answer.error == "passed the limit of 0.3 s"
    assert answer.seconds >= 0.3


def test_a_worker_past_its_memory_is_replaced_after_its_answer(make_pool: Any) -> None:
    pool = make_pool()
    jobs = [Job("a", {}), Job("big", {"peak_mib": MAX_WORKER_MIB + 1}), Job("b", {})]
    answers = {each.tag: each for each in pool.run(jobs)}
    assert answers["big"].state is TrialState.OK
    assert answers["a"].reply["pid"] == answers["big"].reply["pid"] != answers["b"].reply["pid"]
    assert not _is_running(answers["big"].reply["pid"])


def test_workers_that_never_get_ready_are_a_broken_installation(make_pool: Any) -> None:
    pool = make_pool(workers=2, code="import sys; sys.exit(7)")
    with pytest.raises(WorkerFailed, match=r"three workers in a row ended before .* exit code 7\); try: .*-c"):
        list(pool.run([Job(0, {}), Job(1, {})]))


def test_workers_that_hang_at_the_start_are_one_too(make_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "START_ALLOWANCE_S", 0.2)
    with pytest.raises(WorkerFailed, match=r"before they were ready \(passed the limit of 0.2 s\)"):
        list(make_pool(code="import time; time.sleep(600)").run([Job(0, {})]))


def test_a_worker_that_starts_at_the_second_attempt_is_fine(make_pool: Any, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    code = f"import os\nif not os.path.exists({str(mark)!r}):\n    open({str(mark)!r}, 'w'); os._exit(1)\n" + WORKER
    assert [each.state for each in make_pool(code=code).run([Job(0, {})])] == [TrialState.OK]


def test_an_idle_worker_that_died_is_replaced(make_pool: Any) -> None:
    pool = make_pool()
    list(pool.run([Job(0, {})]))
    os.kill(_pids(pool)[0], 9)
    pool._workers[0].process.wait()
    answers = list(pool.run([Job(1, {})]))
    assert len(answers) == 1
    assert answers[0].state is TrialState.OK or answers[0].error == "the worker was killed by SIGKILL"


def test_closing_leaves_no_process(make_pool: Any) -> None:
    pool = make_pool(workers=3)
    with pool:
        list(pool.run(Job(number, {"sleep": 0.05}) for number in range(6)))
        pids = _pids(pool)
        assert len(pids) == 3 and all(map(_is_running, pids))
    assert not any(map(_is_running, pids))


def test_leaving_in_the_middle_kills_the_busy(make_pool: Any) -> None:
    pool = make_pool(workers=2)
    answers = pool.run([Job("slow", {"sleep": 600}), Job("quick", {}), Job("later", {"sleep": 600})])
    assert next(answers).tag == "quick"
    assert [worker.job.tag for worker in pool._workers if worker.job] == ["slow"]
    pids = _pids(pool)
    answers.close()
    assert len([pid for pid in pids if _is_running(pid)]) <= 1, "only an idle one may be left"
    assert all(worker.job is None for worker in pool._workers)
    fresh = list(pool.run([Job("next", {"echo": 1})]))
    assert [(each.tag, each.reply["echo"]) for each in fresh] == [("next", 1)], "no old answer comes late"


def test_a_grandchild_dies_with_a_hanging_worker(make_pool: Any, tmp_path: Path) -> None:
    """A compiler starts tools of its own (ptxas, lld); they must not outlive the time limit either."""
    note = tmp_path / "pid"
    code = WORKER.replace(
        "job = json.loads(line)",
        "import subprocess; child = subprocess.Popen(['sleep', '600']); "
        f"open({str(note)!r}, 'w').write(str(child.pid)); job = json.loads(line)",
    )
    answer = next(iter(make_pool(timeout_s=0.5, code=code).run([Job("hang", {"sleep": 600})])))
    assert answer.state is TrialState.TIMEOUT
    child = int(note.read_text())
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_running(child)
