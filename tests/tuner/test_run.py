"""Whole runs over several cells with recorded values and a real database."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections import Counter
from typing import Any

import pytest

from paiton.autotune import run as run_module
from paiton.autotune.run import SHORTLIST, RunSettings, cell_of, quantiles_of
from paiton.autotune.search import PENALTY
from paiton.cache.key import Environment
from paiton.cache.rows import Label, RunStatus, TrialState
from paiton.cache.store import ConfigStore
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.config import Config

LABELS = [Label.ESTIMATED, Label.MEASURED]
TRIALS = RunSettings(trials=12)


def _answers(summary: Any) -> list[tuple[str, str | None, float | None, float | None]]:
    return [(str(row.cell), row.config_json, row.score, row.us_median) for row in summary.rows]


def _stored(bench: Any, problem: Any) -> list[Any]:
    return bench.store.trials(cell_of(problem, bench.device, spec_of(problem.kernel)))


@pytest.fixture
def problems(norm: Any, router: Any, linear: Any) -> list[Any]:
    return [norm(1), norm(8), linear(1), linear(2), router(1), router(8)]


@pytest.mark.parametrize("label", LABELS)
def test_every_trial_and_answer_is_stored(bench: Any, recorded: Any, problems: list[Any], label: Label) -> None:
    objective = recorded(label=label)
    summary = bench.run(objective, problems, settings=TRIALS)
    assert (summary.cells_tuned, summary.cells_known, summary.cells_left) == (6, 0, 0)
    assert len(summary.rows) == 6 and not summary.cells_failed and not summary.was_interrupted
    assert summary.trials == len(objective.asked) == sum(summary.states.values())
    for problem in problems:
        rows = _stored(bench, problem)
        asked = [config for asked_for, config in objective.asked if asked_for == problem]
        assert [Config.from_json(row.params_json) for row in rows] == asked
        spec = spec_of(problem.kernel)
        assert asked[0] == spec.space.default_config(problem, bench.device), "the default is in the same run"
        assert len(asked) == min(12, len(spec.space.enumerate(problem, bench.device)))
        assert all((row.us is None) == (label is Label.ESTIMATED) for row in rows)
        assert all((row.score is None) == (label is Label.MEASURED) for row in rows)
        answer = next(row for row in summary.rows if row.cell == rows[0].cell)
        best = min(objective.landscape(problem, config) for config in asked)
        assert answer.label is label and (answer.score or answer.us_median) in (best, answer.us_default)
        assert answer.shortlist and len(answer.shortlist) <= SHORTLIST
        assert [each.score for each in answer.shortlist] == sorted(each.score for each in answer.shortlist)
    (run,) = bench.store.runs()
    assert run.status is RunStatus.DONE and run.arguments_json == '{"test":true}'


def test_a_second_run_does_nothing(bench: Any, recorded: Any, problems: list[Any]) -> None:
    first = bench.run(recorded(), problems, settings=TRIALS)
    objective = recorded()
    second = bench.run(objective, problems, settings=TRIALS)
    assert objective.asked == [] and second.trials == 0
    assert (second.cells_known, second.cells_tuned) == (6, 0)
    assert _answers(second) == _answers(first)


class Interruption(Exception):
    """Stands for any error that ends a run."""


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Interruption])
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_resume_takes_the_same_path(
    bench: Any, recorded: Any, problems: list[Any], tmp_path: Any, label: Label, kind: type[BaseException], stop: int
) -> None:
    whole = recorded(label=label)
    with ConfigStore.open(tmp_path / "other.db") as other:
        expected = _answers(dataclasses.replace(bench, store=other).run(whole, problems, settings=TRIALS))

    def interrupt(number: int) -> None:
        if number == stop:
            raise kind("stop here")

    first = recorded(label=label, before_round=interrupt)
    if kind is KeyboardInterrupt:
        summary = bench.run(first, problems, settings=TRIALS)
        assert summary.was_interrupted and summary.cells_left > 0
    else:
        with pytest.raises(Interruption):
            bench.run(first, problems, settings=TRIALS)
    status = RunStatus.INTERRUPTED if kind is KeyboardInterrupt else RunStatus.FAILED
    assert [run.status for run in bench.store.runs()] == [status]
    assert sum(bench.store.trial_counts().values()) == len(first.asked), "what was finished is on disk"

    second = recorded(label=label)
    assert _answers(bench.run(second, problems, settings=TRIALS)) == expected
    assert first.rounds + second.rounds == whole.rounds
    assert max(Counter(first.asked + second.asked).values()) == 1, "no config is evaluated twice"


def test_an_interruption_before_the_answer_is_made_up_for(bench: Any, recorded: Any, linear: Any) -> None:
    """More trials were recorded, but the finalists' second look was cut off: the old answer is not the new one."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    problem = linear(1)
    old = bench.run(recorded(lambda p, config: 50.0), [problem], settings=RunSettings(trials=4)).rows[0]
    better = recorded(before_confirm=interrupt)
    assert bench.run(better, [problem], settings=TRIALS).was_interrupted
    last = recorded()
    summary = bench.run(last, [problem], settings=TRIALS)
    assert last.asked == [] and summary.cells_tuned == 1
    assert summary.rows[0].score < old.score == 50.0


