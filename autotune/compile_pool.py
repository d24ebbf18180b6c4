"""A pool of killable compile workers with a time limit for each job."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ..cache.rows import TrialState
from ..search_spaces.model.facts import CompileFacts

START_ALLOWANCE_S = 120.0
"""A worker imports torch and triton first, which takes tens of seconds on a loaded machine."""
MAX_WORKER_MIB = 2048
"""LLVM and MLIR keep memory between compiles; a worker past this is replaced after its job."""


@dataclass(frozen=True)
class CompileJob:
    """One unit of one plan. `key` is the unit's content key."""

    key: bytes
    kernel: str
    dtype: str
    batch: int
    signature: str
    config: str
    device: str
    unit: int

    def line(self) -> str:
        """The job as the worker reads it."""
        fields = {name: value for name, value in vars(self).items() if name != "key"}
        return json.dumps(fields) + "\n"


@dataclass(frozen=True)
class CompileOutcome:
    """The typed result of a job; `facts` where it compiled, `error` where it did not."""

    key: bytes
    state: TrialState
    seconds: float
    facts: CompileFacts | None = None
    error: str = ""


class WorkerFailed(RuntimeError):
    """Workers die before they take a job: the installation is broken, not a config."""


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    deadline: float
    is_ready: bool = False
    job: CompileJob | None = None
    started: float = 0.0
    buffer: bytearray = field(default_factory=bytearray)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class CompilePool:
    """`workers` processes, started at the first job; use it as a context manager so that none outlives the run.

    `timeout_s` bounds one compile; a worker that passes it is killed and replaced. Raises WorkerFailed when three
    workers in a row die before they are ready.
    """

    def __init__(self, *, workers: int, timeout_s: float, command: tuple[str, ...] | None = None) -> None:
        self._count = workers
        self._timeout_s = timeout_s
        self._command = command or (sys.executable, "-m", f"{__package__}.compile_worker")
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill every worker."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def compile(self, jobs: Iterable[CompileJob]) -> Iterator[CompileOutcome]:
        """Run jobs, yielding each outcome as it comes; the order is that of completion."""
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
                self._drop(worker)  # the caller left in the middle: an unfinished compile must not answer later

    def _busy(self) -> int:
        return sum(1 for worker in self._workers if worker.job)

    def _start(self) -> _Worker:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        return _Worker(process, deadline=time.monotonic() + START_ALLOWANCE_S)

    def _give(self, worker: _Worker, job: CompileJob) -> None:
        worker.job = job
        worker.started = time.monotonic()
        worker.deadline = worker.started + self._timeout_s
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the end of its output says so
            worker.process.stdin.write(job.line().encode())
            worker.process.stdin.flush()

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        self._workers.remove(worker)

    def _collect(self) -> Iterator[CompileOutcome]:
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
            yield from self._end(worker, TrialState.TIMEOUT, f"passed the limit of {self._timeout_s:g} s")

    def _read(self, worker: _Worker) -> Iterator[CompileOutcome]:
        assert worker.process.stdout is not None
        chunk = os.read(worker.process.stdout.fileno(), 1 << 16)
        if not chunk:
            worker.process.wait()
            yield from self._end(worker, TrialState.CRASH, f"the compiler ended with exit code {worker.process.returncode}")
            return
        worker.buffer += chunk
        while (end := worker.buffer.find(b"\n")) >= 0:
            line = bytes(worker.buffer[:end])
            del worker.buffer[: end + 1]
            yield from self._answered(worker, json.loads(line))

    def _answered(self, worker: _Worker, answer: dict[str, Any]) -> Iterator[CompileOutcome]:
        if answer.get("ready"):
            worker.is_ready = True
            self._failed_starts = 0
            return
        job, worker.job = worker.job, None
        assert job is not None
        seconds = float(answer["seconds"])
        if answer["peak_mib"] > MAX_WORKER_MIB:
            self._drop(worker)
        if "error" in answer:
            yield CompileOutcome(job.key, TrialState.COMPILE_ERROR, seconds, error=answer["error"])
        else:
            yield CompileOutcome(job.key, TrialState.OK, seconds, CompileFacts.from_json(answer["facts"]))

    def _end(self, worker: _Worker, state: TrialState, reason: str) -> Iterator[CompileOutcome]:
        job, was_ready = worker.job, worker.is_ready
        self._drop(worker)
        if job is not None:
            yield CompileOutcome(job.key, state, time.monotonic() - worker.started, error=reason)
        elif not was_ready:
            self._failed_starts += 1
            if self._failed_starts >= 3:
                raise WorkerFailed(
                    f"three compile workers in a row ended before they were ready ({reason}); "
                    f"try: {' '.join(self._command)}"
                )
