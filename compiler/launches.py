"""How many kernels a step launches at the sites our operators took over: before, under Inductor, and after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..kernels_triton.registry import spec_of
from ..search_spaces.arch import Device
from . import selection
from .report import Calls, SiteRow
from .site import Status
from .worth import expected


@dataclass(frozen=True)
class Launches:
    """Kernel launches of one step at the sites that were replaced, and nowhere else.

    inductor: what Inductor generates and calls there, as worth.py counts it from generated code (a call into a library
    is one launch). ours: what the plans of our kernels launch with the configs they get; a site that the operator hands
    to torch's own routine counts as Inductor's. uncounted: sites that neither side could be counted for.
    """

    sites: int
    inductor: int
    ours: int
    uncounted: int = 0

    def __str__(self) -> str:
        if not self.sites:
            return "launches: no site was replaced"
        left = f"; {self.uncounted} sites not counted" if self.uncounted else ""
        return (
            f"launches per step at {self.sites} replaced sites: {self.inductor} under Inductor (modelled), {self.ours}"
            f" of ours (from the kernels' plans){left}; the rest of the graph is Inductor's on both sides"
        )


def count_launches(sites: Iterable[SiteRow], device: Device) -> Launches:
    """Launches at the replaced sites of a graph on a device of the catalogue."""
    replaced = [site for site in sites if site.status is Status.REPLACED]
    inductor = ours = uncounted = 0
    for site in replaced:
        before = _inductors(site, device)
        after = _ours(site.calls, device, before)
        if before is None or after is None:
            uncounted += 1
            continue
        inductor, ours = inductor + before, ours + after
    return Launches(len(replaced), inductor, ours, uncounted)


def _inductors(site: SiteRow, device: Device) -> int | None:
    if not site.calls or not site.calls[0][1]:
        return None
    try:
        return expected(site.pattern, site.calls[0][1][0][0], site.setting, device).launches
    except KeyError:
        return None


def _ours(calls: Calls, device: Device, instead: int | None) -> int | None:
    total = 0
    for _, ways in calls:
        way = selection.choose_way(ways, device)
        if way is None:
            return None
        if any(not choice.is_tuned and choice.problem.kernel in selection.LEFT_TO_TORCH for choice in way):
            return instead
        for choice in way:
            plan = spec_of(choice.problem.kernel).meta_plan(choice.problem, choice.config, device)
            total += len(plan.launches)
    return total
