"""The logic of measuring, on recorded clocks; the GPU session itself in Triton's interpreter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from paiton.autotune import gpu_job
from paiton.autotune.gpu_job import MAX_ERROR_CHARS, GpuSession, _failure
from paiton.autotune.measure import (
    CACHE_FACTOR,
    MAX_CALLS,
    MAX_COPIES,
    MAX_MEMORY_BYTES,
    TARGET_REPLAY_US,
    Clock,
    cache_plan,
    calls_for,
    center,
    sample,
    sample_interleaved,
)
from paiton.autotune.measured_objective import (
    FINALIST_ROUNDS,
    FINALISTS,
    GIVE_UP_FACTOR,
    MEASURE_VERSION,
    SAMPLES,
    MeasuredObjective,
)
from paiton.autotune.objective import Evaluation
from paiton.autotune.worker_pool import Answer
from paiton.cache.key import Cell
from paiton.cache.rows import TrialRow, TrialState
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.config import Config
from paiton.search_spaces.model.facts import CompileFacts

MIB = 1 << 20


@dataclass
class RecordedClock(Clock):
    """Times by the first call of a graph: `times[name]` are used up one by one, the last one repeats."""

    times: dict[str, list[float]]
    runs_calls: bool = False
    captured: list[list[str]] = field(default_factory=list)
    replayed: list[str] = field(default_factory=list)

    def capture(self, calls: Sequence[Callable[[], object]]) -> Callable[[], float]:
        if self.runs_calls:
            calls[0]()
        names = [getattr(call, "name", "config") for call in calls]
        self.captured.append(names)
        name = names[0]

        def replay() -> float:
            self.replayed.append(name)
            waiting = self.times[name]
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

        return replay


@dataclass(frozen=True)
class Call:
    name: str

    def __call__(self) -> None:
        pass


def test_small_inputs_rotate_until_the_cache_is_passed_twice() -> None:
    plan = cache_plan(touched_bytes=100 * MIB, input_bytes=100 * MIB, last_level_bytes=256 * MIB)
    assert plan.copies == 6 and plan.copies * 100 * MIB >= CACHE_FACTOR * 256 * MIB
    assert plan.policy == "graph replay, L2 cold: 6 input sets touch 600.0 MiB"


def test_one_copy_of_large_inputs_is_enough() -> None:
    assert cache_plan(2000 * MIB, 2000 * MIB, 256 * MIB).copies == 1


def test_tiny_inputs_stay_warm_and_the_policy_says_so() -> None:
    plan = cache_plan(touched_bytes=4096, input_bytes=4096, last_level_bytes=256 * MIB)
    assert plan.copies == MAX_COPIES and "L2 warm" in plan.policy


def test_copies_are_bounded_by_memory() -> None:
    """An expert kernel touches few of its experts: the copies are large, what a call reads of them is small."""
    plan = cache_plan(touched_bytes=10 * MIB, input_bytes=MAX_MEMORY_BYTES // 3, last_level_bytes=256 * MIB)
    assert plan.copies == 3 and "L2 warm" in plan.policy
    assert cache_plan(0.0, 0, 256 * MIB).copies == MAX_COPIES
    assert cache_plan(10 * MIB, 2 * MAX_MEMORY_BYTES, 256 * MIB).copies == 1


@pytest.mark.parametrize(
    ("us", "calls"), [(0.0, MAX_CALLS), (1.0, MAX_CALLS), (10.0, 200), (20.0, 100), (1000.0, 2), (1e6, 2)]
)
def test_calls_fill_a_replay(us: float, calls: int) -> None:
    assert calls_for(us) == calls
    assert calls == 2 or calls == MAX_CALLS or calls * us == TARGET_REPLAY_US


def test_samples_after_a_warm_up_and_a_probe() -> None:
    clock = RecordedClock({"a": [90.0, 22.0, 20.0, 95.0, 21.0, 20.5, 20.2]})
    times = sample(clock, [Call("a"), Call("b"), Call("c")], samples=3, give_up_us=50.0)
    assert times == [21.0, 20.5, 20.2], "the first run of each graph warms up, the next two size it"
    assert [len(names) for names in clock.captured] == [2, 100]
    assert clock.captured[1][:6] == ["a", "b", "c", "a", "b", "c"], "the calls rotate over the copies"


def test_every_copy_is_in_the_graph_of_a_slow_call() -> None:
    clock = RecordedClock({"0": [5000.0]})
    sample(clock, [Call(str(number)) for number in range(7)], samples=1, give_up_us=None)
    assert clock.captured[1] == [str(number) for number in range(7)]


def test_a_config_out_of_the_running_gets_no_more_samples() -> None:
    clock = RecordedClock({"a": [500.0, 201.0, 202.0, 1.0]})
    assert sample(clock, [Call("a")], samples=20, give_up_us=200.0) == [201.0]
    assert len(clock.captured) == 1
    on_the_limit = RecordedClock({"a": [200.0]})
    assert len(sample(on_the_limit, [Call("a")], samples=20, give_up_us=200.0)) == 20


def test_finalists_take_turns() -> None:
    clock = RecordedClock({"a": [1.0], "b": [2.0], "c": [3.0]})
    times = sample_interleaved(clock, [[Call("a")], [Call("b")], [Call("c")]], rounds=4)
    assert times == [[1.0] * 4, [2.0] * 4, [3.0] * 4]
    assert clock.replayed[-12:] == ["a", "b", "c"] * 4
    assert clock.replayed[-15:-12] == ["a", "b", "c"], "each is warmed up before the first round"


def test_center_is_the_median() -> None:
    assert center([3.0, 1.0, 100.0]) == 3.0 and center([1.0, 2.0]) == 1.5


# The session that owns the GPU, here the CPU and Triton's interpreter.


def _job(op: str = "measure", **values: Any) -> dict[str, Any]:
    return {
        "op": op, "kernel": "rms_norm", "signature": "hidden=64", "batch": 3, "dtype": "fp32", "samples": 4,
        "config": Config.of(BLOCK_H=512, num_warps=1).json(), **values,
    }  # fmt: skip


def _session(*times: float) -> GpuSession:
    return GpuSession("MI300X", torch_device="cpu", clock=RecordedClock({"config": list(times)}, runs_calls=True))


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace parts of the spec that the session looks up."""

    def replace(**changes: Any) -> None:
        monkeypatch.setattr(gpu_job, "spec_of", lambda name: dataclasses.replace(spec_of(name), **changes))

    return replace


