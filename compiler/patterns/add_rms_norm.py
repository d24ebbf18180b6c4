"""The residual add before an RMSNorm, taken into it: (norm(x + residual), x + residual)."""

from __future__ import annotations

import operator

from torch import fx

from ..canonical import arg, calls, dtype, has_only, is_op, is_tensor, same_shape, shape
from ..ops.norm import ADD_RMS_NORM, RMS_NORM
from ..rewriter import Pattern, Rewriter, single
from ..site import need


def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str | None:
    """The operation stands where the add stood, so the sum is there for whoever reads it before the norm."""
    norm = group[0]
    total, weight, eps = norm.args
    if not is_op(total, "add"):
        return None
    assert isinstance(total, fx.Node)
    need(has_only(total, "input", "other"), "the sum is scaled or written elsewhere")
    residual, x = arg(total, 0, "input"), arg(total, 1, "other")
    need(is_tensor(residual) and is_tensor(x), "a number is added, no residual")
    need(
        same_shape(shape(x), shape(residual)) and same_shape(shape(x), shape(total)),
        f"the add broadcasts: {tuple(shape(residual))} + {tuple(shape(x))}",
    )
    need(dtype(x) == dtype(residual) == dtype(total), f"the add mixes {dtype(residual)} and {dtype(x)}")
    assert isinstance(weight, fx.Node)
    need(weight.op == "placeholder" or weight < total, "the weight is defined after the add")
    rewriter.check_no_write([total, weight], total, norm)

    site = rewriter.site_of(norm)
    call = rewriter.emit(total, ADD_RMS_NORM.overload, (x, residual, weight, eps), like=norm)
    normalised = rewriter.emit(total, operator.getitem, (call, 0), like=norm)
    new_residual = rewriter.emit(total, operator.getitem, (call, 1), like=total)
    rewriter.replace(norm, normalised)
    rewriter.replace(total, new_residual)
    if site is not None:
        rewriter.absorb(site)
    return f"hidden {shape(total)[-1]}, eps {eps:g}"


PATTERN = Pattern("add_rms_norm", single(lambda node: calls(node, RMS_NORM.overload)), match)
