"""A canonical view of a Dynamo graph. Nothing is retraced and nothing is changed: these functions only read.

`op` folds the spellings of an operation to one name, `arg` finds an argument wherever it was written, `value` is the
fake tensor. Comparisons of sizes never install a guard, so that looking at a graph cannot make it recompile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .spellings import CAST, name_of_function, name_of_method

Size = Any
"""int or SymInt."""

_SAME_LAST_DIM = ("view", "reshape", "flatten", "view_as", "reshape_as")


def op(node: Any) -> str | None:
    """The canonical name of what a node computes; None for an unknown one and for what is no call."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_function":
        return name_of_function(node.target)
    if node.op == "call_method":
        return name_of_method(str(node.target))
    return None


def is_op(node: Any, *names: str) -> bool:
    return op(node) in names


def calls(node: Any, target: Any) -> bool:
    """Whether the node calls exactly this function, for example an operator overload."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def arg(node: fx.Node, index: int, name: str | None = None, default: Any = None) -> Any:
    """An argument of the operation, positional or keyword; argument 0 of a method is the tensor itself."""
    if name is not None and name in node.kwargs:
        return node.kwargs[name]
    return node.args[index] if index < len(node.args) else default


def has_only(node: fx.Node, *names: str) -> bool:
    """Whether the call has no arguments but these: no `alpha`, `out`, `dtype` or whatever else changes its meaning."""
    return len(node.args) <= len(names) and all(name in names for name in node.kwargs)


def value(node: Any) -> Any:
    """The fake tensor (or tuple, SymInt, number) of a node; anything else is returned as it is."""
    if not isinstance(node, fx.Node):
        return node
    return node.meta.get("example_value", node.meta.get("val"))


def is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(value(node), torch.Tensor)


def dtype(node: Any) -> torch.dtype | None:
    found = value(node)
    return found.dtype if isinstance(found, torch.Tensor) else None


def shape(node: Any) -> tuple[Size, ...]:
    """The sizes of a tensor; empty for anything else (see `is_tensor`). Symbols known to be numbers are numbers."""
    found = value(node)
    return tuple(_settled(size) for size in found.shape) if isinstance(found, torch.Tensor) else ()


def _settled(size: Size) -> Size:
    settled = size.node.maybe_as_int() if isinstance(size, torch.SymInt) else size
    return size if settled is None else settled


def ndim(node: Any) -> int:
    """Number of axes, -1 for what is no tensor."""
    found = value(node)
    return found.ndim if isinstance(found, torch.Tensor) else -1


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal, without installing a guard."""
    a, b = value(a), value(b)
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if not isinstance(a, (int, torch.SymInt)) or not isinstance(b, (int, torch.SymInt)):
        return False
    return bool(statically_known_true(a == b))


def same_shape(a: tuple[Size, ...], b: tuple[Size, ...]) -> bool:
    return len(a) == len(b) and all(same_size(x, y) for x, y in zip(a, b, strict=True))


def is_cast(node: Any) -> bool:
    """A change of dtype (or none) that stays on the device."""
    if op(node) != CAST or not is_tensor(node.args[0]) or not is_tensor(node):
        return False
    return bool(value(node.args[0]).device == value(node).device)


def skip_casts(node: Any) -> Any:
    while is_cast(node):
        node = node.args[0]
    return node


def skip_noop(node: Any) -> Any:
    """Look through what changes neither values, dtype nor shape: a cast to the same dtype, contiguous, a view."""
    while isinstance(node, fx.Node) and node.args and is_tensor(node) and is_tensor(node.args[0]):
        name, source = op(node), node.args[0]
        is_same_cast = is_cast(node) and dtype(node) == dtype(source)
        is_same_view = name in ("expand", "expand_as", *_SAME_LAST_DIM) and same_shape(shape(node), shape(source))
        if not (is_same_cast or is_same_view or name in ("contiguous", "clone", "detach")):
            break
        node = source
    return node


def skip_views(node: Any) -> Any:
    """Look through reshapes that keep the last axis as well: enough for what works row by row."""
    while isinstance(node, fx.Node):
        source = skip_noop(node)
        if source is node:
            if not (is_op(node, *_SAME_LAST_DIM) and is_tensor(node) and is_tensor(node.args[0])):
                return node
            inner = node.args[0]
            if not (shape(node) and shape(inner) and same_size(shape(node)[-1], shape(inner)[-1])):
                return node
            source = inner
        node = source
    return node


def operands(node: fx.Node, is_first: Callable[[Any], bool]) -> tuple[Any, Any] | None:
    """The two operands of a commutative operation so ordered that `is_first` holds for the first; None if for none."""
    a, b = arg(node, 0, "input"), arg(node, 1, "other")
    if is_first(a):
        return a, b
    if is_first(b):
        return b, a
    return None


def scalar(node: Any) -> float | int | None:
    """The Python number of an argument, or None.

    Under `dynamic=True` Dynamo turns a module's float attributes, such as an eps, into graph inputs. Reading such a
    number specialises it: the guard it installs recompiles the graph should the number change, which is right.
    """
    found = value(node)
    if isinstance(found, torch.SymFloat):
        return float(found)
    if isinstance(found, torch.SymInt):
        return int(found)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def is_axis(axis: Any, index: int, rank: int) -> bool:
    """Whether `axis` (an int, or a sequence of one) names axis `index` (>= 0) of `rank` axes."""
    if isinstance(axis, (list, tuple)) and len(axis) == 1:
        axis = axis[0]
    return isinstance(axis, int) and not isinstance(axis, bool) and axis in (index, index - rank)


def is_last_axis(axis: Any, node: fx.Node) -> bool:
    """Whether `axis` is the last axis of the node's tensor."""
    return is_axis(axis, ndim(node) - 1, ndim(node))


def is_swap(node: Any, first: int, second: int) -> bool:
    """Whether the node exchanges axes `first` and `second` (>= 0), by `transpose` or `permute`, and nothing else."""
    rank = ndim(node)
    if is_op(node, "transpose"):
        axes = [arg(node, 1, "dim0"), arg(node, 2, "dim1")]
        if not all(isinstance(axis, int) for axis in axes):
            return False
        return {axis % rank for axis in axes} == {first, second}
    if is_op(node, "permute"):
        given = arg(node, 1, "dims")
        order = list(given if isinstance(given, (list, tuple)) else node.args[1:])
        swapped = list(range(rank))
        swapped[first], swapped[second] = second, first
        return all(isinstance(axis, int) for axis in order) and [axis % rank for axis in order] == swapped
    return False


def is_parameter(node: Any) -> bool:
    """A graph input or attribute, rather than something computed in the graph."""
    return isinstance(node, fx.Node) and node.op in ("placeholder", "get_attr") and is_tensor(node)


def layer_of(node: fx.Node) -> str:
    """The readable place of a node, such as model.layers.3.self_attn; empty if Dynamo does not know it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return ""
    path = str(stack[-1][0])
    for prefix in ("L['self']", "L['fn'].__self__", "L['model']"):
        path = path.removeprefix(prefix)
    return path.lstrip(".")
