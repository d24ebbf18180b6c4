"""A pool of killable worker processes that answer jobs, one JSON line each, with a time limit for every job."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ..cache.rows import TrialState

START_ALLOWANCE_S = 120.0
"""A worker imports torch and triton first, which can take tens of seconds on a loaded machine."""
WALL_FACTOR = 4.0
"""A job's limit counts the worker's CPU seconds, so that a loaded machine does not turn a slow compile into a time-out;
a worker that sleeps is ended after this many times the limit."""
MAX_WORKER_MIB = 2048
"""Compilers keep memory between jobs; a worker past this is replaced after its job."""


@dataclass(frozen=True)
class Job:
    """A request to a worker: plain JSON data, and a tag under which the answer comes back."""

    tag: Any
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """How a job ended: the worker's reply where it gave one, else `timeout` or `crash` with a text."""

    tag: Any
    state: TrialState
    seconds: float
    reply: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class WorkerFailed(RuntimeError):
    """Workers die before they take a job: the installation is broken, not a config."""


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    deadline: float
    is_ready: bool = False
    job: Job | None = None
    started: float = 0.0
    cpu_started: float = 0.0
    buffer: bytearray = field(default_factory=bytearray)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class WorkerPool:
    """Up to `workers` processes running `command`, started at the first job.

    A worker first writes `{"ready": true}`, then one reply per job; a reply may hold "peak_mib", the memory it has
    used. `timeout_s` bounds one job; a worker that passes it is killed and replaced. Use the pool as a context manager,
    so that no worker outlives the run. Raises WorkerFailed when three workers in a row die before they are ready.
    """

    def __init__(
        self,
        *,
        workers: int,
        timeout_s: float,
        command: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._count = workers
        self._timeout_s = timeout_s
        self._command = command
        self._environment = environment
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill every worker."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def run(self, jobs: Iterable[Job]) -> Iterator[Answer]:
        """Run jobs, yielding each answer as it comes; the order is that of completion."""
        waiting = deque(jobs)
        try:
            while waiting or any(worker.job for worker in self._workers):
                while len(self._workers) < min(self._count, len(waiting) + self._busy()):
                    self._workers.append(self._start())
                for worker in self._workers:
                    if worker.is_ready and worker.job is None and waiting:
                        self._give(worker, waiting.popleft())
                yield from self._collect()
        finally:
            for worker in [worker for worker in self._workers if worker.job]:
                self._drop(worker)  # the caller left in the middle: an unfinished job must not answer later

    def _busy(self) -> int:
        return sum(1 for worker in self._workers if worker.job)

    def _start(self) -> _Worker:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )
        return _Worker(process, deadline=time.monotonic() + START_ALLOWANCE_S)

    def _give(self, worker: _Worker, job: Job) -> None:
        worker.job = job
        worker.started = time.monotonic()
        worker.cpu_started = _cpu_seconds(worker.process.pid)
        worker.deadline = worker.started + self._timeout_s
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the end of its output says so
            worker.process.stdin.write(json.dumps(job.data).encode() + b"\n")
            worker.process.stdin.flush()

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        self._workers.remove(worker)

    def _collect(self) -> Iterator[Answer]:
        """Wait for output or the nearest deadline, and yield what ended."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            watched = [worker.deadline for worker in self._workers if worker.job or not worker.is_ready]
            wait_s = max(0.0, min(watched, default=time.monotonic()) - time.monotonic())
            ready: list[_Worker] = [key.data for key, _ in selector.select(wait_s)]
        for worker in ready:
            yield from self._read(worker)
        now = time.monotonic()
        for worker in [w for w in self._workers if w not in ready and (w.job or not w.is_ready) and w.deadline <= now]:
            if (more := self._time_left(worker)) > 0:
                worker.deadline = now + more
            else:
                reason = f"passed the limit of {self._timeout_s if worker.job else START_ALLOWANCE_S:g} s"
                yield from self._end(worker, TrialState.TIMEOUT, reason)

    def _time_left(self, worker: _Worker) -> float:
        """Seconds a job that has reached its deadline may still run: what it did not get of the CPU."""
        if worker.job is None:
            return 0.0
        wall_left = worker.started + WALL_FACTOR * self._timeout_s - time.monotonic()
        cpu_left = self._timeout_s - (_cpu_seconds(worker.process.pid) - worker.cpu_started)
        return min(wall_left, max(cpu_left, 0.0))

    def _read(self, worker: _Worker) -> Iterator[Answer]:
        assert worker.process.stdout is not None
        chunk = os.read(worker.process.stdout.fileno(), 1 << 16)
        if not chunk:
            worker.process.wait()
            yield from self._end(worker, TrialState.CRASH, _death(worker.process.returncode))
            return
        worker.buffer += chunk
        while (end := worker.buffer.find(b"\n")) >= 0:
            line = bytes(worker.buffer[:end])
            del worker.buffer[: end + 1]
            yield from self._answered(worker, json.loads(line))

    def _answered(self, worker: _Worker, answer: dict[str, Any]) -> Iterator[Answer]:
        if answer.get("ready"):
            worker.is_ready = True
            self._failed_starts = 0
            return
        job, worker.job = worker.job, None
        assert job is not None
        if answer.get("peak_mib", 0) > MAX_WORKER_MIB:
            self._drop(worker)
        yield Answer(job.tag, TrialState.OK, time.monotonic() - worker.started, answer)

    def _end(self, worker: _Worker, state: TrialState, reason: str) -> Iterator[Answer]:
        job, was_ready = worker.job, worker.is_ready
        self._drop(worker)
        if job is not None:
            yield Answer(job.tag, state, time.monotonic() - worker.started, error=reason)
        elif not was_ready:
            self._failed_starts += 1
            if self._failed_starts >= 3:
                raise WorkerFailed(
                    f"three workers in a row ended before they were ready ({reason}); try: {' '.join(self._command)}"
                )


def _death(code: int) -> str:
    """-11 -> `the worker was killed by SIGSEGV`."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the worker was killed by {signal.Signals(-code).name}"
    return f"the worker ended with exit code {code}"


def _cpu_seconds(pid: int) -> float:
    """CPU time a process and its ended children have used, in seconds; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
