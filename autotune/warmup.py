"""Warm-up: before a server starts, compile what it will launch, and nothing else, into Triton's own cache."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..cache.answer import Answer, Tier
from ..cache.key import Cell
from ..cache.lookup import Lookup
from ..cache.rows import TrialState
from ..kernels_triton.registry import spec_of
from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.space import EmptySpace
from ..search_spaces.workload import WorkItem
from .compile_pool import CompileJob, CompilePool
from .precompile import jobs_of, judged
from .run import cell_of

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Served:
    """A problem and what a server gets for it: the lookup's answer, and the config that this comes to.

    `config` is None where the default is asked for and no config of the kernel is legal on the device.
    """

    item: WorkItem
    cell: Cell
    answer: Answer
    config: Config | None


@dataclass(frozen=True)
class Failure:
    """A config that does not compile or does not fit the chip, and the first problem that would launch it."""

    served: Served
    error: str


@dataclass
class WarmUp:
    """What a warm-up did. `compiled` and `cached` count binaries; `cpu_seconds` are the compilers'."""

    cache: Path
    served: tuple[Served, ...]
    compiled: int = 0
    cached: int = 0
    failures: list[Failure] = field(default_factory=list)
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    def tiers(self) -> list[tuple[str, str, int]]:
        """(tier, label, problems), best tier first; the default has no label."""
        found = Counter((each.answer.tier, each.answer.label) for each in self.served)
        ordered = sorted(found.items(), key=lambda pair: (list(Tier).index(pair[0][0]), -(pair[0][1] or 0)))
        return [(tier.value, label.name.lower() if label else "", count) for (tier, label), count in ordered]

    def of_other_compilers(self) -> int:
        """Problems whose answer was found under another Triton or toolkit than the one that compiles here."""
        return sum(each.answer.is_other_compiler for each in self.served)

    def misses(self) -> list[Served]:
        """The problems without an answer, which get their kernel's default."""
        return [each for each in self.served if each.answer.tier is Tier.DEFAULT]


def warm_up(items: Sequence[WorkItem], device: Device, lookup: Lookup, workers: int) -> WarmUp:
    """Compile the binaries of every item, each once, in parallel; those in the cache already are only looked at.

    The cache is TRITON_CACHE_DIR, or Triton's own place. Nothing is tried, launched or written to a database. Raises
    StoreError for a database that breaks under way, WorkerFailed for a broken installation.
    """
    started = time.monotonic()
    outcome = WarmUp(cache_folder(), tuple(_served(item, device, lookup) for item in items))
    jobs: dict[bytes, CompileJob] = {}
    asking: dict[bytes, Served] = {}
    for served in outcome.served:
        if served.config is None:
            outcome.failures.append(Failure(served, f"no config of it is legal on {device.name}"))
            continue
        try:
            problem = served.item.problem
            wanted = jobs_of(spec_of(problem.kernel), problem, served.config, device)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a config that its plan refuses
            outcome.failures.append(Failure(served, f"{type(error).__name__}: {error}"))
            continue
        for job in wanted:
            jobs.setdefault(job.key, job)
            asking.setdefault(job.key, served)
    with CompilePool(workers=workers, timeout_s=TIMEOUT_S, keeps_binaries=True) as pool:
        for raw in pool.compile(jobs.values()):
            compiled = judged(raw, device)
            outcome.cpu_seconds += compiled.seconds
            if compiled.state is not TrialState.OK:
                outcome.failures.append(Failure(asking[raw.key], f"{compiled.state.value} {compiled.error}"))
            elif compiled.was_cached:
                outcome.cached += 1
            else:
                outcome.compiled += 1
    outcome.seconds = time.monotonic() - started
    return outcome


def cache_folder() -> Path:
    """Where Triton keeps binaries: TRITON_CACHE_DIR, or under TRITON_HOME or the home directory."""
    from triton import knobs

    return Path(str(knobs.cache.dir))


def _served(item: WorkItem, device: Device, lookup: Lookup) -> Served:
    spec = spec_of(item.problem.kernel)
    cell = cell_of(item.problem, device, spec)
    answer = lookup.find(cell)
    if answer.config_json is not None:
        return Served(item, cell, answer, Config.from_json(answer.config_json))
    try:
        return Served(item, cell, answer, spec.space.default_config(item.problem, device))
    except EmptySpace:
        return Served(item, cell, answer, None)
