"""Specs by kernel name, ours and those of other projects; and what the tuner needs to know of the latter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...kernels_triton import registry
from ...kernels_triton.spec import KernelSpec
from ...search_spaces.fused_moe import VLLM_FUSED_MOE, as_grouped, grouped_columns
from ...search_spaces.moe import MoeProblem
from ...search_spaces.problem import Problem

if TYPE_CHECKING:
    from ...search_spaces.arch import Device
    from ...search_spaces.space import Columns
    from ...search_spaces.workload import WorkItem
    from .foreign import Adapter

FOREIGN_KERNELS: Mapping[str, str] = {VLLM_FUSED_MOE.kernel: "vllm_moe:VLLM_ADAPTER"}
STAND_INS = ("moe_gate_up", "moe_grouped")
"""Kernels of ours whose problems are those of a foreign layer of experts: in decode, and in prefill."""


def adapter_of(kernel: str) -> Adapter:
    """The adapter of a foreign kernel; imports nothing of that project."""
    import importlib

    module, attribute = FOREIGN_KERNELS[kernel].split(":")
    found: Adapter = getattr(importlib.import_module(f".{module}", __package__), attribute)
    return found


def spec_of(kernel: str) -> KernelSpec:
    """The spec of a kernel. Raises UnknownKernel, or AdapterUnavailable where its project is not installed."""
    return adapter_of(kernel).spec() if kernel in FOREIGN_KERNELS else registry.spec_of(kernel)


def modelled(problem: Problem, columns: Columns, device: Device) -> tuple[Problem, Columns]:
    """A foreign problem and its configs as those of our nearest kernel, which the static model knows."""
    if problem.kernel not in FOREIGN_KERNELS:
        return problem, columns
    assert isinstance(problem, MoeProblem)
    return as_grouped(problem), grouped_columns(columns, device)


def foreign_items(items: Sequence[WorkItem], kernels: Sequence[str]) -> tuple[WorkItem, ...]:
    """The layers of experts among `items` as problems of each foreign kernel, each once."""
    found: dict[Problem, WorkItem] = {}
    for kernel in kernels:
        for item in items:
            if item.problem.kernel in STAND_INS:
                problem = dataclasses.replace(item.problem, kernel=kernel)
                found.setdefault(problem, dataclasses.replace(item, problem=problem))
    return tuple(
        sorted(found.values(), key=lambda item: (item.problem.kernel, item.problem.signature, item.problem.batch))
    )
