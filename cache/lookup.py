"""Which config a kernel gets, and why: the read path of a server. Standard library only (sqlite3 and a dict).

The answer is the first of: the exact cell; the nearest other batch bucket of the same site, within a bounded
log2 distance and inside the range that was tuned; the same on another device of the same arch; the kernel's
default. A row of another kernel version is never served: its config may not even mean the same thing. It is
counted in the reason, because it can seed a new search.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from .answer import Answer, Counts, Explanation, Tier, weigh
from .connection import BUSY_TIMEOUT_S
from .errors import DatabaseMissing, StoreError, shown
from .hint import run_line
from .key import Cell, Environment, is_other_compiler
from .layer import Layer, Site
from .rows import TunedRow

MAX_LOG2_DISTANCE = 1.0

_LOG = logging.getLogger("paiton")

T = TypeVar("T")


@dataclass(frozen=True)
class _Found:
    path: Path
    row: TunedRow


class _Known:
    """An answer and how often it was given. Threads that race may lose a count, never an answer."""

    __slots__ = ("answer", "count")

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.count = 0


class Lookup:
    """Answers from the user's database over any number of shipped ones, remembered: the life of a Lookup is one
    snapshot as far as it was asked.

    At equal tier the better label wins, at equal label the earlier file. Safe to share between threads. Made by `open`.
    """

    def __init__(self, path: Path, layers: Iterable[Layer], *, skipped: tuple[str, ...] = ()) -> None:
        self.path = path
        self.skipped = skipped
        """Why a file takes no part, one line each."""
        self._layers = list(layers)
        self._running: Environment | None = None
        self._compilers = (b"", b"")
        self._max_ratio = 2.0**MAX_LOG2_DISTANCE
        self._beyond_range = False
        self._reports_misses = True
        self._known: dict[Cell, _Known] = {}
        self._signatures: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._missed: set[tuple[Site, str]] = set()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        shipped: Iterable[str | os.PathLike[str]] = (),
        running: Environment | None = None,
        max_log2_distance: float = MAX_LOG2_DISTANCE,
        beyond_range: bool = False,
        report_misses: bool = True,
        timeout_s: float = BUSY_TIMEOUT_S,
    ) -> Lookup:
        """Open for reading; no file is changed and nothing is created beside a shipped one.

        `shipped` files (see location.shipped_databases) are opened as immutable: they may only ever be replaced by a
        rename. Beside them a file that is missing or cannot be read is left out with one line in the log of `paiton`;
        `path` alone raises StoreError as ConfigStore.open does. Under the `running` environment (its Triton and, if
        known, its toolkit) answers of that compiler come first among equals, and others say so in their reason.
        `beyond_range` lets the nearest bucket also serve a batch outside the range that was tuned, within the same
        distance. `report_misses=False` leaves misses out of the log, for a caller that asks speculatively; `counts`
        has them either way.
        `timeout_s` is how long a question may wait for a file that another process has locked.
        """
        user, others = Path(path), [Path(each) for each in shipped]
        layers: list[Layer] = []
        skipped: list[str] = []
        for where in (user, *others):
            try:
                layers.append(Layer(where, is_shipped=where is not user, timeout_s=timeout_s))
            except StoreError as error:
                if not others:
                    raise
                skipped.append(str(error))
                _LOG.log(logging.INFO if isinstance(error, DatabaseMissing) else logging.WARNING, "left out: %s", error)
        lookup = cls(user, layers, skipped=tuple(skipped))
        if running is not None:
            lookup._running = running
            lookup._compilers = (running.compiler, replace(running, toolkit="").compiler)
        lookup._max_ratio = 2.0**max_log2_distance
        lookup._beyond_range = beyond_range
        lookup._reports_misses = report_misses
        return lookup

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that answer, first the user's."""
        return tuple(layer.path for layer in self._layers)

    def close(self) -> None:
        """Close the files; answers already given stay available."""
        for layer in self._layers:
            layer.close()

    def __enter__(self) -> Lookup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, cell: Cell) -> Answer:
        """The answer for `cell` and its reason. Raises StoreError when the only file is damaged or gone."""
        known = self._known.get(cell)
        if known is None:
            with self._lock:
                known = self._known.get(cell)
                if known is None:
                    known = self._known[cell] = _Known(self._search(cell))
        known.count += 1
        return known.answer

    def signatures(self, kernel: str, dtype: str, arch: str, *, kernel_digest: str) -> tuple[str, ...]:
        """The problem signatures of one kernel version with a row in any file, sorted, whatever device and batch.

        For a caller with a dimension that is rarely stored exactly (the context of decode attention), who picks the
        nearest and asks `find` for that. Remembered like answers. Raises StoreError as `find` does.
        """
        asked = (kernel, kernel_digest, dtype, arch)
        known = self._signatures.get(asked)
        if known is None:
            with self._lock:
                found = {each for _, each in self._ask(lambda layer: layer.signatures(*asked))}
                known = self._signatures[asked] = tuple(sorted(found))
        return known

    def counts(self) -> Counts:
        """Answers given so far, by tier."""
        with self._lock:
            known = list(self._known.values())
        by_tier = {tier: sum(each.count for each in known if each.answer.tier is tier) for tier in Tier}
        return Counts(**{tier.name.lower(): count for tier, count in by_tier.items()})

    def explain(self, cell: Cell, *, limit: int = 20) -> Explanation:
        """The answer for `cell`, and the `limit` nearest rows of its kernel with the key fields that differ."""
        answer = self.find(cell)
        with self._lock:
            near = list(self._ask(lambda layer: layer.near(cell, limit)))
        near.sort(key=lambda each: (len(cell.differs(each[1].cell)), _ratio(cell, each[1].cell), -each[1].label))
        considered = tuple(weigh(cell, answer, path, row) for path, row in near[:limit])
        return Explanation(cell=cell, answer=answer, considered=considered)

    def _ask(self, question: Callable[[Layer], list[T]]) -> Iterator[tuple[Path, T]]:
        """What every file answers. One that breaks under way is left out from then on, unless it is the only one."""
        for layer in list(self._layers):
            try:
                found = question(layer)
            except StoreError as error:
                self._drop(layer, error)
                continue
            for each in found:
                yield layer.path, each

    def _drop(self, layer: Layer, error: StoreError) -> None:
        if len(self._layers) == 1:
            raise error
        self._layers.remove(layer)
        layer.close()
        self.skipped = (*self.skipped, f"{shown(layer.path)}: {error}")
        _LOG.warning("%s is left out from now on: %s", shown(layer.path), error)

    def _search(self, cell: Cell) -> Answer:
        found = self._best(cell)
        if found is not None:
            return self._serve(Tier.EXACT, found, "exact")
        site = Site(cell.kernel, cell.signature, cell.dtype, cell.arch)
        stored = [
            replace(cell, device=device, kernel_digest=digest, batch=batch)
            for device, digest, batch in dict.fromkeys(each for _, each in self._ask(lambda layer: layer.stored(site)))
        ]
        same_kernel = [other for other in stored if other.kernel_digest == cell.kernel_digest]
        here = [other for other in same_kernel if other.device == cell.device]
        found = self._nearest(cell, here)
        if found is not None:
            return self._serve(Tier.OTHER_BATCH, found, f"batch {found.row.cell.batch} serves batch {cell.batch}")
        found = self._nearest(cell, [other for other in same_kernel if other.device != cell.device])
        if found is not None:
            row = found.row
            bucket = "" if row.cell.batch == cell.batch else f", batch {row.cell.batch} serves batch {cell.batch}"
            return self._serve(Tier.OTHER_DEVICE, found, f"tuned on {row.cell.device}, not {cell.device}{bucket}")
        reason = _miss(cell, stored, same_kernel)
        if self._reports_misses:
            self._report_miss(cell, site, reason)
        return Answer(config_json=None, tier=Tier.DEFAULT, reason=reason)

    def _report_miss(self, cell: Cell, site: Site, reason: str) -> None:
        """One line in the log for each kernel and problem, with the command that fills the gap."""
        if (site, cell.device) not in self._missed:
            self._missed.add((site, cell.device))
            _LOG.warning("%s: %s; tune it with: %s", cell, reason, run_line(cell))

    def _best(self, cell: Cell) -> _Found | None:
        """Best row over all files; of equal labels the earlier file's."""
        best: _Found | None = None
        for path, row in self._ask(lambda layer: layer.best(cell.key, self._compilers)):
            if best is None or row.label > best.row.label:
                best = _Found(path, row)
        return best

    def _nearest(self, cell: Cell, stored: list[Cell]) -> _Found | None:
        """Best row among the cells whose bucket is nearest, if near enough and each device's range covers it."""
        covered = [
            other
            for other in stored
            if (self._beyond_range or _covers((s.batch for s in stored if s.device == other.device), cell.batch))
            and _ratio(other, cell) <= self._max_ratio
        ]
        if not covered:
            return None
        least = min(_ratio(other, cell) for other in covered)
        near = [each for other in covered if _ratio(other, cell) == least and (each := self._best(other)) is not None]
        # At equal distance: the better label, then the larger bucket (a bucket is an upper bound), then by name.
        return min(near, key=lambda each: (-each.row.label, -each.row.cell.batch, each.row.cell.device), default=None)

    def _serve(self, tier: Tier, found: _Found, why: str) -> Answer:
        row = found.row
        reason = f"{why}; {row.label.name.lower()}"
        if row.config_json is None:
            reason += "; the default is best"
        is_other = self._running is not None and is_other_compiler(row.env, self._running)
        if is_other:
            reason += f"; under another compiler (Triton {row.env.triton or 'unknown'}), retune to confirm"
        if found.path != self.path:
            reason += f"; from {shown(found.path.name)}"
        return Answer(
            config_json=row.config_json, tier=tier, reason=reason, label=row.label, row=row, database=found.path,
            is_other_compiler=is_other,
        )  # fmt: skip


def _miss(cell: Cell, stored: list[Cell], same_kernel: list[Cell]) -> str:
    here = sorted({other.batch for other in same_kernel if other.device == cell.device})
    if here:
        why = f"batch {cell.batch} is too far from the tuned buckets {_listed(here)}"
    elif same_kernel:
        devices = ", ".join(sorted({other.device for other in same_kernel}))
        why = f"no bucket near batch {cell.batch}, only on other devices ({devices})"
    elif stored:
        why = f"{len(stored)} row(s) of another kernel version, never served; they can seed a new search"
    else:
        why = f"no row for {cell}"
    return f"default: {why}"


def _ratio(a: Cell, b: Cell) -> float:
    """Distance of two buckets as a factor of at least 1; its log2 is what is bounded."""
    return max(a.batch, b.batch) / min(a.batch, b.batch)


def _covers(batches: Iterable[int], batch: int) -> bool:
    known = list(batches)
    return min(known) <= batch <= max(known)


def _listed(batches: list[int]) -> str:
    return ", ".join(map(str, batches[:16])) + (" ..." if len(batches) > 16 else "")
