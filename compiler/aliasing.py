"""Which tensor a node writes in place, and whose storage a node shares: conservative in the safe direction."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from .canonical import is_tensor, op

_IN_PLACE = {
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.iand, operator.ior, operator.ixor, operator.ipow, operator.imod,
}  # fmt: skip
# Every one that may share storage with its input counts as if it always did.
_VIEWS = {
    "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "chunk", "split", "getitem", "flatten",
    "detach", "contiguous", "cast", "view_as", "expand_as", "reshape_as",
}  # fmt: skip
_MAX_DEPTH = 256


def mutated_args(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes whose storage `node` writes."""
    found: list[Any] = []
    if isinstance(node.kwargs.get("out"), fx.Node):
        found.append(node.kwargs["out"])
    if node.op == "call_method":
        name = str(node.target)
        if (name.endswith("_") and not name.startswith("__")) or name == "__setitem__":
            found.append(node.args[0])
    elif node.op == "call_function":
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            found += _schema_writes(node, target)
        elif target in _IN_PLACE:
            if is_tensor(node.args[0]):
                found.append(node.args[0])
        else:
            name = getattr(target, "__name__", "")
            if name.endswith("_") and not name.endswith("__") and node.args:
                found.append(node.args[0])
    return tuple(each for each in found if isinstance(each, fx.Node))


def _schema_writes(node: fx.Node, target: torch._ops.OpOverload[Any, Any]) -> list[Any]:
    written = []
    for index, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.kwargs.get(argument.name)
            written.append(node.args[index] if given is None and index < len(node.args) else given)
    return written


def is_mutating(node: fx.Node) -> bool:
    return bool(mutated_args(node))


def storage_owner(node: fx.Node) -> fx.Node:
    """The node that first held the storage of `node`: views and in-place operations lead back to their input."""
    for _ in range(_MAX_DEPTH):
        written = mutated_args(node)
        if written:
            node = written[0]
        elif op(node) in _VIEWS and node.args and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        else:
            break
    return node
