"""Whether a graph may be rewritten at all: our operators have no gradient and know some devices and dtypes only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

DEVICES = ("cpu", "cuda", "meta")
"""ROCm calls its devices cuda as well. `meta` computes nothing and is what a GPU's graph is looked at with."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class NotUsed(RuntimeError):
    """A graph that our kernels must not enter, under paiton.strict; the message says why."""


def why_not(module: fx.GraphModule, example_inputs: Sequence[Any]) -> str | None:
    """Why this graph is left alone, or None where it may be rewritten."""
    tensors = [each for each in example_inputs if isinstance(each, torch.Tensor)]
    # Parameters are inputs of the graph, or attributes of the module under an option of Dynamo.
    tensors += [*module.parameters(), *module.buffers()]
    return _gradients(tensors) or _devices(tensors) or _autocast(tensors) or _subclasses(tensors) or _dtypes(tensors)


def _gradients(tensors: Iterable[torch.Tensor]) -> str | None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "gradients are wanted: run under torch.no_grad() or torch.inference_mode(), or requires_grad_(False)"
    return None


def _devices(tensors: Iterable[torch.Tensor]) -> str | None:
    # A number on the CPU (0-d) may stand beside tensors of any device.
    found = {tensor.device for tensor in tensors if not (tensor.ndim == 0 and tensor.device.type == "cpu")}
    unknown = sorted({device.type for device in found} - set(DEVICES))
    if unknown:
        return f"device {', '.join(unknown)} has no kernels of ours (only {', '.join(DEVICES)})"
    gpus = sorted(str(device) for device in found if device.type == "cuda")
    if len(gpus) > 1:
        return f"one graph on several GPUs ({', '.join(gpus)})"
    return None


def _autocast(tensors: Iterable[torch.Tensor]) -> str | None:
    for kind in sorted({tensor.device.type for tensor in tensors} - {"meta"}):
        if torch.is_autocast_enabled(kind):
            return "autocast is on: it would change the dtypes of what our kernels compute"
    return None


def _subclasses(tensors: Iterable[torch.Tensor]) -> str | None:
    # As objects: to the type checker no tensor can be one of these.
    given: Iterable[object] = tensors
    names = sorted({type(each).__name__ for each in given if is_traceable_wrapper_subclass(each)})
    return f"tensor subclass {', '.join(names)}: our operators take plain tensors" if names else None


def _dtypes(tensors: Iterable[torch.Tensor]) -> str | None:
    floating = {tensor.dtype for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()}
    if floating and not floating & set(DTYPES):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in floating))
        return f"dtype {names} has no kernels of ours (only bfloat16, float16, float32)"
    return None