def test_a_right_kernel_gives_samples() -> None:
    reply = _session(10.0).answer(_job())
    assert reply["samples"] == [10.0] * 4 and reply["facts"] is None
    assert reply["policy"].startswith("graph replay, L2 warm: 32 input sets")


def test_the_give_up_time_is_passed_on() -> None:
    assert _session(10.0).answer(_job(give_up_us=9.0))["samples"] == [10.0]


def test_finalists_are_timed_in_one_job() -> None:
    configs = [Config.of(BLOCK_H=512, num_warps=warps).json() for warps in (1, 2)]
    assert _session(10.0).answer(_job("finalists", configs=configs)) == {"rounds": [[10.0] * 4, [10.0] * 4]}


def test_a_wrong_result_is_no_time(sabotage: Any) -> None:
    spec = spec_of("rms_norm")
    sabotage(reference=lambda *inputs: tuple(value + 0.5 for value in spec.reference(*inputs)))
    reply = _session(10.0).answer(_job())
    assert reply["state"] == "wrong" and "samples" not in reply
    assert "192 of 192 elements are off, the worst" in reply["error"]


def test_a_store_that_is_missed_shows(sabotage: Any) -> None:
    """The outputs are poisoned before each run: what an earlier run has left cannot pass for a result."""
    spec = spec_of("rms_norm")

    def lazy(*inputs: Any, config: Config, device: Any) -> Any:
        plan = spec.plan(*inputs, config=config, device=device)
        (launch,) = plan.launches
        return dataclasses.replace(plan, launches=(dataclasses.replace(launch, grid=(launch.grid[0] - 1,)),))

    sabotage(plan=lazy)
    reply = _session(10.0).answer(_job())
    assert reply["state"] == "wrong" and "64 of 192 elements are off, the worst nan" in reply["error"]


def test_a_kernel_that_only_works_once_is_wrong(sabotage: Any) -> None:
    """A graph replays the same plan: whatever the first run leaves behind must not spoil the second."""
    spec = spec_of("rms_norm")

    def spoiling(*inputs: Any, config: Config, device: Any) -> Any:
        plan = spec.plan(*inputs, config=config, device=device)

        class Once(type(plan)):  # type: ignore[misc]
            runs = 0

            def run(self) -> Any:
                type(self).runs += 1
                outputs = super().run()
                if type(self).runs > 1:
                    outputs[0].add_(1.0)
                return outputs

        return Once(plan.launches, plan.outputs)

    sabotage(plan=spoiling)
    assert _session(10.0).answer(_job())["state"] == "wrong"


