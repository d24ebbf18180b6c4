"""The operators by name, and the tuning problems that one call of each asks the database about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from ...search_spaces.problem import Problem
from ..ask import Ask, Asks
from ..hints import hint_of
from .attention import ATTENTION, ATTENTION_DECODE_FUSED, asks_attention, asks_attention_decode_fused
from .define import NAMESPACE, Operator
from .linear import LINEAR, LINEAR_QKV, LINEAR_SILU_MUL, asks_linear, asks_linear_qkv, asks_linear_silu_mul
from .moe import EXPERTS, ROUTER, asks_experts, asks_router
from .norm import ADD_RMS_NORM, RMS_NORM, asks_add_rms_norm, asks_rms_norm
from .rope import QK_NORM_ROPE, asks_qk_norm_rope

_ENTRIES: tuple[tuple[Operator, Callable[..., Asks]], ...] = (
    (RMS_NORM, asks_rms_norm),
    (ADD_RMS_NORM, asks_add_rms_norm),
    (LINEAR, asks_linear),
    (LINEAR_QKV, asks_linear_qkv),
    (LINEAR_SILU_MUL, asks_linear_silu_mul),
    (QK_NORM_ROPE, asks_qk_norm_rope),
    (ATTENTION, asks_attention),
    (ATTENTION_DECODE_FUSED, asks_attention_decode_fused),
    (ROUTER, asks_router),
    (EXPERTS, asks_experts),
)
OPERATORS: Mapping[str, Operator] = MappingProxyType({operator.name: operator for operator, _ in _ENTRIES})
_ASKS = {operator.name: asks for operator, asks in _ENTRIES}


@dataclass(frozen=True)
class _Sizes:
    """Of a tensor, what a question needs: its shape as plain integers, and its dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


def problems_of(name: str, args: Sequence[Any]) -> tuple[tuple[Problem, ...], ...]:
    """The ways to run one call of `paiton::<name>`, each with the problems of all kernels that take part in it.

    Most operators have one way of one kernel; `experts` has two, (moe_gate_up, moe_down) and (moe_grouped,). Empty
    where no kernel of ours can compute the call, which then runs the operator's body. `args` are the call's arguments,
    the tensors real or fake; a symbolic size counts by its hint, and no guard is installed. Raises KeyError for a name
    that is no operator.
    """
    asks = asks_of(name, args)
    ways = (tuple(ask.problem() for ask in way) for way in asks)
    return tuple(tuple(p for p in way if p is not None) for way in ways if None not in way)


def asks_of(name: str, args: Sequence[Any]) -> Asks:
    """As `problems_of`, as the questions that `selection` answers."""
    plain = [_plain(arg) for arg in args]
    return () if any(arg is _UNKNOWN for arg in plain) else _ASKS[name](*plain)


@contextmanager
def launch_on_cpu() -> Iterator[None]:
    """Every operator takes its launcher for CPU tensors, by a registration that ends with the context."""
    library = torch.library.Library(NAMESPACE, "IMPL")
    try:
        for operator in OPERATORS.values():
            if operator.launch is not None:
                library.impl(operator.name, operator.launch, "CPU")
        yield
    finally:
        library._destroy()


_UNKNOWN = object()


def _plain(arg: Any) -> Any:
    """A tensor as its sizes, a symbolic number as its hint; _UNKNOWN where there is no hint."""
    if isinstance(arg, torch.Tensor):
        sizes = [_plain(size) for size in arg.shape]
        return _UNKNOWN if any(size is _UNKNOWN for size in sizes) else _Sizes(tuple(sizes), arg.dtype)
    hint = hint_of(arg)
    return _UNKNOWN if hint is None and arg is not None else hint


__all__ = ["OPERATORS", "Ask", "Operator", "asks_of", "problems_of"]
