"""Faults in databases of ours: rows that never serve, that should not, or that serve too far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from .declared import config_faults
from .lookup import MAX_LOG2_DISTANCE
from .rows import Label, TunedRow

SPARSE_RATIO = 4.0**MAX_LOG2_DISTANCE
"""Neighbouring buckets farther apart than this leave batches between them that neither may serve."""
_LEAST_COPY = 4

EXPLANATIONS: Mapping[str, str] = {
    "config": "the config is outside the declared space of its kernel on that device: it may not compile or launch",
    "stale": "tuned for another version of the kernel: never served, a seed for a new search at most",
    "slower": "the measurement says that the default is faster than the config: the row loses to not tuning",
    "spread": "the slowest tenth of the samples is far above the fastest: the median may be noise",
    "sparse": "buckets are far apart: batches between them get the default, or the config of a distant batch",
    "copy": "all answers of one device equal those of another, times included: they were copied, not found there",
    "file": "the file cannot be served as it is",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault: its kind (a key of EXPLANATIONS), the file or cell it is in, and the values that show it."""

    kind: str
    where: str
    detail: str


def lint_rows(rows: Iterable[TunedRow], *, digests: Mapping[str, str] | None = None) -> list[Finding]:
    """Findings for the answers of a database; `digests` = the digest of each kernel's present version, if known."""
    rows = list(rows)
    found = []
    for row in rows:
        found += [Finding(kind=kind, where=str(row.cell), detail=detail) for kind, detail in _row_faults(row, digests)]
    sites: dict[tuple[str, ...], dict[int, TunedRow]] = defaultdict(dict)
    for row in rows:
        cell = row.cell
        if row.label is not Label.PRIOR:
            sites[cell.device, cell.kernel, cell.kernel_digest, cell.signature, cell.dtype][cell.batch] = row
    for site, answers in sites.items():
        gaps = [f"{low}..{high}" for low, high in pairwise(sorted(answers)) if high > low * SPARSE_RATIO]
        if gaps:
            found.append(Finding(kind="sparse", where=_site(site), detail=f"nothing between batches {', '.join(gaps)}"))
    return found + _copies(sites)


def _row_faults(row: TunedRow, digests: Mapping[str, str] | None) -> list[tuple[str, str]]:
    current = None if digests is None else digests.get(row.cell.kernel, row.cell.kernel_digest)
    if current is not None and current != row.cell.kernel_digest:
        return [("stale", f"kernel digest {row.cell.kernel_digest}, now {current}")]
    found = []
    fault = config_faults(row, row.config_json)
    if fault is not None:
        found.append(("config", fault))
    if row.label is Label.MEASURED and row.us_median is not None:
        if row.config_json is not None and row.us_default is not None and row.us_default < row.us_median:
            found.append(("slower", f"{row.us_median:.4g} us, the default {row.us_default:.4g} us"))
        if row.us_p10 and row.us_p90 and row.us_p90 > 1.5 * row.us_p10:
            found.append(("spread", f"p10 {row.us_p10:.4g} us, p90 {row.us_p90:.4g} us"))
    return found


def _copies(sites: Mapping[tuple[str, ...], Mapping[int, TunedRow]]) -> list[Finding]:
    """Sites of different devices with the same batches, configs and numbers."""
    by_content: dict[tuple[object, ...], list[tuple[str, ...]]] = defaultdict(list)
    for site, answers in sites.items():
        content = tuple((batch, row.config_json, row.us_median, row.score) for batch, row in sorted(answers.items()))
        if len(content) >= _LEAST_COPY:
            by_content[site[1:], content].append(site)
    return [
        Finding(kind="copy", where=_site(same[0]), detail="equal to " + ", ".join(site[0] for site in same[1:]))
        for same in by_content.values()
        if len(same) > 1
    ]


def _site(site: tuple[str, ...]) -> str:
    device, kernel, _, signature, dtype = site
    return f"{kernel} {signature} {dtype} on {device}"
