"""RMSNorm: weight * (x * rsqrt(mean(x^2) + eps)), normalised in fp32 and rounded before the weight, or F.rms_norm.

Left alone: Gemma's 1 + weight, and the forms that multiply by the weight before they round (OLMo-2, GPT-OSS), whose
last bit in half precision is another. In fp32 those round nothing, and match.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..canonical import (
    arg,
    dtype,
    has_only,
    is_cast,
    is_last_axis,
    is_op,
    is_parameter,
    is_tensor,
    ndim,
    operands,
    same_size,
    scalar,
    shape,
    value,
)  # fmt: skip
from ..ops.norm import RMS_NORM
from ..rewriter import Pattern, Rewriter, single
from ..site import Reject, need

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str | None:
    anchor = group[0]
    return _match_function(rewriter, anchor) if is_op(anchor, "rms_norm") else _match_written_out(rewriter, anchor)


def _match_function(rewriter: Rewriter, node: fx.Node) -> str:
    """F.rms_norm(x, [hidden], weight, eps), as torch.nn.RMSNorm calls it."""
    x, sizes = arg(node, 0, "input"), arg(node, 1, "normalized_shape")
    weight, eps = arg(node, 2, "weight"), arg(node, 3, "eps")
    need(isinstance(sizes, (list, tuple, torch.Size)) and len(sizes) == 1, "normalises over several axes")
    need(weight is not None, "no weight")
    need(eps is not None, "no eps: F.rms_norm then takes one that depends on the dtype")
    return _put_in(rewriter, x, weight, eps, out=node, inner=[])


def _match_written_out(rewriter: Rewriter, root: fx.Node) -> str | None:
    found = _mean_of_squares(arg(root, 0, "input"))
    if found is None:
        return None
    wide, eps, inner = found
    need(dtype(wide) == torch.float32, f"the variance is taken in {dtype(wide)}, not in fp32")
    need(has_only(root, "input"), "rsqrt with further arguments")
    x = wide.args[0] if is_cast(wide) else wide
    need(dtype(x) in _DTYPES, f"x is {dtype(x)}")

    scaled = _only_user(rewriter, root)
    pair = operands(scaled, lambda each: each is root) if is_op(scaled, "mul") else None
    need(pair is not None and pair[1] is wide, "the reciprocal root does not multiply x in fp32")
    inner += [root, scaled]
    normalised = scaled
    user = _only_user(rewriter, scaled)
    if is_cast(user):
        normalised = user
        inner.append(user)
        user = _only_user(rewriter, user)
    need(is_op(user, "mul") and has_only(user, "input", "other"), "no weight multiplies the normalised value")
    pair = operands(user, lambda each: each is normalised)
    assert pair is not None
    need(is_tensor(pair[1]), "a number multiplies the normalised value, no weight")
    need(dtype(normalised) == dtype(x), "the weight multiplies before the rounding")
    if is_cast(wide):
        inner.append(wide)
    return _put_in(rewriter, x, pair[1], eps, out=user, inner=inner)


def _mean_of_squares(node: Any) -> tuple[fx.Node, Any, list[fx.Node]] | None:
    """(h, eps, nodes) of `mean(h^2, -1, keepdim=True) + eps`; None where no mean of squares is added to anything."""
    if not is_op(node, "add"):
        return None
    pair = operands(node, lambda each: is_op(each, "mean"))
    if pair is None:
        return None
    mean, eps = pair
    need(has_only(node, "input", "other"), "mean + eps with further arguments")
    need(has_only(mean, "input", "dim", "keepdim", "dtype"), "mean with further arguments")
    square = arg(mean, 0, "input")
    wide = _squared(square)
    if wide is None:
        raise Reject("the mean is not of squares")
    need(is_last_axis(arg(mean, 1, "dim"), square), "the mean is not over the last axis")
    need(arg(mean, 2, "keepdim", False) is True, "the mean drops its axis")
    need(arg(mean, 3, "dtype") in (None, torch.float32), "the mean changes the dtype")
    return wide, eps, [node, mean, square]


def _squared(node: Any) -> fx.Node | None:
    """h of h^2 in its spellings."""
    if is_op(node, "pow"):
        is_square = arg(node, 1, "exponent") in (2, 2.0) and has_only(node, "input", "exponent")
    elif is_op(node, "mul"):
        is_square = arg(node, 0, "input") is arg(node, 1, "other") and has_only(node, "input", "other")
    else:
        is_square = is_op(node, "square") and has_only(node, "input")
    found = arg(node, 0, "input") if is_square else None
    return found if is_tensor(found) and dtype(found) == dtype(node) else None


def _only_user(rewriter: Rewriter, node: fx.Node) -> fx.Node:
    users = rewriter.users(node)
    need(len(users) == 1, f"{node.name} is used {len(users)} times")
    return users[0]


def _put_in(rewriter: Rewriter, x: Any, weight: Any, eps: Any, *, out: fx.Node, inner: list[fx.Node]) -> str:
    need(is_tensor(x) and ndim(x) >= 1, "x is no tensor")
    need(is_parameter(weight), "the weight is computed, as 1 + weight is")
    hidden = shape(x)[-1]
    need(isinstance(hidden, int), "the last axis has no fixed size")
    need(ndim(weight) == 1 and same_size(shape(weight)[0], hidden), f"the weight is not [{hidden}]")
    need(
        dtype(x) == dtype(weight) == dtype(out),
        f"dtypes differ: x {dtype(x)}, weight {dtype(weight)}, output {dtype(out)}",
    )
    rewriter.check_no_write([x, weight, *inner], min([*inner, out]), out)
    # Last, because reading a symbolic number installs a guard.
    number = scalar(eps)
    need(number is not None, "eps is not a number")
    assert number is not None
    call = rewriter.emit(out, RMS_NORM.overload, (x, weight, float(number)), like=out)
    rewriter.replace(out, call)
    rewriter.retire([*inner, out, eps] if isinstance(eps, fx.Node) else [*inner, out])
    return f"hidden {hidden}, eps {float(number):g}, {str(value(x).dtype).removeprefix('torch.')}"


PATTERN = Pattern("rms_norm", single(lambda node: is_op(node, "rsqrt", "rms_norm")), match)