def test_more_trials_go_on_where_fewer_ended(bench: Any, recorded: Any, linear: Any) -> None:
    first, second = recorded(), recorded()
    bench.run(first, [linear(1)], settings=RunSettings(trials=8))
    summary = bench.run(second, [linear(1)], settings=RunSettings(trials=20))
    assert summary.cells_resumed == 1 and len(second.asked) == 12
    assert not set(first.asked) & set(second.asked)
    fewer = recorded()
    assert bench.run(fewer, [linear(1)], settings=RunSettings(trials=4)).cells_known == 1 and not fewer.asked


def test_no_resume_starts_over(bench: Any, recorded: Any, norm: Any) -> None:
    first, second, third = recorded(), recorded(), recorded()
    bench.run(first, [norm(1)], settings=TRIALS)
    summary = bench.run(second, [norm(1)], settings=dataclasses.replace(TRIALS, resume=False))
    assert second.rounds == first.rounds and summary.cells_tuned == 1 and summary.cells_known == 0
    assert len(_stored(bench, norm(1))) == 2 * len(first.asked), "the old evidence stays"
    bench.run(third, [norm(1)], settings=TRIALS)
    assert third.asked == []


def test_the_budget_leaves_cells_and_says_so(bench: Any, recorded: Any, linear: Any, fake_clock: Any) -> None:
    problems = [linear(batch) for batch in (1, 2, 4, 8)]

    def takes_a_second(number: int) -> None:
        fake_clock.now += 1.0

    objective = recorded(before_round=takes_a_second)
    settings = RunSettings(trials=40, budget_s=2.5)
    summary = bench.run(objective, problems, settings=settings, clock=fake_clock)
    assert len(objective.rounds) == 3, "one round each for three cells, then the time is over"
    assert (summary.cells_tuned, summary.cells_left) == (3, 1) and summary.seconds == 3.0
    assert [run.status for run in bench.store.runs()] == [RunStatus.DONE]
    again = recorded()
    assert bench.run(again, problems, settings=RunSettings(trials=8)).cells_known == 3
    assert {problem.batch for problem, _ in again.asked} == {8}


def test_each_cell_gets_its_share_of_the_budget(bench: Any, recorded: Any, linear: Any, fake_clock: Any) -> None:
    def takes_a_second(number: int) -> None:
        fake_clock.now += 1.0

    objective = recorded(before_round=takes_a_second)
    settings = RunSettings(trials=400, budget_s=4.0)
    bench.run(objective, [linear(1), linear(2)], settings=settings, clock=fake_clock)
    assert Counter(problem.batch for problem, _ in objective.asked) == {1: 16, 2: 16}


def test_a_winner_seeds_the_next_batch(bench: Any, recorded: Any, linear: Any) -> None:
    objective = recorded()
    summary = bench.run(objective, [linear(1), linear(2)], settings=RunSettings(trials=8))
    winner = Config.from_json(summary.rows[0].config_json)
    feasible = spec_of("linear").space.enumerate(linear(2), bench.device)
    seed = feasible.config(feasible.nearest_to(winner))
    default, second, *_ = (config for problem, config in objective.asked if problem.batch == 2)
    assert second == seed != default, "the landscape is such that the winner is not the default"


