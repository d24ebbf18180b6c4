"""The two products of an experts block, in the two ways that Hugging Face writes them (transformers, integrations/moe).

grouped_mm: the pairs (token, expert) are sorted by expert, one product for each expert's rows, and the order is
            restored by the inverse permutation. The default for prefill.
batched_mm: every pair takes its expert's matrices along and is one product of a batch. `generate` turns to it for
            decode on every device but a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from ..canonical import (
    arg,
    is_axis,
    is_last_axis,
    is_op,
    is_swap,
    ndim,
    operands,
    same_shape,
    same_size,
    shape,
    skip_casts,
    skip_noop,
)
from ..rewriter import Rewriter
from ..site import need
from .expert_ids import FLATTENS, ExpertIds, find_ids


@dataclass(frozen=True)
class Products:
    """What was found: the operands, the first product and the weighted rows [T * k, H] in the order of the tokens."""

    form: str
    x: fx.Node
    w13: fx.Node
    w2: fx.Node
    weights: fx.Node
    ids: ExpertIds
    first: fx.Node
    weighted: fx.Node
    inverse_write: fx.Node | None = None
    """inverse[permutation] = arange: the one write that does something."""

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        return self.x, self.w13, self.w2, self.weights, self.ids.node


def is_second_product(node: fx.Node) -> bool:
    """A product of matrices chosen by expert with the product of two activations."""
    if is_op(node, "grouped_mm"):
        return is_op(skip_noop(arg(node, 0)), "mul")
    if is_op(node, "bmm") and _is_gathered(arg(node, 0)):
        return is_op(skip_noop(_without_last_axis(arg(node, 1))), "mul")
    return False


def find_products(rewriter: Rewriter, second: fx.Node) -> Products:
    return _grouped(rewriter, second) if is_op(second, "grouped_mm") else _batched(rewriter, second)


def _grouped(rewriter: Rewriter, second: fx.Node) -> Products:
    activation, w2, offsets = _grouped_operands(second)
    first = skip_masks(_before_activation(activation, w2))
    need(is_op(first, "grouped_mm"), "no first product before the activation")
    rows, w13, first_offsets = _grouped_operands(first)
    need(first_offsets is offsets, "the two products have different offsets")

    rows = skip_masks(rows)
    need(_is_gathered(rows) and is_op(rows.args[1], "floordiv"), "tokens are not gathered by expert")
    x, token_of_pair = rows.args
    permutation, top_k = arg(token_of_pair, 0, "input"), arg(token_of_pair, 1, "other")
    is_order = is_op(permutation, "getitem") and permutation.args[1] == 1 and is_op(permutation.args[0], "sort")
    need(is_order, "tokens are not gathered in the order of a sort")
    sort = permutation.args[0]
    need(ndim(sort.args[0]) == 1 and not arg(sort, 2, "descending", False), "the expert ids are not sorted upwards")
    ids = find_ids(rewriter, sort.args[0], _static_experts(w2), second)
    need(top_k == ids.top_k, "tokens are not gathered by expert")
    _check_offsets(offsets, ids)

    product, factor = _weighted(rewriter, _after_masks(rewriter, second))
    need(_is_gathered(factor) and factor.args[1] is permutation, "routing weights are not sorted by expert")
    restored, write = _restored(rewriter, product, permutation)
    return Products("grouped_mm", x, w13, w2, _flattened(factor.args[0]), ids, first, restored, write)


def _batched(rewriter: Rewriter, second: fx.Node) -> Products:
    chosen, activation = arg(second, 0), _without_last_axis(arg(second, 1))
    w2, flat = chosen.args
    experts = _static_experts(w2)
    ids = find_ids(rewriter, flat, experts, second)
    rows = _before_activation(skip_noop(activation), w2)

    need(_drops_last_axis(rows), "no first product before the activation")
    first = rows.args[0]
    need(is_op(first, "bmm") and _is_gathered(arg(first, 0)), "no first product before the activation")
    w13, first_flat = arg(first, 0).args
    need(ids.is_flat(flat) and ids.is_flat(first_flat), "the two products have different experts")
    tokens = skip_noop(_without_last_axis(arg(first, 1)))
    is_repeated = is_op(tokens, "repeat_interleave") and is_axis(arg(tokens, 2, "dim"), 0, ndim(tokens))
    need(is_repeated and arg(tokens, 1, "repeats") == ids.top_k, "tokens are not repeated for each of their experts")

    head = _user(rewriter, second)
    need(_drops_last_axis(head), "the second product is used otherwise")
    product, factor = _weighted(rewriter, head)
    return Products("batched_mm", arg(tokens, 0, "input"), w13, w2, _flattened(factor), ids, first, product)


def _grouped_operands(product: fx.Node) -> tuple[Any, fx.Node, fx.Node]:
    """Rows, matrices [E, N, K] and offsets of grouped_mm(rows, matrices.transpose(-2, -1), offs)."""
    for index, name in ((3, "bias"), (4, "out_dtype")):
        need(arg(product, index, name) is None, f"a product with {name}")
    transposed = arg(product, 1)
    is_transposed = ndim(transposed) == 3 and is_swap(transposed, 1, 2)
    need(is_transposed, "matrices that are not [E, N, K] transposed")
    offsets = arg(product, 2, "offs")
    need(isinstance(offsets, fx.Node), "a product without offsets")
    return skip_noop(arg(product, 0)), transposed.args[0], offsets


def _static_experts(w2: Any) -> int:
    need(ndim(w2) == 3, "matrices that are not [E, N, K]")
    experts = shape(w2)[0]
    need(isinstance(experts, int), "the number of experts is not static")
    return int(experts)


def _before_activation(activation: Any, w2: fx.Node) -> Any:
    """The rows [T * k, 2 I] of silu(gate) * up, gate and up being their halves."""
    need(is_op(activation, "mul"), "no gate * up before the second product")
    found = operands(activation, lambda node: is_op(node, "silu"))
    need(found is not None, "the activation is not silu(gate) * up")
    assert found is not None
    silu, up = found
    gate = arg(silu, 0, "input")
    need(not arg(silu, 1, "inplace", False), "an activation in place")
    is_item = [is_op(half, "getitem") and half.args[1] == index for index, half in enumerate((gate, up))]
    need(all(is_item) and gate.args[0] is up.args[0], "gate and up are not halves of one product")
    halves = gate.args[0]
    need(is_op(halves, "chunk", "split"), "gate and up are not halves of one product")
    rows, inter = arg(halves, 0, "input"), shape(w2)[2]
    axis = arg(halves, 2, "dim", 0)
    is_half = all(same_size(shape(half)[-1], inter) for half in (gate, up))
    need(is_last_axis(axis, rows) and is_half, "gate and up are not halves of one product")
    need(same_size(shape(rows)[-1], 2 * inter), "gate and up are not all of the first product")
    return rows


def _check_offsets(offsets: fx.Node, ids: ExpertIds) -> None:
    """offsets[e] = number of ids <= e: the sum so far of a histogram with one bin for each expert."""
    total = skip_casts(offsets)
    need(is_op(total, "cumsum") and is_axis(arg(total, 1, "dim"), 0, 1), "the offsets are not a sum so far")
    histogram = skip_casts(arg(total, 0, "input"))
    need(is_op(histogram, "histc"), "the offsets are not those of a histogram")
    bins = tuple(arg(histogram, index, name) for index, name in ((1, "bins"), (2, "min"), (3, "max")))
    need(bins == (ids.experts, 0, ids.experts - 1), "the histogram has not one bin for each expert")
    need(ids.holds_all(arg(histogram, 0, "input")), "the histogram is not that of the expert ids")


def _weighted(rewriter: Rewriter, rows: fx.Node) -> tuple[fx.Node, Any]:
    """rows * weights[:, None], and the weights [T * k]."""
    product = _user(rewriter, rows)
    found = operands(product, lambda node: node is rows) if is_op(product, "mul") else None
    factor = _without_last_axis(found[1]) if found is not None else None
    need(ndim(factor) == 1, "the second product is not multiplied by routing weights")
    return product, factor


def _flattened(node: Any) -> fx.Node:
    """The routing weights [T, k] of [T * k]."""
    is_flat = is_op(node, *FLATTENS) and ndim(node) == 1 and ndim(node.args[0]) == 2
    need(is_flat, "the routing weights are not flattened")
    weights: fx.Node = node.args[0]
    return weights


def _restored(rewriter: Rewriter, product: fx.Node, permutation: fx.Node) -> tuple[fx.Node, fx.Node]:
    """product[inverse], where inverse = empty_like(permutation); inverse[permutation] = arange; and that write."""
    rows = _user(rewriter, product)
    need(_is_gathered(rows) and rows.args[0] is product, "the order of the tokens is not restored")
    inverse = arg(rows, 1)
    need(is_op(inverse, "empty_like") and arg(inverse, 0, "input") is permutation, "no inverse permutation")
    writes = [user for user in rewriter.users(inverse) if is_op(user, "setitem") and user.args[0] is inverse]
    need(len(writes) == 1 and writes[0] < rows, "no inverse permutation")
    (write,) = writes
    index, numbers = arg(write, 1), arg(write, 2)
    is_count = is_op(numbers, "arange") and len(numbers.args) == 1 and not set(numbers.kwargs) & {"start", "step"}
    need(index is permutation and is_count, "no inverse permutation")
    need(same_shape(shape(numbers), shape(permutation)), "no inverse permutation")
    return rows, write


def _after_masks(rewriter: Rewriter, rows: fx.Node) -> fx.Node:
    """The last of the masks that are put on the rows."""
    users = rewriter.users(rows)
    while len(users) == 1 and is_op(users[0], "masked_fill") and users[0].args[0] is rows:
        rows = users[0]
        users = rewriter.users(rows)
    return rows


def skip_masks(node: Any) -> Any:
    """Look through masks. The matcher proves later, of everything between input and output, that they do nothing."""
    node = skip_noop(node)
    while is_op(node, "masked_fill", "masked_fill_"):
        node = skip_noop(node.args[0])
    return node


def _user(rewriter: Rewriter, node: fx.Node) -> fx.Node:
    users = rewriter.users(node)
    need(len(users) == 1, f"{node.name} is used elsewhere as well")
    return users[0]


def _is_gathered(node: Any) -> bool:
    """source[index] with a tensor of indices: a copy of the chosen rows."""
    return is_op(node, "getitem") and ndim(node.args[0]) > 0 and ndim(node.args[1]) == 1


def _without_last_axis(node: Any) -> Any:
    """What an axis of length 1 was put behind, by unsqueeze or by x[:, None]; None for anything else."""
    rank = ndim(node)
    if is_op(node, "unsqueeze"):
        return node.args[0] if is_axis(arg(node, 1, "dim"), rank - 1, rank) else None
    if is_op(node, "getitem") and isinstance(node.args[1], tuple):
        *leading, last = node.args[1]
        is_added = last is None and ndim(node.args[0]) == rank - 1
        return node.args[0] if is_added and all(each in (slice(None), Ellipsis) for each in leading) else None
    return None


def _drops_last_axis(node: Any) -> bool:
    return is_op(node, "squeeze") and ndim(node.args[0]) == 3 and is_axis(arg(node, 1, "dim"), 2, 3)
