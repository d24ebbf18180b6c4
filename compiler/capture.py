"""What the backend would do with a model, without running it for real: capture its graphs and collect the reports.

On a GPU, or for one that is not here, the model is captured on the `meta` device: its code takes the branches of a GPU,
nothing is computed and no cache of the caller is written. A model on the CPU runs once, on copies of its inputs.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.utils import counters
from torch.overrides import TorchFunctionMode

from ..search_spaces.arch import Device
from . import gpu
from .backend import compile_graph
from .options import Options
from .report import CompileReport

META = torch.device("meta")


@dataclass(frozen=True)
class Captured:
    """The graphs of one call of a model: their reports, and why the model broke into several."""

    reports: tuple[CompileReport, ...]
    graph_breaks: tuple[str, ...]


class _CopiesOnMeta(TorchFunctionMode):
    """Inside, the deep copy of a tensor is a tensor of its kind on `meta`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().to(META))
        return func(*args, **(kwargs or {}))


def capture(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Options,
    device: Device | None,
) -> Captured:
    """Call `model(*args, **kwargs)` through the backend and collect its reports; nothing is lowered.

    `device` stands behind the `meta` device meanwhile; None captures where the model is. What torch compiled before is
    compiled anew afterwards (torch._dynamo.reset), as after torch._dynamo.explain.
    """
    reports: list[CompileReport] = []

    def backend(module: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        compiled, report = compile_graph(module, example_inputs, options)
        reports.append(report)
        return compiled

    with _on_meta(model, args, kwargs, device) as (captured, arguments, named), _uncompiled(captured):
        torch._dynamo.reset()
        before = dict(counters["graph_break"])
        try:
            with torch.no_grad():
                torch.compile(captured, backend=backend)(*arguments, **named)
            # Torch counts over the whole process; the keys say why.
            found = counters["graph_break"].items()
            breaks = tuple(str(reason) for reason, count in found if count > before.get(reason, 0))
        finally:
            torch._dynamo.reset()
    return Captured(tuple(reports), breaks)


@contextlib.contextmanager
def _on_meta(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: Device | None
) -> Iterator[tuple[torch.nn.Module, Sequence[Any], Mapping[str, Any]]]:
    """The model and its inputs as they are captured; `device` stands behind `meta` inside."""
    if device is None:
        # A cache among the inputs is written by the call: that of the caller stays as it is.
        yield model, *copy.deepcopy((tuple(args), dict(kwargs)))
        return
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = torch.nn.Parameter(parameter.detach().to(META), parameter.requires_grad)
    with _CopiesOnMeta():
        copied, arguments, named = copy.deepcopy((model, tuple(args), dict(kwargs)), memo)
    _name_meta((arguments, named), set())
    named = {**_empty_cache(copied, named), **named}
    gpu.stand_in(META, device)
    try:
        yield copied, arguments, named
    finally:
        gpu.stand_in(META, None)


def _empty_cache(model: torch.nn.Module, named: Mapping[str, Any]) -> dict[str, Any]:
    """The cache that a Hugging Face model makes for itself where none is given. Inside a graph on `meta` it cannot: a
    torch.tensor([]) there is no fake tensor, an error of torch."""
    config: Any = getattr(model, "config", None)
    wants_one = getattr(config, "use_cache", False) and named.get("use_cache") is not False
    if not (hasattr(model, "generate") and wants_one) or named.get("past_key_values") is not None:
        return {}
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=config)
    if not all(hasattr(layer, "keys") for layer in cache.layers):  # linear attention keeps another state
        return {}
    for layer in cache.layers:
        layer.dtype, layer.device = next(model.parameters()).dtype, META
        layer.keys, layer.values = (torch.tensor([], dtype=layer.dtype, device=META) for _ in range(2))
        layer.is_initialized = True
    return {"past_key_values": cache}


def _name_meta(held: Any, seen: set[int]) -> None:
    """Let every device that an input names, as a cache does, be `meta` as well."""
    if id(held) in seen or isinstance(held, (torch.Tensor, torch.nn.Module)):
        return
    seen.add(id(held))
    if isinstance(held, Mapping):
        inner: list[Any] = list(held.values())
    elif isinstance(held, (list, tuple)):
        inner = list(held)
    else:
        own = getattr(held, "__dict__", {})
        for name, each in own.items():
            if isinstance(each, torch.device):
                own[name] = META
        inner = list(own.values())
    for each in inner:
        _name_meta(each, seen)


@contextlib.contextmanager
def _uncompiled(model: torch.nn.Module) -> Iterator[None]:
    """A model that is compiled in place is captured as it is inside."""
    compiled = model._compiled_call_impl
    model._compiled_call_impl = None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled
