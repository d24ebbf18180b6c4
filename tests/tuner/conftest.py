"""What the tuner's tests share: small spaces, a recorded objective, a store, and a fake clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from paiton.autotune.objective import Evaluation
from paiton.autotune.progress import PlainProgress
from paiton.autotune.run import RunSettings, Tuner
from paiton.cache.key import Environment
from paiton.cache.rows import Label, TrialRow, TrialState
from paiton.cache.store import ConfigStore
from paiton.kernels_triton.registry import spec_of
from paiton.kernels_triton.spec import KernelSpec
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem

Landscape = Callable[[Problem, Config], "float | None"]


def spread(problem: Problem, config: Config) -> float:
    """A landscape without ties: every config has a value of its own, the same in every run."""
    text = f"{problem.kernel}{problem.batch}{config.json()}"
    return 10.0 + sum(ord(letter) * (position + 1) for position, letter in enumerate(text)) % 997 / 100


@dataclass
class RecordedObjective:
    """An objective that reads its values from a function; None is a failure. It counts what it was asked.

    `before_round` is called with the number of the round about to begin: a test interrupts there. `confirmed` replaces
    values in the second look, as new times of finalists do.
    """

    landscape: Landscape = spread
    label: Label = Label.ESTIMATED
    model_version: str = "recorded-1"
    before_round: Callable[[int], None] = lambda number: None
    before_confirm: Callable[[], None] = lambda: None
    confirmed: dict[Config, float] = field(default_factory=dict)
    asked: list[tuple[Problem, Config]] = field(default_factory=list)
    rounds: list[list[Config]] = field(default_factory=list)

    def evaluate(self, spec: KernelSpec, problem: Problem, configs: Sequence[Config]) -> list[Evaluation]:
        self.before_round(len(self.rounds))
        self.rounds.append(list(configs))
        self.asked += [(problem, config) for config in configs]
        return [self._evaluation(problem, config) for config in configs]

    def recall(self, problem: Problem, row: TrialRow) -> Evaluation | None:
        config = Config.from_json(row.params_json)
        value = row.us if self.label is Label.MEASURED else row.score
        return Evaluation(config, row.state, value, samples_us=row.samples_us, error=row.error)

    def confirm(self, problem: Problem, ranked: Sequence[Evaluation], default: Config) -> list[Evaluation]:
        self.before_confirm()
        return [
            self._made(each.config, self.confirmed[each.config]) if each.config in self.confirmed else each
            for each in ranked
        ]

    def _evaluation(self, problem: Problem, config: Config) -> Evaluation:
        value = self.landscape(problem, config)
        if value is None:
            return Evaluation(config, TrialState.TIMEOUT, None, error="passed the limit of 1 s")
        return self._made(config, value)

    def _made(self, config: Config, value: float) -> Evaluation:
        samples = (value * 0.99, value, value * 1.01) if self.label is Label.MEASURED else ()
        return Evaluation(config, TrialState.OK, value, samples_us=samples)


@dataclass
class FakeClock:
    """Time that passes only when told to."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class Quiet:
    """A stream that keeps what was written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


ENV = Environment(triton="3.7.1", triton_key="k1", policy="recorded")


@dataclass
class Bench:
    """A device, a store on disk, and `run`, which makes a Tuner as `autotune run` does."""

    path: Path
    device: Device
    store: ConfigStore
    lines: Quiet = field(default_factory=Quiet)

    def run(
        self, objective: RecordedObjective, problems: Sequence[Problem], *, settings: RunSettings,
        clock: FakeClock | None = None, env: Environment = ENV,
    ):  # fmt: skip
        tuner = Tuner(
            self.device, objective, env, self.store, settings, PlainProgress(self.lines), clock or FakeClock()
        )
        return tuner.run(problems, {"test": True})


@pytest.fixture(scope="session")
def device() -> Device:
    """The MI300X."""
    return resolve("gfx942")


@pytest.fixture
def bench(tmp_path: Path, device: Device) -> Iterator[Bench]:
    """A tuner's surroundings with an empty database."""
    with ConfigStore.open(tmp_path / "tuned.db") as store:
        yield Bench(tmp_path / "tuned.db", device, store)


@pytest.fixture
def recorded() -> type[RecordedObjective]:
    """The class RecordedObjective."""
    return RecordedObjective


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock at 100 s."""
    return FakeClock()


def _problem(kernel: str, batch: int, dims: dict[str, int]) -> Problem:
    return spec_of(kernel).space.problem(dtype="bf16", batch=batch, **dims)


@pytest.fixture(scope="session")
def norm() -> Callable[..., Problem]:
    """`norm(batch)`: six legal configs on gfx942 at hidden 2048, one at hidden 64."""
    return lambda batch, hidden=2048, kernel="rms_norm": _problem(kernel, batch, {"hidden": hidden})


@pytest.fixture(scope="session")
def router() -> Callable[[int], Problem]:
    """`router(batch)`: 2, 5, 13 legal configs at batch 1, 2, 8."""
    return lambda batch: _problem("router", batch, {"experts": 128, "top_k": 8, "renormalize": 1})


@pytest.fixture(scope="session")
def linear() -> Callable[[int], Problem]:
    """`linear(batch)`: some 540 legal configs of eleven parameters."""
    return lambda batch: _problem("linear", batch, {"n": 64, "k": 256, "bias": 0, "residual": 0})
