"""Compiling units in parallel, in worker processes that may hang or crash without harm."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

from ..cache.rows import TrialState
from ..search_spaces.model.facts import CompileFacts
from .compile_worker import KEEP_CACHE
from .worker_pool import WALL_FACTOR, Answer, Job, WorkerPool


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

    def as_job(self) -> Job:
        """The job as a worker reads it."""
        return Job(self.key, {name: value for name, value in vars(self).items() if name != "key"})


@dataclass(frozen=True)
class CompileOutcome:
    """The typed result of a job; `facts` where it compiled, `error` where it did not. `seconds` is CPU time."""

    key: bytes
    state: TrialState
    seconds: float
    facts: CompileFacts | None = None
    error: str = ""
    was_cached: bool = False
    """Whether Triton's own cache had the binary; a pool that keeps no binaries never finds one."""


class CompilePool:
    """Compile workers; `timeout_s` bounds one compile. Use it as a context manager.

    With `keeps_binaries` the binaries stay in Triton's own cache for the launches to come, and the facts of an outcome
    are only its shared memory; otherwise facts are all that is left of a compile.
    """

    def __init__(self, *, workers: int, timeout_s: float, keeps_binaries: bool = False) -> None:
        options = (KEEP_CACHE,) if keeps_binaries else ()
        self._pool = WorkerPool(
            workers=workers,
            timeout_s=timeout_s,
            command=(sys.executable, "-m", f"{__package__}.compile_worker", str(WALL_FACTOR * timeout_s), *options),
            environment={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        )

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def compile(self, jobs: Iterable[CompileJob]) -> Iterator[CompileOutcome]:
        """Compile, yielding each outcome as it comes."""
        return map(_outcome, self._pool.run(job.as_job() for job in jobs))


def _outcome(answer: Answer) -> CompileOutcome:
    if answer.state is not TrialState.OK:
        return CompileOutcome(answer.tag, answer.state, answer.seconds, error=answer.error)
    seconds = float(answer.reply["cpu_seconds"])
    if "error" in answer.reply:
        return CompileOutcome(answer.tag, TrialState.COMPILE_ERROR, seconds, error=answer.reply["error"])
    facts = CompileFacts.from_json(answer.reply["facts"])
    return CompileOutcome(answer.tag, TrialState.OK, seconds, facts, was_cached=bool(answer.reply.get("was_cached")))
