"""Which config a call gets: one dictionary look-up into an immutable-in-effect snapshot of the database.

Nothing here benchmarks or writes. An operator asks with the sizes of its real arguments; the first answer to a question
takes a look at the database (a fraction of a millisecond), every later one a dictionary (below a microsecond).
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..cache.answer import Tier
from ..search_spaces.arch import Device, resolve
from ..search_spaces.problem import Problem
from . import failures, gpu
from .ask import Asks
from .choice import Choice, Miss, Outcome, Way, time_us
from .log import forget as forget_warnings
from .snapshot import Snapshot

MAX_MEMORY = 8192
"""Questions remembered; a prompt length is a question of its own, so their number has no other bound."""

LEFT_TO_TORCH = frozenset({"linear", "linear_qkv", "linear_silu_mul", "attention_prefill"})
"""Kernels whose default loses to a vendor's library (cuBLAS, hipBLASLt, flash attention): torch runs them untuned."""

_OUTCOME = {
    Tier.EXACT: Outcome.EXACT,
    Tier.OTHER_BATCH: Outcome.OTHER_BATCH,
    Tier.OTHER_DEVICE: Outcome.OTHER_DEVICE,
    Tier.DEFAULT: Outcome.DEFAULT,
}


class _Known:
    """An answer and how often it was given. Threads that race may lose a count, never an answer."""

    __slots__ = ("calls", "outcome", "way")

    def __init__(self, way: Way | None) -> None:
        self.way = way
        self.outcome = Outcome.TORCH if way is None else _OUTCOME[_worst(way)]
        self.calls = 0


class _State:
    """What a reload replaces, in one assignment."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.known: dict[tuple[Asks, torch.device], _Known] = {}
        self.earlier: Counter[Outcome] = Counter()
        """Of answers that were forgotten for lack of room."""


_state: _State | None = None
_lock = threading.Lock()
_untuned_too = False


def choose(asks: Asks, torch_device: torch.device) -> Way | None:
    """The way to run a call on a device, a choice for each of its kernels; None: torch computes it (the body).

    `asks` are the ways there are, as the operators' `asks_...` functions make them. Remembered; thread-safe.
    """
    state = _state or _opened()
    known = state.known.get((asks, torch_device))
    if known is None:
        known = _decide(state, asks, torch_device)
    known.calls += 1
    return known.way


def choose_way(ways: tuple[tuple[Problem, ...], ...], device: Device) -> Way | None:
    """What `choose` would answer on a device of the catalogue; for explain and decisions: not counted, no miss noted.

    `ways` as `ops.registry.problems_of` gives them.
    """
    snapshot = (_state or _opened()).snapshot
    return _best(tuple(tuple(snapshot.choose(problem, device) for problem in way) for way in ways))


def misses() -> tuple[Miss, ...]:
    """Problems that were launched, or left to torch, for want of a stored config, in the order they came up."""
    return () if _state is None else _state.snapshot.misses()


def counts() -> dict[str, int]:
    """Calls since the last reload by outcome (see `Outcome`). A failed launch also counts as what was chosen."""
    state = _state
    total: Counter[Outcome] = Counter()
    if state is not None:
        total.update(state.earlier)
        for known in list(state.known.values()):
            total[known.outcome] += known.calls
    total[Outcome.FAILED] = sum(failures.counts().values())
    return {outcome.value: total[outcome] for outcome in Outcome}


def database_note() -> str:
    """Why there is no database, in one line; empty where there is one."""
    return (_state or _opened()).snapshot.note


def reload() -> None:
    """Read the databases again, forget what failed to launch, and let torch compile again: a captured CUDA graph holds
    the config it was captured with."""
    global _state
    with _lock:
        old, _state = _state, None
    if old is not None:
        old.snapshot.close()
    failures.forget()
    forget_warnings()
    torch._dynamo.reset()


def forget_choices() -> None:
    """Ask the snapshot again from now on: a config has just failed."""
    if _state is not None:
        _forget(_state)


@contextmanager
def use_device(name: str, *, untuned_too: bool = True) -> Iterator[Device]:
    """Let the CPU count as a device of the catalogue: operators on CPU tensors take the launcher's path meanwhile.

    For tests and demonstrations, with Triton's interpreter (TRITON_INTERPRET=1). `untuned_too` launches the kernels
    that are otherwise left to torch without a stored config. Of the whole process, and not to be nested: the launchers
    are registered for CPU tensors and taken away again, so that other calls pay nothing. Raises UnknownDevice.
    """
    from .ops.registry import launch_on_cpu

    global _untuned_too
    device = resolve(name)
    cpu = torch.device("cpu")
    with launch_on_cpu():
        gpu.stand_in(cpu, device)
        _untuned_too = untuned_too
        forget_choices()
        try:
            yield device
        finally:
            gpu.stand_in(cpu, None)
            _untuned_too = False
            forget_choices()


def _opened() -> _State:
    global _state
    with _lock:
        if _state is None:
            _state = _State(Snapshot.open(os.environ))
        return _state


def _decide(state: _State, asks: Asks, torch_device: torch.device) -> _Known:
    device = gpu.device_of(torch_device)
    way = None
    if device is not None:
        problems = (tuple(ask.problem() for ask in each) for each in asks)
        ways = tuple(
            tuple(None if problem is None else state.snapshot.choose(problem, device) for problem in each)
            for each in problems
        )
        way = _best(ways)
        if way is not None:
            for choice in way:
                if not choice.is_tuned:
                    state.snapshot.report_miss(choice)
            if not _untuned_too and any(not c.is_tuned and c.problem.kernel in LEFT_TO_TORCH for c in way):
                way = None
    if len(state.known) >= MAX_MEMORY:
        _forget(state)
    known = state.known[asks, torch_device] = _Known(way)
    return known


def _best(ways: tuple[tuple[Choice | None, ...], ...]) -> Way | None:
    """The tuned way, of several or none tuned the faster one."""
    possible = [tuple(c for c in way if c is not None) for way in ways if None not in way]
    tuned = [way for way in possible if all(choice.is_tuned for choice in way)]
    candidates = tuple(tuned or possible)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    times = time_us(candidates)
    return candidates[times.index(min(times))]


def _worst(way: Way) -> Tier:
    order = list(Tier)
    return max((choice.tier for choice in way), key=order.index)


def _forget(state: _State) -> None:
    for known in list(state.known.values()):
        state.earlier[known.outcome] += known.calls
    state.known.clear()