def test_a_known_winner_seeds_as_well(bench: Any, recorded: Any, linear: Any) -> None:
    first = bench.run(recorded(), [linear(1)], settings=TRIALS)
    objective = recorded()
    bench.run(objective, [linear(1), linear(2)], settings=TRIALS)
    feasible = spec_of("linear").space.enumerate(linear(2), bench.device)
    winner = Config.from_json(first.rows[0].config_json)
    assert objective.rounds[0][1] == feasible.config(feasible.nearest_to(winner))


def test_a_cell_where_nothing_runs_is_reported_and_the_others_go_on(bench: Any, recorded: Any, norm: Any) -> None:
    objective = recorded(lambda problem, config: None if problem.batch == 2 else 1.0)
    problems = [norm(1), norm(2), norm(4)]
    summary = bench.run(objective, problems, settings=TRIALS)
    assert summary.cells_failed == [f"{norm(2)}: no config ran: 6 timeout"]
    assert [row.cell.batch for row in summary.rows] == [1, 4] and summary.cells_left == 0
    failures = _stored(bench, norm(2))
    assert {row.state for row in failures} == {TrialState.TIMEOUT}
    assert {(row.error, row.told, row.score) for row in failures} == {("passed the limit of 1 s", 1.0, None)}
    again = recorded(lambda problem, config: 1.0)
    second = bench.run(again, problems, settings=TRIALS)
    assert again.asked == [] and len(second.cells_failed) == 1, "failures are not retried"