def test_an_error_is_a_typed_reply_and_the_session_goes_on(sabotage: Any) -> None:
    def broken(*inputs: Any, config: Config, device: Any) -> Any:
        raise RuntimeError("no\n  luck")

    session = _session(10.0)
    assert session.answer(_job(kernel="nothing"))["state"] == "compile_error"
    assert session.answer(_job())["samples"]
    sabotage(plan=broken)
    reply = _session(10.0).answer(_job())
    assert reply == {"error": "RuntimeError: no luck", "state": "compile_error"}


def test_kinds_of_failure() -> None:
    class OutOfResources(Exception):
        pass

    assert _failure(OutOfResources("shared memory"))["state"] == "over_limit"
    memory = _failure(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert (memory["state"], memory["is_fatal"]) == ("crash", False)
    for error in (RuntimeError("CUDA error: an illegal memory access"), RuntimeError("HIP error: invalid")):
        assert (_failure(error)["state"], _failure(error)["is_fatal"]) == ("crash", True)
    long = _failure(ValueError("x" * 9999))
    assert long["state"] == "compile_error" and len(long["error"]) == MAX_ERROR_CHARS and "is_fatal" not in long


def test_inputs_and_reference_are_made_once_per_problem(sabotage: Any) -> None:
    spec, made = spec_of("rms_norm"), []

    def make_inputs(problem: Any, *, torch_device: str, seed: int) -> Any:
        made.append((problem.batch, seed))
        return spec.make_inputs(problem, torch_device=torch_device, seed=seed)

    sabotage(make_inputs=make_inputs)
    session = _session(10.0)
    for batch in (3, 3, 4):
        assert "samples" in session.answer(_job(batch=batch))
    assert made == [(batch, seed) for batch in (3, 4) for seed in range(MAX_COPIES)]


# The objective in front of it.


@dataclass
class RecordedBench:
    """Answers by config JSON: a time, or an Answer."""

    times: Mapping[str, Any] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    finalists: Answer | None = None

    def ask(self, data: Mapping[str, Any]) -> Answer:
        self.jobs.append(dict(data))
        if data["op"] == "finalists":
            assert self.finalists is not None
            return self.finalists
        known = self.times[data["config"]]
        if isinstance(known, Answer):
            return known
        return Answer(None, TrialState.OK, 0.1, {"samples": [known, known + 2.0, known + 1.0]})


CONFIGS = [Config.of(BLOCK_H=512 * 2**n, num_warps=1) for n in range(6)]


def _trial(config: Config, **values: Any) -> TrialRow:
    cell = Cell(
        arch="gfx942",
        device="MI300X",
        kernel="rms_norm",
        kernel_digest="d",
        signature="hidden=64",
        dtype="bf16",
        batch=1,
    )
    return TrialRow(
        **{
            "cell": cell, "params_json": config.json(), "state": TrialState.OK, "told": 1.0, "us": 5.0,
            "samples_us": (4.0, 5.0, 6.0), "model_version": MEASURE_VERSION, **values,
        }
    )  # fmt: skip


def test_a_measurement_is_the_median_and_keeps_its_samples(norm: Any) -> None:
    facts = CompileFacts(shared_bytes=64, registers=32)
    reply = Answer(None, TrialState.OK, 0.1, {"samples": [7.0, 5.0, 6.0], "facts": facts.json()})
    (found,) = MeasuredObjective(RecordedBench({CONFIGS[0].json(): reply})).evaluate(
        spec_of("rms_norm"), norm(1), CONFIGS[:1]
    )
    assert found == Evaluation(CONFIGS[0], TrialState.OK, 6.0, facts, (7.0, 5.0, 6.0))


def test_the_best_time_so_far_decides_when_to_give_up(norm: Any) -> None:
    bench = RecordedBench({config.json(): us for config, us in zip(CONFIGS, (20.0, 10.0, 30.0, 5.0), strict=False)})
    objective = MeasuredObjective(bench)
    objective.evaluate(spec_of("rms_norm"), norm(1), CONFIGS[:3])
    objective.evaluate(spec_of("rms_norm"), norm(2), CONFIGS[3:4])
    assert [job.get("give_up_us") for job in bench.jobs] == [None, GIVE_UP_FACTOR * 21, GIVE_UP_FACTOR * 11, None]
    assert bench.jobs[0] == {
        "op": "measure", "kernel": "rms_norm", "dtype": "bf16", "batch": 1, "signature": "hidden=2048",
        "samples": SAMPLES, "config": CONFIGS[0].json(),
    }  # fmt: skip


def test_failures_are_typed(norm: Any) -> None:
    bench = RecordedBench(
        {
            CONFIGS[0].json(): Answer(None, TrialState.CRASH, 1.0, error="the worker was killed by SIGSEGV"),
            CONFIGS[1].json(): Answer(None, TrialState.TIMEOUT, 60.0, error="passed the limit of 60 s"),
            CONFIGS[2].json(): Answer(None, TrialState.OK, 1.0, {"error": "output 0: off", "state": "wrong"}),
            CONFIGS[3].json(): 8.0,
        }
    )
    found = MeasuredObjective(bench).evaluate(spec_of("rms_norm"), norm(1), CONFIGS[:4])
    assert [(each.state.value, each.value, each.error) for each in found] == [
        ("crash", None, "the worker was killed by SIGSEGV"),
        ("timeout", None, "passed the limit of 60 s"),
        ("wrong", None, "output 0: off"),
        ("ok", 9.0, ""),
    ]


def test_stored_rows_are_recalled(norm: Any) -> None:
    bench = RecordedBench({CONFIGS[1].json(): 1.0})
    objective = MeasuredObjective(bench)
    assert objective.recall(norm(1), _trial(CONFIGS[0])) == Evaluation(
        CONFIGS[0], TrialState.OK, 5.0, None, (4.0, 5.0, 6.0)
    )
    failed = objective.recall(norm(1), _trial(CONFIGS[2], state=TrialState.WRONG, us=None, samples_us=(), error="off"))
    assert failed == Evaluation(CONFIGS[2], TrialState.WRONG, None, error="off")
    assert objective.recall(norm(1), _trial(CONFIGS[3], us=None, score=3.0)) is None, "an estimate is no time"
    assert objective.recall(norm(1), _trial(CONFIGS[3], model_version="measure-0")) is None
    objective.evaluate(spec_of("rms_norm"), norm(1), CONFIGS[1:2])
    assert bench.jobs[0]["give_up_us"] == GIVE_UP_FACTOR * 5.0, "recalled times count for giving up"


def test_the_finalists_and_the_default_are_timed_again(norm: Any) -> None:
    ranked = [Evaluation(config, TrialState.OK, float(n), samples_us=(1.0,)) for n, config in enumerate(CONFIGS, 1)]
    default = CONFIGS[-1]
    bench = RecordedBench(finalists=Answer(None, TrialState.OK, 1.0, {"rounds": [[9.0 - n] for n in range(6)]}))
    confirmed = MeasuredObjective(bench).confirm(norm(1), ranked, default)
    assert bench.jobs[0]["configs"] == [config.json() for config in (*CONFIGS[:FINALISTS], default)]
    assert bench.jobs[0]["samples"] == FINALIST_ROUNDS
    assert [(each.config, each.value, each.samples_us) for each in confirmed] == [
        (config, 9.0 - n, (9.0 - n,)) for n, config in enumerate(CONFIGS)
    ]


def test_the_conditions_of_a_time_reach_the_row_and_come_back(norm: Any) -> None:
    reply = Answer(None, TrialState.OK, 1.0, {"samples": [5.0], "policy": "graph replay, L2 cold: 3 input sets"})
    objective = MeasuredObjective(RecordedBench({CONFIGS[0].json(): reply}))
    (found,) = objective.evaluate(spec_of("rms_norm"), norm(1), CONFIGS[:1])
    assert found.conditions == "graph replay, L2 cold: 3 input sets"
    recalled = objective.recall(norm(1), _trial(CONFIGS[0], worker=found.conditions))
    assert recalled is not None and recalled.conditions == found.conditions


def test_a_failed_second_look_leaves_the_first(norm: Any) -> None:
    ranked = [Evaluation(config, TrialState.OK, float(n), samples_us=(1.0,)) for n, config in enumerate(CONFIGS[:3], 1)]
    for answer in (
        Answer(None, TrialState.CRASH, 1.0, error="x"),
        Answer(None, TrialState.OK, 1.0, {"error": "x", "state": "crash"}),
    ):
        assert MeasuredObjective(RecordedBench(finalists=answer)).confirm(norm(1), ranked, CONFIGS[0]) == ranked
    alone = RecordedBench()
    assert MeasuredObjective(alone).confirm(norm(1), ranked[:1], CONFIGS[0]) == ranked[:1] and alone.jobs == []
