"""Precompile: configs in, compiler facts out; each binary is compiled once, whoever asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..cache.rows import CompiledRow, TrialState
from ..cache.store import ConfigStore
from ..kernels_triton.spec import KernelSpec
from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.model.facts import CompileFacts, merged
from ..search_spaces.problem import Problem
from .aot import units_of
from .compile_pool import CompileJob, CompileOutcome, CompilePool


@dataclass(frozen=True)
class Compiled:
    """All launches of one config: `facts` when each compiled and fits, else the state and text of the first failure."""

    config: Config
    state: TrialState
    facts: CompileFacts | None
    error: str = ""


@dataclass
class CompileCounts:
    """What a run spent: units asked for, found known, compiled, and the compilers' seconds."""

    asked: int = 0
    hits: int = 0
    compiled: int = 0
    seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)


class Precompiler:
    """Compiles configs of a device through a pool, remembering every outcome in the store at once."""

    def __init__(self, device: Device, pool: CompilePool, store: ConfigStore) -> None:
        self._device = device
        self._pool = pool
        self._store = store
        self._known: dict[bytes, CompileOutcome] = {}
        self.counts = CompileCounts()

    def compile(self, spec: KernelSpec, problem: Problem, configs: Sequence[Config]) -> list[Compiled]:
        """The compile result of each config, in order."""
        keys: dict[Config, list[bytes]] = {}
        jobs: dict[bytes, CompileJob] = {}
        for config in configs:
            wanted = jobs_of(spec, problem, config, self._device)
            keys[config] = [job.key for job in wanted]
            for job in wanted:
                jobs.setdefault(job.key, job)
        self._recall(list(jobs))
        missing = [job for key, job in jobs.items() if key not in self._known]
        asked = sum(len(unit_keys) for unit_keys in keys.values())
        self.counts.asked += asked
        self.counts.hits += asked - len(missing)
        for outcome in self._compile_missing(missing):
            self._known[outcome.key] = outcome
        return [self._combined(config, keys[config]) for config in configs]

    def _recall(self, keys: Sequence[bytes]) -> None:
        unknown = [key for key in keys if key not in self._known]
        for key, row in self._store.compiled(unknown).items() if unknown else ():
            facts = CompileFacts.from_json(row.facts_json) if row.facts_json else None
            self._known[key] = CompileOutcome(key, row.state, row.seconds, facts, row.error)

    def _compile_missing(self, jobs: Sequence[CompileJob]) -> Iterator[CompileOutcome]:
        for raw in self._pool.compile(jobs):
            outcome = judged(raw, self._device)
            facts_json = outcome.facts.json() if outcome.facts else None
            row = CompiledRow(
                key=outcome.key,
                state=outcome.state,
                seconds=outcome.seconds,
                facts_json=facts_json,
                error=outcome.error,
            )
            self._store.put_compiled([row])
            self.counts.compiled += 1
            self.counts.seconds += outcome.seconds
            if outcome.state is not TrialState.OK:
                name = outcome.state.value
                self.counts.failures[name] = self.counts.failures.get(name, 0) + 1
            yield outcome

    def _combined(self, config: Config, keys: Sequence[bytes]) -> Compiled:
        outcomes = [self._known[key] for key in keys]
        for outcome in outcomes:
            if outcome.state is not TrialState.OK:
                return Compiled(config, outcome.state, None, outcome.error)
        return Compiled(config, TrialState.OK, merged([o.facts for o in outcomes if o.facts is not None]))


def jobs_of(spec: KernelSpec, problem: Problem, config: Config, device: Device) -> list[CompileJob]:
    """The compiles that a config needs on a device, in launch order. Raises what the kernel's plan raises."""
    text = config.json()
    return [
        CompileJob(
            unit.key, problem.kernel, problem.dtype, problem.batch, problem.signature, text, device.name, position
        )
        for position, unit in enumerate(units_of(spec.meta_plan(problem, config, device), device))
    ]  # fmt: skip


def judged(outcome: CompileOutcome, device: Device) -> CompileOutcome:
    """Turn a success over the chip's shared-memory limit into `over_limit`.

    Triton compiles such a kernel without a word and fails only when it loads the binary on a device.
    """
    facts, arch = outcome.facts, device.arch
    if facts is None or facts.shared_bytes <= arch.shared_limit_bytes:
        return outcome
    name = "LDS" if arch.is_amd else "shared memory"
    text = f"{name} {facts.shared_bytes} > {arch.shared_limit_bytes} bytes on {arch.name}"
    return CompileOutcome(outcome.key, TrialState.OVER_LIMIT, outcome.seconds, facts, text)
