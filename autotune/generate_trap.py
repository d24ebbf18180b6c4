"""Finds a call that looks compiled and is not: generate() of what torch.compile returned.

`torch.compile(model, backend="paiton")` returns an object whose `generate` is that of the model inside, which runs
uncompiled, without a word. A script is read, never run.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trap:
    """A call of generate() in a script that runs uncompiled."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text} runs uncompiled: paiton.compile(model), then model.generate(...)"


def find_traps(path: Path) -> list[Trap]:
    """Calls of generate() on what torch.compile returned, by line. A name counts from where it was assigned until it is
    assigned anew, in the order of the lines. Raises OSError and SyntaxError."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    events = [node for node in ast.walk(tree) if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Call))]
    # Of one line the call comes first: the value of an assignment is computed before its name holds it.
    events.sort(key=lambda node: (node.lineno, not isinstance(node, ast.Call)))
    compiled: set[str] = set()
    traps = []
    for node in events:
        if isinstance(node, ast.Call):
            owner = _owner_of_generate(node)
            if owner is not None and (_is_torch_compile(owner) or ast.unparse(owner) in compiled):
                traps.append(Trap(path, node.lineno, f"{ast.unparse(node.func)}(...)"))
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in map(ast.unparse, targets):
                compiled.discard(target)
                if node.value is not None and _is_torch_compile(node.value):
                    compiled.add(target)
    return traps


def _owner_of_generate(call: ast.Call) -> ast.expr | None:
    function = call.func
    return function.value if isinstance(function, ast.Attribute) and function.attr == "generate" else None


def _is_torch_compile(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.compile"
