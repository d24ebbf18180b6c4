"""vLLM's `fused_experts`, the whole grouped layer of experts (align, two GEMMs, silu, sum), with a config of our own.

What is used of vLLM is what its own benchmark uses: `override_config(config)` of vllm.model_executor.layers.fused_moe,
a context in which every call takes that config, and `fused_experts(x, w1, w2, topk_weights, topk_ids)` and
`get_default_config(M, E, N, K, topk, dtype)` of its module fused_moe. Weights lie as ours do: w1 [E, 2I, H], gate rows
first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from ...kernels_triton.moe_grouped import make_moe_grouped_inputs, moe_grouped_reference
from ...search_spaces.arch import Device
from ...search_spaces.config import Config, Value
from ...search_spaces.fused_moe import VLLM_FUSED_MOE
from ...search_spaces.moe import MoeProblem
from ...search_spaces.space import Choices
from .foreign import Adapter, ForeignPlan, ForeignSpec

_PACKAGE = "vllm.model_executor.layers.fused_moe"


def _plan(
    x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, residual: None,
    *, config: Config, device: Device,
) -> ForeignPlan:  # fmt: skip
    """One call of vLLM's layer; ids and weights in the types that its router makes."""
    theirs = dict(config)
    override = importlib.import_module(_PACKAGE).override_config
    fused_experts = importlib.import_module(f"{_PACKAGE}.fused_moe").fused_experts
    _prepare_workspace(x.device)
    routed = (weights.float(), ids.to(torch.int32))

    def call() -> torch.Tensor:
        with override(theirs):
            out: torch.Tensor = fused_experts(x, w13, w2, *routed)
        return out

    return ForeignPlan(launches=(), outputs=(), call=call)


@functools.cache
def _prepare_workspace(torch_device: torch.device) -> None:
    """Releases since 2026 take scratch memory from a manager that a server sets up; earlier ones have none."""
    with contextlib.suppress(ImportError):
        importlib.import_module("vllm.v1.worker.workspace").init_workspace_manager(torch_device)


def _default(problem: MoeProblem, device: Device) -> Config:
    """What vLLM would use without a file. What it leaves to Triton is written out as Triton's own default."""
    get_default_config: Callable[..., dict[str, Any]] = importlib.import_module(
        f"{_PACKAGE}.fused_moe"
    ).get_default_config
    theirs = get_default_config(
        problem.batch, problem.experts, problem.inter, problem.hidden, problem.top_k,
        "float32" if problem.dtype == "fp32" else None,
    )  # fmt: skip
    values: dict[str, Value] = {name: values[0] for name, values in VLLM_FUSED_MOE.choices(problem, device).items()} | {
        "num_warps": 4,
        "num_stages": 2 if device.arch.is_amd else 3,
    }
    return Config({name: theirs.get(name, value) for name, value in values.items()})


def _choices(problem: MoeProblem, device: Device) -> Choices:
    """Ours, and whatever vLLM's default is: the search must be able to say that it is best."""
    default = _default(problem, device)
    return VLLM_FUSED_MOE.extended({name: (default[name],) for name in default}).choices(problem, device)


def _make_spec(digest: str) -> ForeignSpec:
    space = dataclasses.replace(VLLM_FUSED_MOE, choices=_choices, default=_default)
    return ForeignSpec(
        VLLM_FUSED_MOE.kernel, space, _plan, moe_grouped_reference, make_moe_grouped_inputs, source=digest
    )


VLLM_ADAPTER = Adapter(
    kernel=VLLM_FUSED_MOE.kernel, project="vLLM", package="vllm", install="pip install vllm",
    sources=("model_executor/layers/fused_moe/fused_moe.py",), make_spec=_make_spec,
)  # fmt: skip
