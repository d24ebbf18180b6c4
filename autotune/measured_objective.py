"""The measured objective: a worker process owns the GPU, checks each config and times it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

from ..cache.key import Environment
from ..cache.rows import Label, TrialRow, TrialState
from ..kernels_triton.spec import KernelSpec
from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.model.facts import CompileFacts
from ..search_spaces.problem import Problem
from ..version import __version__
from .measure import center
from .objective import Evaluation
from .worker_pool import WALL_FACTOR, Answer, Job, WorkerFailed, WorkerPool

SAMPLES = 20
FINALISTS = 5
FINALIST_ROUNDS = 30
GIVE_UP_FACTOR = 2.0
"""A config whose first time is this much slower than the best so far gets no more samples."""
LIMIT_S = 60.0
"""One config: compile (30 s are plenty), check and time; the first of a problem also makes inputs and reference."""
MEASURE_VERSION = "measure-1"


class Bench(Protocol):
    """Something that answers measuring jobs: the GPU worker, or recorded replies in tests."""

    def ask(self, data: Mapping[str, Any]) -> Answer:
        """The answer to one job."""


class GpuWorker:
    """The worker process that owns the GPU; started at the first job, replaced when it hangs or crashes."""

    def __init__(self, device: Device) -> None:
        self._pool = WorkerPool(
            workers=1,
            timeout_s=LIMIT_S,
            command=(sys.executable, "-m", f"{__package__}.gpu_worker", device.name, str(WALL_FACTOR * LIMIT_S)),
            environment={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        )

    def __enter__(self) -> GpuWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def ask(self, data: Mapping[str, Any]) -> Answer:
        """See Bench."""
        return next(iter(self._pool.run([Job(None, data)])))

    def environment(self) -> Environment:
        """The GPU and its software, as recorded with each row. Raises WorkerFailed when the worker cannot say."""
        answer = self.ask({"op": "describe"})
        if answer.state is not TrialState.OK:
            raise WorkerFailed(f"the GPU worker did not start: {answer.error}")
        fields = {name: str(value) for name, value in answer.reply.items()}
        policy = f"{MEASURE_VERSION}: median of {SAMPLES} graph replays, inputs in rotation, finalists interleaved"
        return Environment(**fields, paiton=__version__, policy=policy)


class MeasuredObjective:
    """Checks each config against the reference, then times it; the finalists are timed again in turn."""

    label = Label.MEASURED
    model_version = MEASURE_VERSION

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._best_us: dict[Problem, float] = {}

    def evaluate(self, spec: KernelSpec, problem: Problem, configs: Sequence[Config]) -> list[Evaluation]:
        """One measurement per config, in order."""
        return [self._evaluated(problem, config) for config in configs]

    def recall(self, problem: Problem, row: TrialRow) -> Evaluation | None:
        """A stored time stands, as do stored failures; the store gives only those of this compiler."""
        config = Config.from_json(row.params_json)
        facts = CompileFacts.from_json(row.facts_json) if row.facts_json else None
        if row.state is not TrialState.OK:
            return Evaluation(config, row.state, None, facts, error=row.error)
        if row.us is None or row.model_version != MEASURE_VERSION:
            return None
        self._note(problem, row.us)
        return Evaluation(config, TrialState.OK, row.us, facts, row.samples_us, conditions=row.worker)

    def confirm(self, problem: Problem, ranked: Sequence[Evaluation], default: Config) -> list[Evaluation]:
        """The best few and the default, timed again in turn; their new medians replace the old ones."""
        finalists = list(ranked[:FINALISTS])
        finalists += [each for each in ranked[FINALISTS:] if each.config == default]
        if len(finalists) < 2:
            return finalists
        job = {**_job("finalists", problem, FINALIST_ROUNDS), "configs": [each.config.json() for each in finalists]}
        answer = self._bench.ask(job)
        if answer.state is not TrialState.OK or "rounds" not in answer.reply:
            return finalists
        return [
            replace(each, value=center(times), samples_us=tuple(times))
            for each, times in zip(finalists, answer.reply["rounds"], strict=True)
        ]

    def _evaluated(self, problem: Problem, config: Config) -> Evaluation:
        best = self._best_us.get(problem)
        job = {**_job("measure", problem, SAMPLES), "config": config.json()}
        if best is not None:
            job["give_up_us"] = GIVE_UP_FACTOR * best
        answer = self._bench.ask(job)
        if answer.state is not TrialState.OK:
            return Evaluation(config, answer.state, None, error=answer.error)
        reply = answer.reply
        if "error" in reply:
            return Evaluation(config, TrialState(reply["state"]), None, error=reply["error"])
        facts = CompileFacts.from_json(reply["facts"]) if reply.get("facts") else None
        value = center(reply["samples"])
        self._note(problem, value)
        times = tuple(reply["samples"])
        return Evaluation(config, TrialState.OK, value, facts, times, conditions=reply.get("policy", ""))

    def _note(self, problem: Problem, us: float) -> None:
        self._best_us[problem] = min(us, self._best_us.get(problem, us))


def _job(op: str, problem: Problem, samples: int) -> dict[str, Any]:
    return {
        "op": op, "kernel": problem.kernel, "dtype": problem.dtype, "batch": problem.batch,
        "signature": problem.signature, "samples": samples,
    }  # fmt: skip
