"""Joins sites with what stands beside them into the operations of the fused decode layer.

Norm, RoPE, the cache write and attention become one operation; a residual sum becomes the last step of the projection
or of the experts before it. The sum has two takers: the norm behind it may have it already (add_rms_norm). Whichever
costs less gets it; the norm keeps it where that is not known.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from . import gpu, selection
from .canonical import calls, value
from .decide import Choose, Costs, Ours, setting_of
from .ops.linear import LINEAR
from .patterns.attention_cache import PATTERN as ATTENTION_CACHE
from .patterns.linear_residual import EXPERTS_RESIDUAL, LINEAR_RESIDUAL
from .rewriter import Pattern, Rewriter
from .site import Site

JOINS: tuple[Pattern, ...] = (ATTENTION_CACHE, LINEAR_RESIDUAL, EXPERTS_RESIDUAL)

MARGIN = 0.98
"""A sum changes hands where the model sees this much less time for both neighbours together: below is a tie."""


def compose(
    rewriter: Rewriter, disabled: Collection[str] = (), *, choose: Choose = selection.choose_way
) -> None:  # fmt: skip
    """Run the joins over what the patterns made; each can be undone by itself."""
    if LINEAR_RESIDUAL.name not in disabled:
        _give_sums_back(rewriter, choose)
    for join in JOINS:
        if join.name not in disabled:
            rewriter.run(join)


def _give_sums_back(rewriter: Rewriter, choose: Choose) -> None:
    """Undo add_rms_norm where linear with a residual and a norm by itself cost less than linear and add_rms_norm."""
    costs: dict[str, Costs] = {}
    for site in rewriter.replaced("add_rms_norm"):
        linear = _linear_before(rewriter, site)
        if linear is None or site.call is None:
            continue
        device = gpu.device_of(value(site.call.args[0]).device)
        if device is None:
            continue
        both = costs.setdefault(device.name, Costs(device, choose))
        reason = _reason_to_join(rewriter, both, site, linear)
        if reason:
            rewriter.undo(site, reason)


def _linear_before(rewriter: Rewriter, site: Site) -> fx.Node | None:
    """The linear of ours that alone feeds the sum of an add_rms_norm."""
    assert site.call is not None
    x, residual = site.call.args[:2]
    for each in (x, residual):
        if not isinstance(each, fx.Node) or not calls(each, LINEAR.overload) or each.args[3] is not None:
            continue
        if rewriter.users(each) == [site.call] and rewriter.site_of(each) is not None:
            return each
    return None


def _reason_to_join(rewriter: Rewriter, costs: Costs, site: Site, linear: fx.Node) -> str:
    """Why the linear should have the sum; empty where it should not, or where a kernel has no known time."""
    assert site.call is not None
    x, weight, bias, _ = (value(arg) for arg in linear.args)
    normed, _, norm_weight, eps = (value(arg) for arg in site.call.args)
    linear_site = rewriter.site_of(linear)
    assert linear_site is not None
    joined = costs.ours(costs.ways("linear", (x, weight, bias, normed)))
    if joined.us is None:
        return ""
    verdict = costs.verdict(rewriter, linear_site)
    ways = costs.ways("rms_norm", (normed, norm_weight, eps))
    if verdict is None or not ways:
        return ""
    norm = costs.expected("rms_norm", ways[0][0], setting_of(rewriter, site))
    whole = costs.verdict(rewriter, site)
    if whole is None:
        return ""
    together = joined.us + _least(costs.ours(ways), norm.us)
    apart = verdict.best_us + whole.best_us
    if together >= MARGIN * apart:
        return ""
    return f"the sum is cheaper as the last step of linear: {together:.3g} µs against {apart:.3g} µs"


def _least(ours: Ours, us: float) -> float:
    return min(us, ours.us) if ours.us is not None else us
