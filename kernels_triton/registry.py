"""The kernel specs by name, imported when asked for."""

from __future__ import annotations

import importlib
from typing import cast

from ..search_spaces.registry import UnknownKernel
from .spec import KernelSpec

_HOMES = {
    "rms_norm": "norm:RMS_NORM_SPEC",
    "add_rms_norm": "norm:ADD_RMS_NORM_SPEC",
    "linear": "linear:LINEAR_SPEC",
    "linear_silu_mul": "linear:LINEAR_SILU_MUL_SPEC",
    "linear_qkv": "linear:LINEAR_QKV_SPEC",
    "router": "router:ROUTER_SPEC",
    "moe_gate_up": "moe_gate_up:MOE_GATE_UP_SPEC",
    "moe_down": "moe_down:MOE_DOWN_SPEC",
    "moe_grouped": "moe_grouped:MOE_GROUPED_SPEC",
    "qk_norm_rope": "qk_norm_rope:QK_NORM_ROPE_SPEC",
    "attention_decode": "attention_decode:ATTENTION_DECODE_SPEC",
    "attention_decode_fused": "attention_decode_fused:ATTENTION_DECODE_FUSED_SPEC",
    "attention_prefill": "attention_prefill:ATTENTION_PREFILL_SPEC",
}


def spec_of(kernel: str) -> KernelSpec:
    """The spec of a kernel. Raises UnknownKernel, naming the known ones."""
    if kernel not in _HOMES:
        raise UnknownKernel(f"unknown kernel {kernel!r}; known: {', '.join(_HOMES)}")
    module, attribute = _HOMES[kernel].split(":")
    return cast(KernelSpec, getattr(importlib.import_module(f".{module}", __package__), attribute))
