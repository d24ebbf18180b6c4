"""What the backend did with one graph: the sites, why a graph was left alone, which fallback was taken, and times."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..search_spaces.problem import Problem
from .site import Site, Status
from .worth import Setting

HISTORY = 256
"""How many reports a process keeps."""


Calls = tuple[tuple[str, tuple[tuple[Problem, ...], ...]], ...]
"""Calls of our operators: each one's name, and the ways to run it with the tuning problems of each."""


@dataclass(frozen=True)
class SiteRow:
    """One site as a report keeps it: `site.Site` without the graph's nodes.

    `calls` are the operators it put in, `setting` what Inductor found around it (see worth.py).
    """

    pattern: str
    where: str
    anchor: str
    status: Status
    detail: str = ""
    reason: str = ""
    calls: Calls = ()
    setting: Setting = field(default_factory=Setting)

    @classmethod
    def of(cls, site: Site, calls: Calls = (), setting: Setting | None = None) -> SiteRow:
        place = (site.pattern, site.where, site.anchor)
        return cls(*place, site.status, site.detail, site.reason, calls, setting or Setting())

    def to_json(self) -> dict[str, Any]:
        plain = asdict(replace(self, calls=()))
        del plain["setting"]
        calls = [
            {"operator": name, "ways": [[str(problem) for problem in way] for way in ways]} for name, ways in self.calls
        ]
        return plain | {"status": self.status.value, "calls": calls}

    @property
    def why(self) -> str:
        """The sentence a reader wants: the decision's reason, else what the matcher said."""
        return self.reason or self.detail


@dataclass(frozen=True)
class CompileReport:
    """One graph that came through the backend.

    reason: why the graph was not rewritten at all, or empty. fallback: the level and the error where something failed
    and the unmodified graph was compiled instead, or empty.
    """

    sites: tuple[SiteRow, ...] = ()
    reason: str = ""
    fallback: str = ""
    nodes_before: int = 0
    nodes_after: int = 0
    rewrite_s: float = 0.0
    lowering_s: float = 0.0
    lower: str = "inductor"

    def counts(self, status: Status = Status.REPLACED) -> Counter[str]:
        """Number of sites of a status, by pattern."""
        return Counter(site.pattern for site in self.sites if site.status is status)

    @property
    def has_operators(self) -> bool:
        """Whether one of our operators is in the graph that was compiled."""
        return any(site.status is Status.REPLACED for site in self.sites)

    def without_operators(self, fallback: str) -> CompileReport:
        """The report once the unmodified graph was compiled instead: no site counts as replaced."""
        left = tuple(
            replace(site, status=Status.LEFT, reason=fallback)
            if site.status in (Status.REPLACED, Status.JOINED)
            else site
            for site in self.sites
        )
        return replace(self, sites=left, fallback=fallback, nodes_after=self.nodes_before)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON's types."""
        return asdict(replace(self, sites=())) | {"sites": [site.to_json() for site in self.sites]}

    def table(self) -> str:
        """Plain text: one line per pattern, then why each site is or is not ours, equal reasons together."""
        size = f"{self.nodes_before} -> {self.nodes_after} nodes"
        lines = [f"graph {size}, rewrite {self.rewrite_s * 1e3:.1f} ms, {self.lower} {self.lowering_s:.2f} s"]
        if self.reason:
            lines.append(f"  left alone: {self.reason}")
        if self.fallback:
            lines.append(f"  fallback: {self.fallback}")
        patterns = dict.fromkeys(site.pattern for site in self.sites)
        if patterns:
            counts = {status: self.counts(status) for status in Status}
            lines.append(f"  {'pattern':22}" + "".join(f"{status.value:>10}" for status in Status))
            for pattern in patterns:
                numbers = "".join(f"{counts[status][pattern] or '·':>10}" for status in Status)
                lines.append(f"  {pattern:22}{numbers}")
        lines += [f"  {line}" for line in _reasons(self.sites)]
        return "\n".join(lines)


def _reasons(sites: Iterable[SiteRow]) -> list[str]:
    groups: dict[tuple[str, str, str], list[SiteRow]] = {}
    for site in sites:
        if site.status is not Status.JOINED:
            groups.setdefault((site.pattern, site.status.value, site.why), []).append(site)
    return [
        f"{status}: {pattern} at {_places(rows)}: {why or 'no reason given'}"
        for (pattern, status, why), rows in groups.items()
    ]


def _places(rows: list[SiteRow]) -> str:
    first = rows[0].where or rows[0].anchor
    return first if len(rows) == 1 else f"{first} and {len(rows) - 1} more"


class History:
    """The last reports of a process, oldest first; safe to share between threads."""

    def __init__(self, limit: int = HISTORY) -> None:
        self._reports: deque[CompileReport] = deque(maxlen=limit)
        self._lock = threading.Lock()
        self._total = 0

    @property
    def total(self) -> int:
        """How many graphs came through, also those no longer kept."""
        return self._total

    def add(self, report: CompileReport) -> None:
        with self._lock:
            self._reports.append(report)
            self._total += 1

    def reports(self) -> tuple[CompileReport, ...]:
        with self._lock:
            return tuple(self._reports)

    def clear(self) -> None:
        """Forget the reports; `total` goes on counting."""
        with self._lock:
            self._reports.clear()


history = History()
"""The reports of this process."""
