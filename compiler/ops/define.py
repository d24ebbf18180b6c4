"""Opaque functional operators `paiton::...`: a schema, an exact fake, a body for any device and a launcher for GPUs.

`torch.library.Library` and not `custom_op`: 4 to 5 µs a call instead of 10. Not `triton_op`, whose trace would freeze a
config into the compiled graph. The fake never runs a kernel; its sizes, strides and dtypes are exactly those of the
outputs, because Inductor asserts them after every call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

NAMESPACE = "paiton"
SCHEMA_VERSION = 1
"""Part of the compile caches' key: raise it when a schema, a fake or a stride changes."""

# Lives as long as the process: an operator disappears with its library.
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

Function = TypeVar("Function", bound=Callable[..., Any])


class NoGradient(RuntimeError):
    """One of our operators was called on something that needs a gradient: it has none."""


@dataclass
class Operator:
    """One operator of ours: `overload` is what stands in a graph."""

    name: str
    overload: Any
    launch: Callable[..., Any] | None = None
    """What runs where there is a device for our kernels; None before `launcher` was called."""

    def body(self, function: Function) -> Function:
        """Register the implementation for every device without a launcher: plain torch, rounding as the model did."""
        _LIBRARY.impl(self.name, without_gradient(self.name, function), "CompositeExplicitAutograd")
        return function

    def launcher(self, function: Function) -> Function:
        """Register the implementation for GPUs (CUDA and ROCm share the dispatch key)."""
        self.launch = without_gradient(self.name, function)
        _LIBRARY.impl(self.name, self.launch, "CUDA")
        return function


def define(schema: str, fake: Callable[..., Any]) -> Operator:
    """Define `paiton::<schema>`. `fake` gives empty outputs of the right size, stride, dtype and device.

    Called with gradients enabled on a tensor that requires one, the operator raises NoGradient: silently wrong
    gradients are what torch would give instead.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{NAMESPACE}::{name}", without_gradient(name, fake), lib=_LIBRARY)
    # Past autograd at once, which has nothing to record and would cost a microsecond to say so.
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    return Operator(name, getattr(getattr(torch.ops, NAMESPACE), name).default)


def without_gradient(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, but NoGradient where a gradient is wanted: fakes raise it while tracing, bodies when called."""
    is_grad_enabled = torch.is_grad_enabled

    @functools.wraps(function)
    def checked(*args: Any) -> Any:
        if is_grad_enabled():
            _refuse_gradients(name, args)
        return function(*args)

    return checked


def _refuse_gradients(name: str, args: tuple[Any, ...]) -> None:
    for arg in args:
        if isinstance(arg, torch.Tensor) and arg.requires_grad:
            raise NoGradient(
                f"{NAMESPACE}::{name} has no gradient, and an input requires one: "
                "call the model under torch.no_grad() or torch.inference_mode()"
            )
