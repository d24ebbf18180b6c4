"""A request carried out: database, workers, objective, run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..cache.key import Environment
from ..cache.store import ConfigStore
from ..search_spaces.arch import Device
from ..search_spaces.config import Value
from ..search_spaces.workload import WorkItem
from .precompile import CompileCounts
from .progress import Progress
from .run import RunSettings, RunSummary, Tuner


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What to tune, how, and where the answers go. `measures` needs the device in this machine."""

    device: Device
    model: str
    items: tuple[WorkItem, ...]
    database: Path
    measures: bool = False
    trials: int = 16
    budget_s: float | None = None
    jobs: int = 1
    timeout_s: float = 30.0
    seed: int = 0
    resume: bool = True
    extra_choices: Mapping[str, Mapping[str, tuple[Value, ...]]] = field(default_factory=dict)

    def arguments(self) -> dict[str, object]:
        """What the database records of a run."""
        return {
            "device": self.device.name, "model": self.model, "cells": len(self.items), "trials": self.trials,
            "measures": self.measures, "budget_s": self.budget_s, "jobs": self.jobs, "timeout_s": self.timeout_s,
            "resume": self.resume,
            "extra_choices": {k: {n: list(v) for n, v in p.items()} for k, p in self.extra_choices.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class TuneOutcome:
    """The request, what the run did, the compiles it took, and the conditions recorded with the rows."""

    request: TuneRequest
    summary: RunSummary
    compiles: CompileCounts
    env: Environment


def run_request(request: TuneRequest, progress: Progress) -> TuneOutcome:
    """Tune. Raises StoreError for a database that cannot be used, WorkerFailed for a broken installation."""
    with ConfigStore.open(request.database) as store:
        if request.measures:
            return _tune_measured(request, store, progress)
        return _tune_estimated(request, store, progress)


def _tune_estimated(request: TuneRequest, store: ConfigStore, progress: Progress) -> TuneOutcome:
    progress.say(
        f"No {request.device.name} is measured: candidates are compiled for {request.device.arch.name} and ranked by a "
        "static model. Answers are labelled `estimated`."
    )
    from .compile_pool import CompilePool
    from .environment import offline_environment
    from .objective import EstimateObjective
    from .precompile import Precompiler

    with CompilePool(workers=request.jobs, timeout_s=request.timeout_s) as pool:
        precompiler = Precompiler(request.device, pool, store)
        objective = EstimateObjective(request.device, precompiler)
        env = offline_environment(request.device, objective.model_version)
        tuner = Tuner(request.device, objective, env, store, _settings(request), progress)
        summary = tuner.run([item.problem for item in request.items], request.arguments())
        return TuneOutcome(request, summary, precompiler.counts, env)


def _tune_measured(request: TuneRequest, store: ConfigStore, progress: Progress) -> TuneOutcome:
    from .measured_objective import GpuWorker, MeasuredObjective

    progress.say(f"Measuring on {request.device.name}: every candidate is checked against the reference, then timed.")
    with GpuWorker(request.device) as worker:
        objective = MeasuredObjective(worker)
        env = worker.environment()
        tuner = Tuner(request.device, objective, env, store, _settings(request), progress)
        summary = tuner.run([item.problem for item in request.items], request.arguments())
        return TuneOutcome(request, summary, CompileCounts(), env)


def _settings(request: TuneRequest) -> RunSettings:
    return RunSettings(
        trials=request.trials, budget_s=request.budget_s, seed=request.seed, resume=request.resume,
        extra_choices=request.extra_choices,
    )  # fmt: skip
