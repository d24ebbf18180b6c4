"""What the database says, as far as it was asked: the answers of one Lookup, checked and completed with defaults."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..cache.answer import Answer, Tier
from ..cache.errors import StoreError
from ..cache.key import Cell
from ..cache.location import database_path, shipped_databases
from ..cache.lookup import Lookup
from ..kernels_triton.registry import spec_of
from ..kernels_triton.spec import KernelSpec
from ..search_spaces.arch import Device
from ..search_spaces.config import Config, InvalidConfig
from ..search_spaces.problem import InvalidProblem, Problem, parse_signature
from ..search_spaces.registry import UnknownKernel
from ..search_spaces.space import EmptySpace
from .choice import Choice, Miss
from .failures import is_bad
from .log import LOG, warn_once

MAX_CONTEXT_RATIO = 4.0
"""How far a stored context of decode attention may be from the one asked for, as a factor."""
LOCK_TIMEOUT_S = 1.0
"""A model waits this long for a database that somebody else has locked, then runs without it."""

_AGAIN = "; paiton.reload() reads it again"


class Snapshot:
    """The state of the databases at one time, as far as it was asked. Safe to share between threads."""

    def __init__(self, lookup: Lookup | None, note: str = "") -> None:
        self.note = note
        """Why there is no database, in one line; empty if there is one."""
        self._lookup = lookup
        self._pid = os.getpid()
        self._misses: dict[tuple[str, str, str, str], Miss] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, environ: Mapping[str, str]) -> Snapshot:
        """The user's database over the shipped ones, where PAITON_DB or the XDG data folder says. Never raises for the
        state of a file: one that is missing, damaged, locked or newer is left out, with one warning."""
        try:
            lookup = Lookup.open(
                database_path(None, environ),
                shipped=shipped_databases(environ),
                beyond_range=True,
                report_misses=False,
                timeout_s=LOCK_TIMEOUT_S,
            )
        except StoreError as error:
            return cls(None, _without(error))
        return cls(lookup)

    def close(self) -> None:
        """Close the files. A thread that still holds this snapshot gets defaults from it."""
        with self._lock:
            if self._lookup is not None and self._pid == os.getpid():
                self._lookup.close()
            self._lookup = None

    def choose(self, problem: Problem, device: Device) -> Choice | None:
        """The config for a problem on a device and why; None where no kernel of ours is legal for it."""
        try:
            spec = spec_of(problem.kernel)
            default = spec.space.default_config(problem, device)
        except (UnknownKernel, EmptySpace, InvalidProblem):
            return None
        choice = Choice(problem, default, device, Tier.DEFAULT, "default", plan=spec.plan)
        with self._lock:
            answer = self._answer(_cell(problem, device, spec), spec)
        choice = replace(choice, reason=answer.reason)
        if answer.row is not None:
            choice = _checked(choice, answer, spec)
        if is_bad(choice):
            reason = f"{choice.reason}; failed to launch in this process"
            choice = replace(choice, config=default, tier=Tier.DEFAULT, row=None, reason=reason)
            return None if is_bad(choice) else choice
        return choice

    def report_miss(self, choice: Choice) -> None:
        """Remember that a call ran without a stored config; the first miss of a snapshot is logged, unless a fault of
        the database was."""
        problem = choice.problem
        cell = _cell(problem, choice.device, spec_of(problem.kernel))
        key = (cell.kernel, cell.signature, cell.dtype, cell.device)
        with self._lock:
            known = self._misses.get(key)
            batches = tuple(sorted({*(known.batches if known else ()), cell.batch}))
            miss = self._misses[key] = Miss(cell, choice.reason, batches)
            is_first = len(self._misses) == 1 and known is None
        if known is None:
            LOG.info("%s: %s; tune it with: %s", cell, miss.reason, miss.command())
        if is_first and not self.note:
            warn_once(
                f"no tuned configuration for {cell}, and perhaps for more: defaults are used."
                f" Tune it with: {miss.command()} (paiton.explain shows all)"
            )

    def misses(self) -> tuple[Miss, ...]:
        """Problems asked for without a stored config, in the order they came up."""
        with self._lock:
            return tuple(self._misses.values())

    def _answer(self, cell: Cell, spec: KernelSpec) -> Answer:
        if self._lookup is not None and self._pid != os.getpid():
            # A forked child must not use its parent's SQLite connections.
            self._lookup, self.note = None, "this process was forked: defaults are used" + _AGAIN
        if self._lookup is None:
            return Answer(config_json=None, tier=Tier.DEFAULT, reason=f"default: {self.note or 'no database'}")
        try:
            answer = self._lookup.find(cell)
            return answer if answer.tier is not Tier.DEFAULT else self._other_context(self._lookup, cell) or answer
        except StoreError as error:
            self._lookup.close()
            self._lookup, self.note = None, _without(error)
            return Answer(config_json=None, tier=Tier.DEFAULT, reason=f"default: {self.note}")

    def _other_context(self, lookup: Lookup, cell: Cell) -> Answer | None:
        """The answer of the nearest stored context, for a kernel whose problem has one."""
        dims = parse_signature(cell.signature)
        context = dims.pop("context", 0)
        if not context:
            return None
        near = []
        for signature in lookup.signatures(cell.kernel, cell.dtype, cell.arch, kernel_digest=cell.kernel_digest):
            try:
                stored = parse_signature(signature)
            except InvalidProblem:
                continue
            other = stored.pop("context", 0)
            if stored == dims and other and max(other, context) / min(other, context) <= MAX_CONTEXT_RATIO:
                near.append((abs(math.log2(other / context)), other, signature))
        for _, other, signature in sorted(near):
            answer = lookup.find(replace(cell, signature=signature))
            if answer.tier is not Tier.DEFAULT:
                tier = Tier.OTHER_BATCH if answer.tier is Tier.EXACT else answer.tier
                return replace(answer, tier=tier, reason=f"context {other} serves context {context}, {answer.reason}")
        return None


def _cell(problem: Problem, device: Device, spec: KernelSpec) -> Cell:
    return Cell(
        arch=device.arch.name, device=device.name, kernel=problem.kernel, kernel_digest=spec.digest,
        signature=problem.signature, dtype=problem.dtype, batch=problem.batch,
    )  # fmt: skip


def _checked(choice: Choice, answer: Answer, spec: KernelSpec) -> Choice:
    """`choice` with the answer's config, or with the default where a launch must not get that config: a file may hold
    anything. It has to be legal here for the problem that its row was found for; another batch needs no other check,
    because no kernel depends on it for more than its grid."""
    assert answer.row is not None
    if answer.config_json is None:
        return replace(choice, tier=answer.tier, row=answer.row)
    cell = answer.row.cell
    try:
        config = Config.from_json(answer.config_json)
        with np.errstate(all="ignore"):
            problem = spec.space.problem_from(cell.signature, cell.dtype, cell.batch)
            faults = spec.space.faults(config, problem, choice.device)
    except (InvalidConfig, InvalidProblem, ArithmeticError, TypeError) as error:
        faults = [str(error)]
    if not faults:
        return replace(choice, config=config, tier=answer.tier, reason=answer.reason, row=answer.row)
    refused = f"the stored config {answer.config_json[:200]} is refused: {'; '.join(faults)}"
    warn_once(f"{cell}: {refused}")
    return replace(choice, reason=f"default: {refused}")


def _without(error: StoreError) -> str:
    """Warn that there is no database; the one line that says so."""
    note = f"no database: {error}"
    warn_once(f"{note}; kernels run with default configurations{_AGAIN}")
    return note
