"""What a graph's operators ask the database: which config each batch gets, from where, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..cache.key import Cell
from ..kernels_triton.registry import spec_of
from ..search_spaces.arch import Device
from ..search_spaces.problem import Problem
from . import selection
from .choice import Miss
from .report import SiteRow
from .site import Status

DECODE_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL_BATCHES = (512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Served:
    """Neighbouring batches that get the same answer."""

    batches: tuple[int, ...]
    config: str
    """As text; empty for the kernel's default, and where no config is legal."""
    answer: str
    """Where it comes from: the tier and the label of a row, or that there is none."""
    us: float | None
    """Measured at the first of the batches; None where nothing was measured."""

    def __str__(self) -> str:
        first, last = self.batches[0], self.batches[-1]
        batches = str(first) if first == last else f"{first}..{last}"
        time = f", {self.us:.4g} µs" if self.us is not None else ""
        return f"batch {batches}: {self.config or 'default'} ({self.answer}{time})"


@dataclass(frozen=True)
class TuningRow:
    """One problem, whatever its batch: the sites that ask for it and what they get."""

    problem: Problem
    """At the first batch that this graph asks for."""
    used: int
    """Sites in which our operator stands."""
    left: int
    """Sites that were decided against."""
    served: tuple[Served, ...]

    @property
    def title(self) -> str:
        left = f", {self.left} left to Inductor" if self.left else ""
        return f"{self.problem.kernel}[{self.problem.signature}] {self.problem.dtype}: {self.used} sites{left}"


def tuning_rows(sites: Iterable[SiteRow], device: Device, batches: Sequence[int] = ()) -> tuple[TuningRow, ...]:
    """A row for each kernel, dimensions and dtype in order of the graph, for every way to run an operator. `batches`
    stand in for the usual ones beside those of the graph."""
    found: dict[tuple[str, str, str], list[tuple[Problem, bool]]] = {}
    for site, ways in _asking(sites):
        for problem in (problem for way in ways for problem in way):
            key = (problem.kernel, problem.signature, problem.dtype)
            found.setdefault(key, []).append((problem, site.status is Status.REPLACED))
    rows = []
    for asked in found.values():
        used = sum(is_used for _, is_used in asked)
        own = {problem.batch for problem, _ in asked}
        rows.append(TuningRow(asked[0][0], used, len(asked) - used, _served(asked[0][0], own, device, batches)))
    return tuple(rows)


def misses(sites: Iterable[SiteRow], device: Device) -> tuple[Miss, ...]:
    """What is not stored of the way that each operator takes, one for each command that fills the gap."""
    found: dict[str, Miss] = {}
    for _, ways in _asking(sites):
        for choice in selection.choose_way(ways, device) or ():
            if not choice.is_tuned:
                miss = Miss(_cell(choice.problem, device), choice.reason, ())
                # The command without its batches: a model is named there, not a kernel's dimensions.
                known = found.setdefault(replace(miss, batches=(1,)).command(), miss)
                batches = tuple(sorted({*known.batches, choice.problem.batch}))
                found[replace(miss, batches=(1,)).command()] = replace(known, batches=batches)
    return tuple(found.values())


def _asking(sites: Iterable[SiteRow]) -> Iterator[tuple[SiteRow, tuple[tuple[Problem, ...], ...]]]:
    """The operators that stand in the graph, or would; of each the ways to run it."""
    for site in sites:
        if site.status in (Status.REPLACED, Status.LEFT):
            yield from ((site, ways) for _, ways in site.calls)


def _served(problem: Problem, own: set[int], device: Device, batches: Sequence[int]) -> tuple[Served, ...]:
    usual = DECODE_BATCHES if max(own) <= DECODE_BATCHES[-1] else PREFILL_BATCHES
    found: list[Served] = []
    for batch in sorted({*own, *(batches or usual)}):
        here = _serve(problem, batch, device)
        last = found[-1] if found else None
        if last is not None and (last.config, last.answer) == (here.config, here.answer):
            found[-1] = replace(last, batches=(*last.batches, batch))
        else:
            found.append(here)
    return tuple(found)


def _serve(problem: Problem, batch: int, device: Device) -> Served:
    way = selection.choose_way(((problem.with_batch(batch),),), device)
    if way is None:
        return Served((batch,), "", "no config is legal", None)
    choice = way[0]
    if choice.row is None:
        return Served((batch,), "", "not tuned", None)
    return Served(
        (batch,), str(choice.config), f"{choice.tier.value}, {choice.row.label.name.lower()}", choice.measured_us
    )


def _cell(problem: Problem, device: Device) -> Cell:
    return Cell(
        arch=device.arch.name, device=device.name, kernel=problem.kernel, kernel_digest=spec_of(problem.kernel).digest,
        signature=problem.signature, dtype=problem.dtype, batch=problem.batch,
    )  # fmt: skip
