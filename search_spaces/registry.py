"""The spaces by kernel name, imported when asked for."""

from __future__ import annotations

import importlib
from typing import cast

from .space import SearchSpace

_HOMES = {
    "rms_norm": "norm:RMS_NORM",
    "add_rms_norm": "norm:ADD_RMS_NORM",
    "linear": "linear:LINEAR",
    "linear_silu_mul": "linear:LINEAR_SILU_MUL",
    "linear_qkv": "linear:LINEAR_QKV",
    "router": "router:ROUTER",
    "moe_gate_up": "moe:MOE_GATE_UP",
    "moe_down": "moe:MOE_DOWN",
    "moe_grouped": "moe_grouped:MOE_GROUPED",
    "qk_norm_rope": "qk_norm_rope:QK_NORM_ROPE",
    "attention_decode": "attention:ATTENTION_DECODE",
    "attention_decode_fused": "attention:ATTENTION_DECODE_FUSED",
    "attention_prefill": "attention_prefill:ATTENTION_PREFILL",
}
KERNEL_NAMES = tuple(_HOMES)


class UnknownKernel(ValueError):
    """A kernel name that is not in the registry."""


def space_of(kernel: str) -> SearchSpace:
    """The search space of a kernel. Raises UnknownKernel, naming the known ones."""
    if kernel not in _HOMES:
        raise UnknownKernel(f"unknown kernel {kernel!r}; known: {', '.join(KERNEL_NAMES)}")
    module, attribute = _HOMES[kernel].split(":")
    return cast(SearchSpace, getattr(importlib.import_module(f".{module}", __package__), attribute))
