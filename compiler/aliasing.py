"""Which tensors a node writes in place, and whose storage a node shares: where in doubt, it writes and it shares."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from .canonical import is_tensor, ndim, op, value

_IN_PLACE = {
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.iand, operator.ior, operator.ixor, operator.ipow, operator.imod, operator.ilshift, operator.irshift,
    operator.imatmul, operator.delitem,
}  # fmt: skip
_IN_PLACE_METHODS = {f"__{target.__name__}__" for target in _IN_PLACE}

# Every one that may share storage with its input counts as if it always did.
_VIEWS = {
    "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "chunk", "split", "getitem", "flatten",
    "detach", "contiguous", "cast", "view_as", "expand_as", "reshape_as",
}  # fmt: skip
# Views that no pattern reads, by the name of the function, method or operator.
_OTHER_VIEWS = {
    "adjoint", "alias", "as_strided", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_to", "broadcast_tensors",
    "diagonal", "dsplit", "getattr", "hsplit", "imag", "moveaxis", "movedim", "narrow", "ravel", "real", "select",
    "split_with_sizes", "swapaxes", "swapdims", "t", "tensor_split", "type_as", "unbind", "unflatten", "unfold",
    "unsafe_chunk", "unsafe_split", "view_as_complex", "view_as_real", "vsplit",
}  # fmt: skip
# Their outputs are tensors of their own.
_FRESH_TUPLES = {"topk", "sort"}


def mutated_args(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes whose storage `node` writes."""
    found: list[Any] = [node.kwargs.get("out")]
    if node.op == "call_method":
        name = str(node.target)
        if (name.endswith("_") and not name.startswith("__")) or name in _IN_PLACE_METHODS:
            found.append(node.args[0])
    elif node.op == "call_module":
        found += node.all_input_nodes
    elif node.op == "call_function":
        found += _written_by_function(node, node.target)
    return tuple(dict.fromkeys(_nodes(found)))


def _written_by_function(node: fx.Node, target: Any) -> Iterable[Any]:
    if isinstance(target, torch._ops.OpOverloadPacket):
        target = getattr(target, target.overloads()[0])
    if isinstance(target, torch._ops.OpOverload):
        return _schema_writes(node, target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return [each for each in node.all_input_nodes if is_tensor(each)]  # a region that may do anything
    if target in _IN_PLACE:
        return [node.args[0]] if is_tensor(node.args[0]) else []
    name = getattr(target, "__name__", "")
    is_in_place = name.endswith("_") and not name.endswith("__")
    if is_in_place or _argument(node, _position("inplace", target), "inplace") is True:
        return [_argument(node, 0, "input")]
    return []


def _schema_writes(node: fx.Node, target: torch._ops.OpOverload[Any, Any]) -> list[Any]:
    return [
        _argument(node, index, argument.name)
        for index, argument in enumerate(target._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _argument(node: fx.Node, index: int | None, name: str) -> Any:
    if index is not None and index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name)


@functools.cache
def _position(name: str, target: Callable[..., Any]) -> int | None:
    """Where a Python function such as F.silu takes the argument `name`; None if it does not, or is none of Python's."""
    try:
        parameters = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    return parameters.index(name) if name in parameters else None


def _nodes(values: Iterable[Any]) -> Iterable[fx.Node]:
    """The nodes among `values`, those in lists of tensors included (`torch._foreach_add_`)."""
    for each in values:
        if isinstance(each, fx.Node):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from _nodes(each)


def storage_owner(node: fx.Node) -> fx.Node:
    """The node that first held the storage of `node`: views and in-place operations lead back to their input."""
    source: fx.Node | None = node
    while source is not None:
        node, source = source, _shares_with(source)
    return node


def may_alias(owner: fx.Node, other: fx.Node) -> bool:
    """Whether two owners can hold one storage: they are the same, or graph inputs that are views of one tensor."""
    return owner is other or (_storage(owner) is not None and _storage(owner) == _storage(other))


def is_view(node: fx.Node) -> bool:
    """Whether the node may be a view of its first argument, judged by its name."""
    if op(node) in _VIEWS:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and str(name).partition(".")[0] in _OTHER_VIEWS


def _shares_with(node: fx.Node) -> fx.Node | None:
    if node.op not in ("call_function", "call_method"):
        return None
    written = mutated_args(node)
    if written:
        return written[0]
    if is_view(node) and not _is_fresh_item(node):
        return next(iter(_nodes(node.args)), None)
    mine = _storage(node)
    return next((each for each in node.all_input_nodes if mine is not None and _storage(each) == mine), None)


def _is_fresh_item(node: fx.Node) -> bool:
    """Whether indexing is no view: by a tensor of indices, which copies, or into a tuple of new tensors.

    An index without axes selects, and that is a view.
    """
    if op(node) != "getitem":
        return False
    source, index = node.args[0], node.args[1]
    if any(ndim(each) > 0 for each in _nodes(index if isinstance(index, tuple) else (index,))):
        return True
    if op(source) in _FRESH_TUPLES:
        return True
    target = source.target if isinstance(source, fx.Node) and not is_tensor(source) else None
    return isinstance(target, torch._ops.OpOverload) and all(r.alias_info is None for r in target._schema.returns)


def _storage(node: fx.Node) -> int | None:
    """The identity of the fake storage of a node's tensor, or of the first of its tensors."""
    found = value(node)
    if isinstance(found, (list, tuple)):
        found = next((each for each in found if isinstance(each, torch.Tensor)), None)
    if not isinstance(found, torch.Tensor):
        return None
    try:
        return int(found.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none
        return None
