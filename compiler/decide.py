"""Which sites stay: one does where our operation is expected to be faster than what Inductor would make of its place.

Ours is the time in the database, measured where it was measured, else the static model's; Inductor's side is the
roofline model of worth.py. Larger sites are judged before the smaller ones they took in: one that loses gives its parts
back, and each of those is judged by itself. Sizes count by the hints of this graph; which config runs, and whether
torch's own routine runs instead, every operator decides again with the real sizes. On a CPU there is no kernel of
ours, and measurement has decided beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..cache.answer import Tier
from ..cache.rows import Label
from ..search_spaces.arch import Device
from ..search_spaces.model.estimate import UnmodelledKernel, estimate_us
from ..search_spaces.problem import InvalidProblem, Problem
from ..search_spaces.registry import space_of
from ..search_spaces.space import columns_of_config
from . import gpu, selection
from .ask import Asks
from .canonical import is_op, value
from .choice import Choice, Way
from .hints import size_hint
from .ops.registry import OPERATORS, asks_of, problems_of
from .rewriter import Rewriter
from .site import Site, Status
from .worth import Expected, Setting, beside_us, expected
from .worth_on_cpu import stays_on_cpu

ESTIMATE_MARGIN = 0.95
"""An estimate has to be this much better than Inductor's modelled time, a measured time just better: both models share
their constants, and a tie brings nothing."""

Choose = Callable[[tuple[tuple[Problem, ...], ...], Device], "Way | None"]
Ways = tuple[tuple[Problem, ...], ...]


@dataclass(frozen=True)
class Ours:
    """Our side of a site. `us` is None where torch would compute it all the same, for the reason in `text`."""

    us: float | None
    text: str
    margin: float = 1.0

    def beats(self, us: float) -> bool:
        return self.us is not None and self.us < us * self.margin


@dataclass(frozen=True)
class Verdict:
    """Both sides of a site. `instead_us` is the best that its place costs without it."""

    batch: int
    ours: Ours
    inductor: Expected
    instead_us: float
    is_split: bool
    """Whether that best has parts of the site as our operations."""

    @property
    def is_kept(self) -> bool:
        return self.ours.beats(self.instead_us)

    @property
    def best_us(self) -> float:
        """What the place costs once it is decided."""
        return self.ours.us if self.is_kept and self.ours.us is not None else self.instead_us


class Costs:
    """Times of sites on one device, each distinct question asked once."""

    def __init__(self, device: Device, choose: Choose = selection.choose_way) -> None:
        self.device = device
        self._choose = choose
        self._ways: dict[tuple[str, Asks], Ways] = {}
        self._ours: dict[Ways, Ours] = {}
        self._expected: dict[tuple[str, Problem, Setting], Expected] = {}
        self._verdicts: dict[int, Verdict | None] = {}

    def verdict(self, rewriter: Rewriter, site: Site) -> Verdict | None:
        """Both sides of a site of this graph; None where no kernel of ours computes its operation."""
        if id(site) not in self._verdicts:
            self._verdicts[id(site)] = self._compared(rewriter, site)
        return self._verdicts[id(site)]

    def _compared(self, rewriter: Rewriter, site: Site) -> Verdict | None:
        calls = operator_calls(site)
        ways = [self.ways(name, args) for name, args in calls]
        if not calls or not all(ways):
            return None
        problem, setting = ways[0][0][0], setting_of(rewriter, site)
        ours = _added([self.ours(each) for each in ways])
        inductor = self.expected(site.pattern, problem, setting)
        instead, is_split = inductor.us, False
        parts = [self.verdict(rewriter, part) for part in site.parts]
        if any(part is not None and part.is_kept for part in parts):
            beside = beside_us(site.pattern, problem, setting, self.device)
            split = beside + sum(part.best_us for part in parts if part is not None)
            if split < instead:
                instead, is_split = split, True
        return Verdict(problem.batch, ours, inductor, instead, is_split)

    def ways(self, name: str, args: Sequence[Any]) -> Ways:
        """As `problems_of`."""
        asks = asks_of(name, args)
        known = self._ways.get((name, asks))
        if known is None:
            known = self._ways[name, asks] = problems_of(name, args)
        return known

    def ours(self, ways: Ways) -> Ours:
        """The time of one call of an operator that can be run in these ways."""
        known = self._ours.get(ways)
        if known is None:
            known = self._ours[ways] = _way_us(self._choose(ways, self.device))
        return known

    def expected(self, pattern: str, problem: Problem, setting: Setting) -> Expected:
        """Inductor's side; see `worth.expected`."""
        key = (pattern, problem, setting)
        if key not in self._expected:
            self._expected[key] = expected(pattern, problem, setting, self.device)
        return self._expected[key]


