"""The gated half of an MLP: silu(x @ gate^T) * (x @ up^T), two linear layers without bias on one input.

silu * mul alone is no site: Inductor makes one kernel of it, as we would.
"""

from __future__ import annotations

from torch import fx

from ..canonical import arg, dtype, has_only, is_op, operands, same_shape, shape, skip_noop
from ..ops.linear import LINEAR_SILU_MUL
from ..rewriter import Pattern, Rewriter, single
from ..site import need
from .linear import check_linear


def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str | None:
    product = group[0]
    pair = operands(product, lambda each: is_op(skip_noop(each), "silu"))
    assert pair is not None
    silu, up = skip_noop(pair[0]), skip_noop(pair[1])
    gate = skip_noop(arg(silu, 0, "input"))
    if not is_op(gate, "linear") or not is_op(up, "linear"):
        return None
    need(has_only(product, "input", "other"), "the product is written elsewhere")
    need(arg(silu, 1, "inplace", False) is False, "silu writes its input")
    x, gate_weight, gate_bias = check_linear(gate)
    other_x, up_weight, up_bias = check_linear(up)
    need(x is other_x, "gate and up read different inputs")
    need(gate_bias is None and up_bias is None, "gate or up has a bias")
    need(same_shape(shape(gate_weight), shape(up_weight)), "gate and up have different sizes")
    need(dtype(product) == dtype(x), f"the product is {dtype(product)}, x is {dtype(x)}")

    inner = _between(product, {gate, up})
    for node in inner:
        need(all(user in inner or user is product for user in rewriter.users(node)), f"{node.name} is used elsewhere")
    rewriter.check_no_write([x, gate_weight, up_weight, *inner], min(inner), product)
    call = rewriter.emit(product, LINEAR_SILU_MUL.overload, (x, gate_weight, up_weight), like=product)
    rewriter.replace(product, call)
    rewriter.retire([*inner, product])
    n, k = shape(gate_weight)
    return f"2 x {n} x {k}"


def _between(product: fx.Node, linears: set[fx.Node]) -> list[fx.Node]:
    """The nodes from the linear layers up to the product, without it."""
    found: list[fx.Node] = []
    work = list(product.all_input_nodes)
    while work:
        node = work.pop()
        if node not in found:
            found.append(node)
            work += [] if node in linears else node.all_input_nodes[:1]
    return found


def _is_gated(node: fx.Node) -> bool:
    return is_op(node, "mul") and operands(node, lambda each: is_op(skip_noop(each), "silu")) is not None


PATTERN = Pattern("linear_silu_mul", single(_is_gated), match)
