"""The run: from a request to a filled database, one cell after the other."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..cache.key import Cell, Environment, compiler_digest
from ..cache.rows import Candidate, Label, RunId, RunStatus, TrialRow, TunedRow
from ..cache.store import ConfigStore
from ..kernels_triton.spec import KernelSpec
from ..search_spaces.arch import Device
from ..search_spaces.config import Config, Value
from ..search_spaces.problem import Problem
from ..search_spaces.space import EmptySpace
from .adapters.registry import FOREIGN_KERNELS, spec_of
from .answers import tile
from .cell import CellResult, CellTask, tune_cell
from .objective import Evaluation, Objective
from .progress import Progress
from .stored_seeds import stored_seeds

SHORTLIST = 8
"""Configs kept with the answer, so that an owner of the GPU can finish an estimated cell in as many runs."""
MEASURED_GAIN = 1.03
"""A measured config must beat the default by this factor, otherwise the row says "the default is best"."""

Extra = Mapping[str, Mapping[str, tuple[Value, ...]]]


@dataclass(frozen=True)
class RunSettings:
    """How to search: trials per cell, seconds for the whole run (None: no limit), seed, whether old trials count."""

    trials: int
    budget_s: float | None = None
    seed: int = 0
    resume: bool = True
    extra_choices: Extra = field(default_factory=dict)


@dataclass
class RunSummary:
    """What a run did. `rows` are the answers of all requested cells, old and new, in the order asked."""

    rows: list[TunedRow] = field(default_factory=list)
    cells_tuned: int = 0
    cells_resumed: int = 0
    cells_known: int = 0
    cells_left: int = 0
    cells_failed: list[str] = field(default_factory=list)
    trials: int = 0
    states: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    was_interrupted: bool = False


class Tuner:
    """Tunes cells of one device with one objective into one store.

    Every finished trial is durable before the next round begins. A cell that was finished under the same kernel,
    compiler and model is taken from the store; one that was interrupted goes on from its stored trials.
    """

    def __init__(
        self, device: Device, objective: Objective, env: Environment, store: ConfigStore, settings: RunSettings,
        progress: Progress, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._device = device
        self._objective = objective
        self._env = env
        self._store = store
        self._settings = settings
        self._progress = progress
        self._clock = clock
        self._winners: dict[str, tuple[int, Config]] = {}

    def run(self, problems: Sequence[Problem], arguments: Mapping[str, object]) -> RunSummary:
        """Tune every problem. An interrupt (Ctrl-C) ends the run early and is noted in the summary."""
        summary = RunSummary(cells_left=len(problems))
        started = self._clock()
        run = self._store.begin_run(arguments, self._settings.seed, self._env)
        status = RunStatus.FAILED
        self._progress.begin(len(problems), len(problems) * self._settings.trials)
        try:
            for problem in problems:
                if summary.rows and self._is_over(started):
                    break
                self._tune(problem, run, summary, started)
                summary.cells_left -= 1
            status = RunStatus.DONE
        except KeyboardInterrupt:
            summary.was_interrupted = True
            status = RunStatus.INTERRUPTED
        finally:
            summary.seconds = self._clock() - started
            # A full disk may be the very reason of the failure: the error under way matters more than this note.
            with contextlib.suppress(Exception) if status is RunStatus.FAILED else contextlib.nullcontext():
                self._store.finish_run(run, status)
        return summary

    def _is_over(self, started: float) -> bool:
        budget = self._settings.budget_s
        return budget is not None and self._clock() - started >= budget

    def _cell_is_over(self, started: float, cells_left: int) -> Callable[[], bool]:
        """Each cell may take its share of what is left of the budget."""
        budget = self._settings.budget_s
        if budget is None:
            return lambda: False
        now = self._clock()
        end = now + max(0.0, budget - (now - started)) / max(1, cells_left)
        return lambda: self._clock() >= end

    def _tune(self, problem: Problem, run: RunId, summary: RunSummary, started: float) -> None:
        spec = self._spec(problem.kernel)
        cell = cell_of(problem, self._device, spec)
        self._progress.start_cell(problem, self._settings.trials)
        rows = self._store.trials(cell, compiler=compiler_digest(self._env)) if self._settings.resume else []
        history = self._history(problem, rows)
        known = self._finished(cell, problem, spec, len(history), max((row.ts_ms for row in rows), default=0))
        if known is not None:
            summary.cells_known += 1
            note = "known"
        else:
            task = CellTask(
                spec,
                problem,
                self._device,
                (*self._neighbours(problem), *stored_seeds(self._store, cell, problem)),
                self._settings.trials,
                self._settings.seed,
            )
            try:
                result = tune_cell(
                    task, self._objective, history=history, is_over=self._cell_is_over(started, summary.cells_left),
                    on_round=lambda fresh, penalty: self._record(run, cell, fresh, penalty, summary),
                )  # fmt: skip
                known = self._answer(cell, result)
            except EmptySpace as error:
                known, note = None, str(error)
            else:
                note = self._note(known, result)
            summary.cells_resumed += bool(history) and known is not None
            summary.cells_tuned += known is not None
        if known is None:
            summary.cells_failed.append(f"{problem}: {note}")
        else:
            summary.rows.append(known)
            if known.config_json is not None:
                self._winners[_shape(problem)] = (problem.batch, Config.from_json(known.config_json))
        self._progress.end_cell(note, self._settings.trials)

    def _spec(self, kernel: str) -> KernelSpec:
        spec = spec_of(kernel)
        extra = self._settings.extra_choices.get(kernel)
        return spec.with_space(spec.space.extended(extra)) if extra else spec

    def _neighbours(self, problem: Problem) -> tuple[Config, ...]:
        """The winner of the batch tuned just before for the same shape."""
        winner = self._winners.get(_shape(problem))
        return (winner[1],) if winner else ()

    def _history(self, problem: Problem, rows: Sequence[TrialRow]) -> dict[Config, Evaluation]:
        recalled = [self._objective.recall(problem, row) for row in rows]
        return {each.config: each for each in recalled if each is not None}

    def _finished(
        self, cell: Cell, problem: Problem, spec: KernelSpec, tried: int, newest_ms: int
    ) -> TunedRow | None:  # fmt: skip
        """The stored answer, if it rests on as many trials as asked for (or on the whole space) and on this model.

        An answer older than the newest trial is that of a shorter search: the longer one was stopped before its end.
        """
        if not self._settings.resume:
            return None
        row = self._store.find(cell, compiler=compiler_digest(self._env))
        if row is None or row.label < self._objective.label:
            return None
        same = row.env.triton_key == self._env.triton_key and row.model_version == self._objective.model_version
        if not same or row.ts_ms < newest_ms:
            return None
        if tried >= self._settings.trials:
            return row
        return row if tried >= len(spec.space.enumerate(problem, self._device)) else None

    def _record(self, run: RunId, cell: Cell, fresh: Sequence[Evaluation], penalty: float, summary: RunSummary) -> None:
        is_measured = self._objective.label is Label.MEASURED
        rows = [
            TrialRow(
                cell=cell,
                params_json=each.config.json(),
                state=each.state,
                told=each.value if each.value is not None else penalty,
                us=each.value if is_measured else None,
                score=None if is_measured else each.value,
                samples_us=each.samples_us,
                error=each.error,
                facts_json=each.facts.json() if each.facts else None,
                model_version=self._objective.model_version,
                worker=each.conditions,
            )
            for each in fresh
        ]
        self._store.record_trials(run, rows)
        summary.trials += len(rows)
        summary.states.update(each.state.value for each in fresh)
        best = min((each for each in fresh if each.value is not None), key=lambda each: each.value or 0, default=None)
        self._progress.count_trials(len(rows), tile(best.config) if best else "-")

    def _answer(self, cell: Cell, result: CellResult) -> TunedRow | None:
        """Store the answer; None when nothing tried could run."""
        ranked = result.ranked()
        if not ranked:
            return None
        best = ranked[0]
        default = result.evaluation_of(result.default)
        self._store.put_tuned(self._row(cell, result, best, default.value if default else None))
        return self._store.find(cell, compiler=compiler_digest(self._env))

    def _row(self, cell: Cell, result: CellResult, best: Evaluation, default_value: float | None) -> TunedRow:
        """The answer as a row. A measured one that does not beat the default by more than noise says "the default"."""
        assert best.value is not None
        is_measured = self._objective.label is Label.MEASURED
        is_default = is_measured and default_value is not None and default_value < MEASURED_GAIN * best.value
        answer = (result.evaluation_of(result.default) if is_default else None) or best
        low, high = quantiles_of(answer.samples_us)
        shortlist = [Candidate(config_json=each.config.json(), score=each.value or 0) for each in result.ranked()]
        return TunedRow(
            cell=cell,
            label=self._objective.label,
            env=_with_conditions(self._env, answer.conditions),
            config_json=None if is_default and cell.kernel not in FOREIGN_KERNELS else answer.config.json(),
            us_median=answer.value if is_measured else None,
            us_p10=low,
            us_p90=high,
            samples=len(answer.samples_us),
            us_default=default_value if is_measured else None,
            score=None if is_measured else best.value,
            score_default=None if is_measured else default_value,
            model_version=self._objective.model_version,
            shortlist=tuple(shortlist[:SHORTLIST]),
            facts_json=answer.facts.json() if answer.facts else None,
            compute_units=self._device.compute_units,
        )

    def _note(self, row: TunedRow | None, result: CellResult) -> str:
        if row is None:
            states = Counter(each.state.value for each in result.evaluations)
            return "no config ran: " + ", ".join(f"{count} {state}" for state, count in states.most_common())
        config = tile(Config.from_json(row.config_json)) if row.config_json else "the default"
        return f"{config}, {len(result.evaluations)} of {result.feasible_count} configs tried"


def _with_conditions(env: Environment, conditions: str) -> Environment:
    return replace(env, policy=f"{env.policy}; {conditions}") if conditions else env


def quantiles_of(samples_us: Sequence[float]) -> tuple[float | None, float | None]:
    """The 10th and 90th percentile of raw samples; None without any."""
    if not samples_us:
        return None, None
    ordered = sorted(samples_us)
    last = len(ordered) - 1
    return ordered[round(0.1 * last)], ordered[round(0.9 * last)]


def cell_of(problem: Problem, device: Device, spec: KernelSpec) -> Cell:
    """The database key of a problem on a device, for this source of the kernel."""
    return Cell(
        arch=device.arch.name, device=device.name, kernel=problem.kernel, kernel_digest=spec.digest,
        signature=problem.signature, dtype=problem.dtype, batch=problem.batch,
    )  # fmt: skip


def _shape(problem: Problem) -> str:
    return f"{problem.kernel}|{problem.signature}|{problem.dtype}"