def decide(rewriter: Rewriter, sites: str = "faster", *, choose: Choose = selection.choose_way) -> None:
    """Undo the sites that do not pay, and give every site its reason. `sites` is "faster", or "all" to keep each."""
    costs: dict[torch.device, Costs] = {}
    work = sorted(rewriter.replaced(), key=_depth)
    while work:
        site = work.pop()
        if sites == "all":
            site.reason = "kept: every site is asked for"
            continue
        keep, reason = _judged(rewriter, site, costs, choose)
        if keep:
            site.reason = reason
        elif rewriter.undo(site, reason):
            # Sites of the same depth have nothing to do with its parts, so these can come at once.
            work += [part for part in site.parts if part.status is Status.REPLACED]


def _judged(
    rewriter: Rewriter, site: Site, costs: dict[torch.device, Costs], choose: Choose
) -> tuple[bool, str]:  # fmt: skip
    where = _torch_device(site)
    if where is None:
        return False, "left to Inductor: its operation has no tensor"
    device = gpu.device_of(where)
    if device is None:
        if where.type != "cpu":
            return False, f"left to Inductor: this {where.type} device is not in the catalogue"
        if any(stays_on_cpu(site.pattern, args) for _, args in operator_calls(site)):
            return True, "CPU: measured to be no slower than Inductor: kept"
        return False, "CPU: Inductor is measured to be as fast or faster: left to Inductor"
    if where not in costs:
        costs[where] = Costs(device, choose)
    verdict = costs[where].verdict(rewriter, site)
    if verdict is None:
        return False, f"{device.name}: no kernel of ours computes this: left to Inductor"
    return verdict.is_kept, _sentence(device, verdict)


def _sentence(device: Device, verdict: Verdict) -> str:
    start = f"{device.name}, batch {verdict.batch}: {verdict.ours.text}"
    if verdict.ours.us is None:
        return f"{start}: left to Inductor"
    launches = verdict.inductor.launches
    them = f"Inductor ~{_us(verdict.inductor.us)} in {launches} launch{'es' if launches > 1 else ''}"
    if verdict.is_split:
        them += f", its parts ~{_us(verdict.instead_us)}"
    ending = "kept" if verdict.is_kept else "left to its parts" if verdict.is_split else "left to Inductor"
    return f"{start} against {them}: {ending}"


def _way_us(way: Way | None) -> Ours:
    if way is None:
        return Ours(None, "no kernel of ours is legal for it")
    untuned = [choice.problem.kernel for choice in way if not choice.is_tuned]
    if any(kernel in selection.LEFT_TO_TORCH for kernel in untuned):
        return Ours(None, f"{' + '.join(untuned)} not tuned, so the operator would call torch's own routine")
    found = [stored_or_modelled_us(choice) for choice in way]
    is_measured = all(measured for _, measured in found)
    names = " + ".join(choice.problem.kernel for choice in way)
    us = sum(each for each, _ in found)
    how = "measured" if is_measured else "estimated"
    tiers = ", ".join(dict.fromkeys("default config" if not c.is_tuned else f"row: {c.tier.value}" for c in way))
    return Ours(us, f"{names} {_us(us)} {how} ({tiers})", 1.0 if is_measured else ESTIMATE_MARGIN)


def stored_or_modelled_us(choice: Choice) -> tuple[float, bool]:
    """Time of a kernel in microseconds, and whether a measurement on this device is behind it.

    A measured row of another batch counts in the proportion that the static model sees between the two batches.
    """
    row = choice.row
    if row is not None and row.cell.device == choice.device.name:
        if row.label is Label.MEASURED and row.us_median is not None:
            return row.us_median * _proportion(choice), True
        if choice.tier is Tier.EXACT and row.score is not None:
            return row.score, False
    try:
        return choice.estimated_us, False
    except UnmodelledKernel:
        return float("inf"), False


