"""What a person sees while a run goes on: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TextIO

from ..search_spaces.problem import Problem

PLAIN_INTERVAL_S = 10.0


class Progress(Protocol):
    """The events of a run, told in order."""

    def begin(self, cells: int, trials: int) -> None:
        """So many cells with so many trials at most."""

    def start_cell(self, problem: Problem, trials: int) -> None:
        """A cell begins; it will try at most so many configs."""

    def count_trials(self, count: int, best: str) -> None:
        """So many more configs were tried; `best` describes the best so far."""

    def end_cell(self, note: str, trials: int) -> None:
        """The cell is done; `trials` were planned for it."""

    def say(self, text: str) -> None:
        """A line that stays on the screen."""


@dataclass
class Pace:
    """Trials done and planned, and what they say about speed and time left."""

    clock: Callable[[], float] = time.monotonic
    cells: int = 0
    cells_done: int = 0
    planned: int = 0
    passed: int = 0
    tried: int = 0
    started: float = field(default=0.0)

    def begin(self, cells: int, trials: int) -> None:
        """Start the clock."""
        self.cells, self.planned, self.started = cells, trials, self.clock()

    @property
    def rate(self) -> float:
        """Trials per second since the start."""
        return self.tried / max(self.clock() - self.started, 1e-9)

    @property
    def left(self) -> str:
        """Time left at this pace, by the share of planned trials passed."""
        if not self.passed or not self.tried:
            return "?"
        elapsed = self.clock() - self.started
        return duration(elapsed * (self.planned - self.passed) / self.passed)


def duration(seconds: float) -> str:
    """72 -> `1m12s`."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


class PlainProgress:
    """One line per finished cell at most every ten seconds, and every remark."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._pace = Pace(clock)
        self._clock = clock
        self._last = float("-inf")
        self._problem: Problem | None = None
        self._best = ""

    def begin(self, cells: int, trials: int) -> None:
        """See Progress."""
        self._pace.begin(cells, trials)

    def start_cell(self, problem: Problem, trials: int) -> None:
        """See Progress."""
        self._problem, self._best = problem, ""

    def count_trials(self, count: int, best: str) -> None:
        """See Progress."""
        self._pace.tried += count
        self._best = best

    def end_cell(self, note: str, trials: int) -> None:
        """See Progress."""
        self._pace.cells_done += 1
        self._pace.passed += trials
        if self._clock() - self._last >= PLAIN_INTERVAL_S or self._pace.cells_done == self._pace.cells:
            self._last = self._clock()
            pace = self._pace
            self.say(
                f"[{pace.cells_done}/{pace.cells}] {self._problem}: {note}; {pace.rate:.1f} trials/s, {pace.left} left"
            )

    def say(self, text: str) -> None:
        """See Progress."""
        self._stream.write(text + "\n")
        self._stream.flush()


class RichProgress:
    """A live bar with kernel, batch, best so far, trials per second and time left. Use as a context manager."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._pace = Pace(clock)
        self._display = Progress(
            TextColumn("[bold]{task.fields[kernel]}[/] batch {task.fields[batch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[cells]}  best {task.fields[best]}  {task.fields[rate]}  {task.fields[left]} left"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._display.add_task(
            "", total=1, kernel="", batch="", cells="", best="", rate="", left="?", visible=False
        )

    def __enter__(self) -> RichProgress:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def begin(self, cells: int, trials: int) -> None:
        """See Progress."""
        self._pace.begin(cells, trials)
        self._display.update(self._task, total=trials, visible=True)

    def start_cell(self, problem: Problem, trials: int) -> None:
        """See Progress."""
        self._display.update(self._task, kernel=problem.kernel, batch=problem.batch, best="-", **self._fields())

    def count_trials(self, count: int, best: str) -> None:
        """See Progress."""
        self._pace.tried += count
        self._display.update(self._task, best=best, **self._fields())

    def end_cell(self, note: str, trials: int) -> None:
        """See Progress."""
        self._pace.cells_done += 1
        self._pace.passed += trials
        self._display.update(self._task, completed=self._pace.passed, **self._fields())

    def say(self, text: str) -> None:
        """See Progress."""
        self._display.console.print(text, markup=False, highlight=False)

    def _fields(self) -> dict[str, Any]:
        pace = self._pace
        return {
            "cells": f"{pace.cells_done}/{pace.cells} cells", "rate": f"{pace.rate:.1f} trials/s", "left": pace.left,
        }  # fmt: skip
