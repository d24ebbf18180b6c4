"""A residual sum as the last step of the operation before it: linear(x) + residual, experts(x) + residual.

Joins what the patterns `linear` and `experts` made with an add that reads it, directly or through a reshape. Other
users of the sum keep it: it is the output of the operation. Who else reads what is summed does not: then no join.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..canonical import calls, dtype, has_only, is_op, is_tensor, ndim, operands, same_shape, same_size, shape
from ..ops.linear import LINEAR
from ..ops.moe import EXPERTS
from ..rewriter import Pattern, Rewriter, single
from ..site import need


def _place(call: fx.Node) -> int:
    """Place of the residual among the arguments."""
    return 3 if call.target is LINEAR.overload else 5


def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str | None:
    (call,) = group
    found = sum_of(rewriter, call)
    if found is None:
        return None
    total, reshaped, residual = found
    need(has_only(total, "input", "other"), "the sum is scaled or written elsewhere")
    need(is_tensor(residual), "a number is added, no residual")
    need(residual is not reshaped, "it is added to itself")
    need(
        same_shape(shape(residual), shape(reshaped)) and same_shape(shape(total), shape(reshaped)), "the add broadcasts"
    )
    need(dtype(residual) == dtype(call) == dtype(total), f"{dtype(residual)} is added to {dtype(call)}")
    site = rewriter.site_of(call)
    need(site is not None, "the operation before is no site of ours")
    inputs = [each for each in call.args if isinstance(each, fx.Node)]
    rewriter.check_no_write(inputs, call, total)

    as_rows = residual
    if reshaped is not call:
        need(same_size(shape(reshaped)[-1], shape(call)[-1]), "the sum is of another width")
        need(ndim(call) == 2, "rows of tokens are expected before the reshape")
        as_rows = rewriter.emit_method(total, "reshape", (residual, -1, shape(call)[-1]), like=total)
    place, operator = _place(call), LINEAR if call.target is LINEAR.overload else EXPERTS
    arguments = (*call.args[:place], as_rows, *call.args[place + 1 :])
    joined = rewriter.emit(total, operator.overload, arguments, like=total)
    result = joined
    if reshaped is not call:
        sizes = reshaped.args[1:]
        result = rewriter.emit_method(total, "reshape", (joined, *sizes), like=total)
    rewriter.replace(total, result)
    assert site is not None
    rewriter.absorb(site)
    rewriter.retire([reshaped] if reshaped is not call else [])
    return f"residual, {site.detail}"


def sum_of(rewriter: Rewriter, call: fx.Node) -> tuple[fx.Node, fx.Node, Any] | None:
    """(add, the operand made of `call`, the other operand) where an add alone reads the call, reshaped or not."""
    if call.args[_place(call)] is not None:
        return None
    made = call
    users = rewriter.users(call)
    if len(users) == 1 and is_op(users[0], "view", "reshape") and users[0].args[0] is call:
        made, users = users[0], rewriter.users(users[0])
    if len(users) != 1 or not is_op(users[0], "add"):
        return None
    pair = operands(users[0], lambda each: each is made)
    return None if pair is None else (users[0], made, pair[1])


def _joining(name: str) -> Pattern:
    operator = LINEAR if name == "linear_residual" else EXPERTS
    return Pattern(name, single(lambda node: calls(node, operator.overload)), match)


LINEAR_RESIDUAL = _joining("linear_residual")
EXPERTS_RESIDUAL = _joining("experts_residual")
PATTERNS = (LINEAR_RESIDUAL, EXPERTS_RESIDUAL)