def _proportion(choice: Choice) -> float:
    """Modelled time of the problem asked for over that of the row's problem, both with the row's config."""
    assert choice.row is not None
    cell = choice.row.cell
    if (cell.signature, cell.batch) == (choice.problem.signature, choice.problem.batch):
        return 1.0
    try:
        stored = space_of(cell.kernel).problem_from(cell.signature, cell.dtype, cell.batch)
        its = float(estimate_us(stored, choice.device, columns_of_config(choice.config))[0])
    except (InvalidProblem, UnmodelledKernel):
        return 1.0
    ratio = choice.estimated_us / its
    return ratio if 0.0 < ratio < float("inf") else 1.0


def _added(parts: list[Ours]) -> Ours:
    """Several operations of one site."""
    if len(parts) == 1:
        return parts[0]
    missing = next((part for part in parts if part.us is None), None)
    if missing is not None:
        return missing
    total = sum(part.us for part in parts if part.us is not None)
    return Ours(total, ", ".join(part.text for part in parts), min(part.margin for part in parts))


def operator_calls(site: Site) -> list[tuple[str, tuple[Any, ...]]]:
    """The operators of ours that a site put in, by name, with the fake values of their arguments."""
    found = []
    for node in site.emitted:
        name = _operator_name(node)
        if name is not None:
            found.append((name, fx.map_arg(node.args, value)))
    return found


_READ_SETTING = frozenset({"attention", "attention_cache", "experts"})
_NO_SETTING = Setting()


def setting_of(rewriter: Rewriter, site: Site) -> Setting:
    """What Inductor would find around a site, read from the nodes that the site stands for."""
    if site.pattern not in _READ_SETTING and not site.pattern.endswith("_residual"):
        return _NO_SETTING
    nodes = list(_nodes(site))
    tokens, keys, has_mask, sequences = 0, 0, False, 1
    for name, args in operator_calls(site):
        if name == "attention":
            q, k, mask = args[0], args[1], args[3]
            sequences, tokens, keys = (size_hint(size) for size in (q.shape[0], q.shape[2], k.shape[2]))
            has_mask = mask is not None
        elif name == "attention_decode_fused":
            has_mask = args[10] is not None
    return Setting(
        sequences=sequences,
        keys=keys if tokens > 1 else 0,
        repeats_kv=any(_is_repeat(node) for node in nodes),
        has_mask=has_mask,
        gathers_weights=any(is_op(node, "bmm") for node in nodes),
        sum_is_fused=_norm_reads_sum(rewriter, site),
    )


def _is_repeat(node: fx.Node) -> bool:
    """One of the spellings of repeat_kv: five axes, or repeat_interleave."""
    found = value(node)
    is_wide = isinstance(found, torch.Tensor) and found.ndim == 5
    return is_op(node, "repeat_interleave") or (is_wide and is_op(node, "expand"))


def _norm_reads_sum(rewriter: Rewriter, site: Site) -> bool:
    """Whether a norm reads what a join with a residual makes: if both were Inductor's, it would add there."""
    if not site.pattern.endswith("_residual") or not site.swaps:
        return False
    users = rewriter.users(site.swaps[-1][1])
    return any(is_op(user, "pow", "square", "cast", "rms_norm") or _operator_name(user) == "rms_norm" for user in users)


def _nodes(site: Site) -> Iterable[fx.Node]:
    yield from site.nodes
    for part in site.parts:
        yield from _nodes(part)


def _operator_name(node: fx.Node) -> str | None:
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = node.target._schema.name.partition("::")[2]
    found = OPERATORS.get(name)
    return name if found is not None and found.overload is node.target else None


def _torch_device(site: Site) -> torch.device | None:
    tensors = (value(each) for each in site.call.args) if site.call is not None else ()
    return next((each.device for each in tensors if isinstance(each, torch.Tensor)), None)


def _depth(site: Site) -> int:
    """Those that stand on others are judged before what stands on nothing."""
    return 1 + max((_depth(part) for part in site.parts), default=0)


def _us(us: float) -> str:
    return f"{us:.3g} µs"
