"""The values that go into the database and come out of it, checked when made: an invalid row cannot exist.

Times are microseconds per call. A `score` is the static model's relative time: lower is faster, it has no
unit, and two scores compare only within one cell and one model version. Timestamps are Unix milliseconds,
UTC; 0 asks the store to stamp the row when it is written. JSON fields are made canonical (sorted names, no
spaces, ASCII).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from enum import Enum, IntEnum
from functools import cached_property
from typing import NewType

from .checks import canonical_object, check_count, check_text, finite, positive, storable
from .errors import RowRefused
from .key import Cell, Environment
from .row_text import digest_text

RunId = NewType("RunId", bytes)


class Label(IntEnum):
    """How much a row may be believed; a higher label always wins."""

    PRIOR = 0
    ESTIMATED = 1
    MEASURED = 2


class TrialState(str, Enum):
    """How a trial or a compile ended. Only `OK` is a candidate for the answer."""

    OK = "ok"
    ILLEGAL = "illegal"
    OVER_LIMIT = "over_limit"
    SPILLED = "spilled"
    COMPILE_ERROR = "compile_error"
    TIMEOUT = "timeout"
    CRASH = "crash"
    WRONG = "wrong"


class RunStatus(str, Enum):
    """How a run ended. A killed run stays `RUNNING`: nobody was left to say otherwise."""

    RUNNING = "running"
    DONE = "done"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Whose word a row is. `OURS` for what this installation found; imports name their origin."""

    name: str
    version: str = ""
    licence: str = ""
    signer: str = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            check_text(f"source {f.name}", getattr(self, f.name))


OURS = Source(name="paiton")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One entry of a shortlist: a config and its score."""

    config_json: str
    score: float

    def __post_init__(self) -> None:
        config_json = canonical_object("shortlist config", self.config_json)
        if config_json is not self.config_json:
            _set(self, "config_json", config_json)
        score = positive("shortlist score", self.score)
        if score is None:
            raise RowRefused("shortlist score=None: expected a finite positive number")
        if score is not self.score:
            _set(self, "score", score)


@dataclass(frozen=True, kw_only=True)
class TunedRow:
    """The answer for one cell under one compiler.

    `config_json` None means: the kernel's default is best. `us_default` and `score_default` are the default
    config in the same measurement or estimate. `shortlist` is best first, so that the owner of the GPU can
    finish the job in as many runs as it has entries. A measured row has `us_median` and samples, and may keep
    the estimate it superseded; an estimated row has a score and no microseconds.
    """

    cell: Cell
    label: Label
    env: Environment
    config_json: str | None
    us_median: float | None = None
    us_p10: float | None = None
    us_p90: float | None = None
    samples: int = 0
    us_default: float | None = None
    score: float | None = None
    score_default: float | None = None
    model_version: str = ""
    shortlist: tuple[Candidate, ...] = ()
    facts_json: str | None = None
    compute_units: int | None = None
    source: Source = OURS
    ts_ms: int = 0

    def __post_init__(self) -> None:
        _set(self, "label", _label(self.label))
        if self.config_json is not None:
            _set(self, "config_json", canonical_object("config", self.config_json))
        if self.facts_json is not None:
            _set(self, "facts_json", canonical_object("facts", self.facts_json))
        for name in ("us_median", "us_p10", "us_p90", "us_default", "score", "score_default"):
            value = getattr(self, name)
            if value is not None:
                _set(self, name, positive(name, value))
        check_text("model_version", self.model_version)
        for name in ("samples", "compute_units", "ts_ms"):
            check_count(name, getattr(self, name))
        timed = self.us_median is not None
        if self.label is Label.MEASURED and not (timed and self.samples > 0):
            raise RowRefused(f"measured row for {self.cell}: us_median and samples > 0 are required")
        if self.label is Label.ESTIMATED and (timed or self.samples or self.score is None):
            raise RowRefused(f"estimated row for {self.cell}: a score is required, microseconds are not accepted")

    @cached_property
    def digest(self) -> bytes:
        """16-byte BLAKE2b of the whole row with env and source spelled out: the last criterion of the total order.

        It must cover everything that is stored: were two different rows to tie, the order of merging would show.
        """
        return hashlib.blake2b(digest_text(self).encode(), digest_size=16, person=b"paiton.row").digest()


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One finished trial: what was tried (`params_json`), how it ended, and the value the sampler was told.

    `us` is the measured time, None unless measured; `told` is always finite, for failed trials the penalty,
    so that a resumed run shows its sampler exactly what the interrupted one saw. `worker` says under which
    conditions a time was taken. `run` and `no` are filled in when read back.
    """

    cell: Cell
    params_json: str
    state: TrialState
    told: float
    us: float | None = None
    score: float | None = None
    samples_us: tuple[float, ...] = ()
    error: str = ""
    facts_json: str | None = None
    model_version: str = ""
    worker: str = ""
    ts_ms: int = 0
    run: RunId | None = None
    no: int | None = None

    def __post_init__(self) -> None:
        _set(self, "state", _state(self.state))
        _set(self, "params_json", canonical_object("params", self.params_json))
        if self.facts_json is not None:
            _set(self, "facts_json", canonical_object("facts", self.facts_json))
        _set(self, "told", finite("told", self.told))
        for name in ("us", "score"):
            _set(self, name, positive(name, getattr(self, name)))
        _set(self, "samples_us", tuple(positive("samples_us", sample) for sample in self.samples_us))
        for name in ("model_version", "worker"):
            check_text(name, getattr(self, name))
        check_count("ts_ms", self.ts_ms)
        _set(self, "error", storable(self.error))


@dataclass(frozen=True, kw_only=True)
class CompiledRow:
    """Result of one compile, found again by the 16-byte digest of everything the compiler was given."""

    key: bytes
    state: TrialState
    seconds: float
    facts_json: str | None = None
    error: str = ""
    ts_ms: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.key, bytes) or len(self.key) != 16:
            raise RowRefused(f"compile key {self.key!r}: expected 16 bytes")
        _set(self, "state", _state(self.state))
        if self.facts_json is not None:
            _set(self, "facts_json", canonical_object("facts", self.facts_json))
        _set(self, "seconds", finite("seconds", self.seconds))
        check_count("ts_ms", self.ts_ms)
        _set(self, "error", storable(self.error))


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run of the tuner as recorded: its arguments, seed, environment, and how it ended."""

    run: RunId
    arguments_json: str
    seed: int
    env: Environment
    started_ms: int
    ended_ms: int | None
    status: RunStatus


def _state(value: TrialState | str) -> TrialState:
    try:
        return TrialState(value)
    except ValueError:
        raise RowRefused(f"state {value!r}: expected one of {', '.join(s.value for s in TrialState)}") from None


def _label(value: Label | int) -> Label:
    if type(value) is Label:
        return value
    try:
        return Label(value)
    except ValueError:
        raise RowRefused(
            f"label {value!r}: expected one of {', '.join(f'{x.value} {x.name}' for x in Label)}"
        ) from None


def _set(row: object, name: str, value: object) -> None:
    if getattr(row, name) is not value:
        object.__setattr__(row, name, value)
