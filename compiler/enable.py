"""`paiton.compile(model)`: the model's forward compiled with our backend, and generate() set so that it runs it.

`torch.compile(model, backend="paiton").generate()` never runs the backend: it is the generate() of the model inside,
which is not compiled. `model.compile()` compiles the model itself, so generate() runs compiled code for prefill and
decode. A static cache then keeps the shapes of decode constant, and transformers' own automatic compilation, which
would put a second torch.compile around ours, is switched off. Experts that loop in Python, which would break the graph
in every layer, run as grouped products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .log import LOG
from .options import PREFIX
from .registration import NAME, register

Model = TypeVar("Model", bound=torch.nn.Module)

_STATE = "_paiton_compiled"


@dataclass(frozen=True)
class _Before:
    """What `compile` changed in a model, as it was, and how it was asked to."""

    request: tuple[Any, ...]
    compiled_call: Any
    generation: Mapping[str, Any]
    experts: str | None
    """The experts' implementation, where it was changed."""


def compile(
    model: Model,
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    cache: str | None = "static",
    fullgraph: bool = False,
    dynamic: bool | None = None,
    experts: str | None = "grouped_mm",
) -> Model:
    """Compile a model in place with this backend and return it; `model(...)` and `model.generate(...)` both run it.

    `mode`, `options`, `fullgraph` and `dynamic` are torch.compile's; here mode and options may be given together.
    `cache` becomes the default of generate()'s `cache_implementation`; None leaves that alone. `experts` replaces
    transformers' experts_implementation "eager", a Python loop that cannot be captured; None leaves that alone too. A
    call with the same arguments again changes nothing, with others it compiles anew; `uncompile` takes it back. Raises
    TypeError for what is no module, and for the result of torch.compile: compile the model itself.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"paiton.compile takes a torch.nn.Module, not {type(model).__name__}")
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            "paiton.compile takes the model itself, not the result of torch.compile, whose generate() runs uncompiled"
        )
    request = (mode, tuple(sorted((options or {}).items(), key=str)), cache, fullgraph, dynamic, experts)
    before: _Before | None = model.__dict__.get(_STATE)
    if before is not None and before.request == request and model._compiled_call_impl is not None:
        return model
    uncompile(model)
    register()
    given = dict(options or {})
    if mode is not None and given:
        given[f"{PREFIX}mode"] = mode
        mode = None
    call = model._compiled_call_impl
    model.compile(backend=NAME, mode=mode, options=given or None, fullgraph=fullgraph, dynamic=dynamic)
    model.__dict__[_STATE] = _Before(request, call, _set_generation(model, cache), _set_experts(model, experts))
    return model


def uncompile(model: torch.nn.Module) -> bool:
    """Take `compile` back: the model runs as it did before. False where there was nothing to take back."""
    before: _Before | None = model.__dict__.pop(_STATE, None)
    if before is None:
        return False
    model._compiled_call_impl = before.compiled_call
    for name, held in before.generation.items():
        setattr(model.generation_config, name, held)
    if before.experts is not None:
        _set_experts(model, before.experts, instead_of=None)
    return True


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether `compile` is in force on this model."""
    return _STATE in model.__dict__


def _set_generation(model: torch.nn.Module, cache: str | None) -> dict[str, Any]:
    """Make generate() run the compiled forward. Returns what was changed, as it was."""
    config: Any = getattr(model, "generation_config", None)
    if config is None:
        return {}
    wanted: dict[str, Any] = {"disable_compile": True}
    if cache is not None:
        wanted["cache_implementation"] = cache
    before = {name: getattr(config, name, None) for name in wanted}
    for name, new in wanted.items():
        setattr(config, name, new)
    return before


def _set_experts(model: torch.nn.Module, wanted: str | None, instead_of: str | None = "eager") -> str | None:
    """Choose how transformers computes experts, where it has `instead_of` (None: whatever). Returns what it had if that
    was changed."""
    current = getattr(getattr(model, "config", None), "_experts_implementation", None)
    choose: Any = getattr(model, "set_experts_implementation", None)
    if wanted is None or choose is None or current == wanted or (instead_of is not None and current != instead_of):
        return None
    try:
        choose(wanted)
    except ValueError:  # a model without experts
        return None
    if instead_of is not None:
        LOG.info("experts_implementation %r becomes %r: the loop over experts cannot be captured", current, wanted)
    return str(current)
