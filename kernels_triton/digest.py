"""Source digest: one hash over a function and all of ours that it reaches, blind to comments and line numbers."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

_OUR_PACKAGE = __name__.rsplit(".", 1)[0]
_CONSTANT_TYPES = (int, float, str, bool, tuple)


@functools.cache
def source_digest(root: Any) -> str:
    """16 hex digits over the syntax trees of `root` and of all jitted or plain functions of this package it names.

    Module constants count by value. Docstrings, comments, formatting and positions do not count.
    """
    hasher = hashlib.blake2b(digest_size=8)
    for name, text in sorted(_reachable(root).items()):
        hasher.update(f"{name}\x1f{text}\x1e".encode())
    return hasher.hexdigest()


def _reachable(root: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting = [root]
    while waiting:
        function = _python_function(waiting.pop())
        name = f"{function.__module__}.{function.__qualname__}"
        if name in found:
            continue
        tree = _bare_tree(function)
        found[name] = _dumped(tree)
        for used, value in _used_globals(tree, function.__globals__):
            if _is_ours(value):
                waiting.append(value)
            elif isinstance(_plain(value), _CONSTANT_TYPES):
                found[f"{function.__module__}.{used}"] = repr(_plain(value))
    return found


def _python_function(value: Any) -> Any:
    """The Python function inside a jitted (compiled or interpreted) function."""
    return getattr(value, "fn", value)


def _plain(value: Any) -> Any:
    """The value inside a tl.constexpr."""
    return getattr(value, "value", value)


def _is_ours(value: Any) -> bool:
    function = _python_function(value)
    return inspect.isfunction(function) and function.__module__.startswith(_OUR_PACKAGE)


def _bare_tree(function: Any) -> ast.Module:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _dumped(node: Any) -> str:
    """The tree as text, equal in every Python version, which `ast.dump` is not: it shows the fields that a version
    added, and from 3.13 on hides empty ones. A shipped database is keyed by this text."""
    if isinstance(node, list):
        return f"[{','.join(map(_dumped, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Constant):
        return f"Constant({node.value!r})"
    fields = [(name, getattr(node, name, None)) for name in node._fields]
    shown = [f"{name}={_dumped(value)}" for name, value in fields if value is not None and value != []]
    return f"{type(node).__name__}({','.join(shown)})"


def _used_globals(tree: ast.Module, namespace: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return ((name, namespace[name]) for name in sorted(names) if name in namespace)
