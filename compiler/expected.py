"""Sites that a reader expects and a graph does not have: an attention, an MLP or experts without an anchor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .report import SiteRow

_KINDS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"Attention$"), ("attention",)),
    (re.compile(r"Experts$"), ("experts",)),
    (re.compile(r"(MLP|FeedForward)$"), ("linear_silu_mul",)),
)
"""The end of a module's class name, and the patterns (with their joins, `attention_cache`) that one expects in it."""


@dataclass(frozen=True)
class Absent:
    """Modules of one class in which no anchor of a pattern was found."""

    pattern: str
    module_class: str
    where: str
    """The first of them."""
    count: int
    reason: str

    def __str__(self) -> str:
        more = f" and {self.count - 1} more" if self.count > 1 else ""
        return f"{self.pattern} at {self.where}{more} ({self.module_class}): {self.reason}"


def absent_sites(model: torch.nn.Module, sites: Iterable[SiteRow], breaks: Sequence[str] = ()) -> tuple[Absent, ...]:
    """Where the class of a module of `model` promises a site and none of any status is there. `breaks` are the reasons
    of graph breaks."""
    places: dict[str, list[str]] = {}
    for site in sites:
        places.setdefault(site.pattern, []).append(site.where)
    found: dict[tuple[str, str], list[tuple[str, torch.nn.Module]]] = {}
    for path, module, pattern in _promising(model):
        here = [where for name, each in places.items() if name.startswith(pattern) for where in each]
        if not any(_is_inside(where, path) for where in here):
            found.setdefault((pattern, type(module).__name__), []).append((path, module))
    return tuple(
        Absent(pattern, name, modules[0][0], len(modules), _reason(pattern, model, modules[0][1], breaks))
        for (pattern, name), modules in found.items()
    )


def _is_inside(where: str, path: str) -> bool:
    """Whether a place is the module at `path` or in it. After a graph break places begin at the frame's own module."""
    parts = path.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    return any(where == end or where.startswith(f"{end}.") for end in ends)


def _promising(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str]]:
    inside_experts: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if path.startswith(inside_experts or "\0"):
            continue  # one expert of a list of MLPs
        for name, patterns in _KINDS:
            if name.search(type(module).__name__):
                if patterns == ("experts",):
                    inside_experts = (*inside_experts, f"{path}.")
                yield from ((path, module, pattern) for pattern in patterns)


def _reason(pattern: str, model: torch.nn.Module, module: torch.nn.Module, breaks: Sequence[str]) -> str:
    if pattern == "attention":
        how = _chosen("_attn_implementation", module, model)
        if how == "eager":
            return "eager attention is products and a softmax apart: load the model with attn_implementation='sdpa'"
        if how not in (None, "sdpa"):
            return f"{how} is a library that this backend cannot see into: attn_implementation='sdpa'"
        return "it does not call scaled_dot_product_attention"
    if pattern == "experts":
        how = _chosen("_experts_implementation", module, model)
        if how == "eager":
            broken = next((f" ({_first_line(reason)})" for reason in breaks if "nonzero" in reason), "")
            return (
                f"the eager loop over experts breaks the graph at aten.nonzero{broken}:"
                " model.set_experts_implementation('grouped_mm')"
            )
        return "no two grouped or batched products with silu between them"
    return "no silu(gate) * up of two linear layers without a bias"


def _chosen(setting: str, module: torch.nn.Module, model: torch.nn.Module) -> Any:
    for holder in (module, model):
        found = getattr(getattr(holder, "config", None), setting, None)
        if found is not None:
            return found
    return None


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")[:120]