def test_an_empty_space_is_reported_and_the_others_go_on(
    bench: Any, recorded: Any, norm: Any, router: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = dataclasses.replace(spec_of("router").space, choices=lambda p, d: {"BLOCK_T": (3,), "num_warps": (1,)})
    original = run_module.spec_of
    monkeypatch.setattr(
        run_module, "spec_of", lambda name: original(name).with_space(empty) if name == "router" else original(name)
    )
    summary = bench.run(recorded(), [router(1), norm(1)], settings=TRIALS)
    assert len(summary.rows) == 1
    assert summary.cells_failed == [f"{router(1)}: no config of router is legal for {router(1)} on MI300X"]


def test_told_is_the_penalty_for_a_failure(bench: Any, recorded: Any, norm: Any) -> None:
    objective = recorded(lambda problem, config: None if config["num_warps"] == 4 else 10.0 + config["num_warps"])
    bench.run(objective, [norm(1)], settings=TRIALS)
    rows = _stored(bench, norm(1))
    worst = max(row.score for row in rows if row.score)
    assert {row.told for row in rows if row.state is TrialState.TIMEOUT} == {PENALTY * worst}
    assert all(row.told == row.score for row in rows if row.state is TrialState.OK)


@pytest.mark.parametrize(("default_us", "names_default"), [(10.2, True), (10.29, True), (10.31, False), (20.0, False)])
def test_measured_default_is_kept_within_three_percent(
    bench: Any, recorded: Any, norm: Any, default_us: float, names_default: bool
) -> None:
    default = spec_of("rms_norm").space.default_config(norm(1), bench.device)
    objective = recorded(lambda problem, config: default_us if config == default else 10.0, label=Label.MEASURED)
    row = bench.run(objective, [norm(1)], settings=TRIALS).rows[0]
    assert (row.config_json is None) == names_default
    assert row.us_default == default_us and row.samples == 3
    assert row.us_median == (default_us if names_default else 10.0)
    assert row.us_p10 < row.us_median < row.us_p90
    again = recorded(label=Label.MEASURED)
    assert bench.run(again, [norm(1)], settings=TRIALS).cells_known == 1 and again.asked == []


def test_measured_answer_where_the_default_fails(bench: Any, recorded: Any, norm: Any) -> None:
    default = spec_of("rms_norm").space.default_config(norm(1), bench.device)
    objective = recorded(lambda problem, config: None if config == default else 10.0, label=Label.MEASURED)
    row = bench.run(objective, [norm(1)], settings=TRIALS).rows[0]
    assert row.config_json not in (None, default.json()) and row.us_default is None and row.us_median == 10.0


def test_an_estimate_is_kept_however_small_the_gain(bench: Any, recorded: Any, norm: Any) -> None:
    default = spec_of("rms_norm").space.default_config(norm(1), bench.device)
    objective = recorded(lambda problem, config: 10.1 if config == default else 10.0)
    row = bench.run(objective, [norm(1)], settings=TRIALS).rows[0]
    assert row.config_json != default.json() and (row.score, row.score_default) == (10.0, 10.1)
    assert row.us_median is None and row.us_default is None and row.samples == 0


def test_the_finalists_second_look_decides(bench: Any, recorded: Any, norm: Any) -> None:
    first = recorded(label=Label.MEASURED)
    values = {
        config: first.landscape(norm(1), config)
        for config in spec_of("rms_norm").space.enumerate(norm(1), bench.device)
    }
    runner_up = sorted(values, key=values.__getitem__)[1]
    objective = recorded(label=Label.MEASURED, confirmed={runner_up: 0.5})
    row = bench.run(objective, [norm(1)], settings=TRIALS).rows[0]
    assert (row.config_json, row.us_median) == (runner_up.json(), 0.5)


def test_a_stale_kernel_is_not_served(bench: Any, recorded: Any, norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(recorded(), [norm(1)], settings=TRIALS)
    original = run_module.spec_of

    def changed(name: str) -> Any:
        def plan(*inputs: Any, config: Config, device: Any) -> Any:
            return original(name).plan(*inputs, config=config, device=device)

        return dataclasses.replace(original(name), plan=plan)

    monkeypatch.setattr(run_module, "spec_of", changed)
    objective = recorded()
    summary = bench.run(objective, [norm(1)], settings=TRIALS)
    assert summary.cells_tuned == 1 and len(objective.asked) == 6
    assert len(bench.store.tuned()) == 2


def test_another_compiler_or_model_is_not_served(bench: Any, recorded: Any, norm: Any) -> None:
    bench.run(recorded(), [norm(1)], settings=TRIALS)
    other_triton = recorded()
    newer = Environment(triton="3.8.0", triton_key="k2", policy="recorded")
    assert bench.run(other_triton, [norm(1)], settings=TRIALS, env=newer).cells_tuned == 1
    assert len(other_triton.asked) == 6
    other_model = recorded(model_version="recorded-2")
    summary = bench.run(other_model, [norm(1)], settings=TRIALS)
    assert summary.cells_tuned == 1 and summary.rows[0].model_version == "recorded-2"
    assert other_model.asked == [], "its recall took the stored trials"


def test_extra_choices_reach_the_search(bench: Any, recorded: Any, router: Any) -> None:
    settings = RunSettings(trials=40, extra_choices={"router": {"num_warps": (16,)}})
    objective = recorded(lambda problem, config: 1.0 if config["num_warps"] == 16 else 2.0)
    row = bench.run(objective, [router(64)], settings=settings).rows[0]
    assert Config.from_json(row.config_json)["num_warps"] == 16


def test_lines_of_progress(bench: Any, recorded: Any, norm: Any) -> None:
    bench.run(recorded(), [norm(1), norm(2)], settings=TRIALS)
    lines = bench.lines.text.splitlines()
    assert len(lines) == 2, "the first at once, the others at most every ten seconds, and the last"
    assert lines[-1].startswith(f"[2/2] {norm(2)}: ") and "6 of 6 configs tried" in lines[-1]


def test_the_database_is_sound_after_it_all(bench: Any, recorded: Any, problems: list[Any]) -> None:
    bench.run(recorded(), problems, settings=TRIALS)
    with sqlite3.connect(bench.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_quantiles() -> None:
    assert quantiles_of([]) == (None, None)
    assert quantiles_of([5.0]) == (5.0, 5.0)
    assert quantiles_of([float(n) for n in range(11, 0, -1)]) == (2.0, 10.0)
