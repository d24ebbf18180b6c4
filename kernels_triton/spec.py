"""KernelSpec: everything the tuner has to know of one kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.problem import Problem
from ..search_spaces.space import SearchSpace
from .digest import source_digest
from .launch import Plan

Inputs = tuple[Any, ...]
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class KernelSpec:
    """A kernel's name, space, plan, oracle and input maker.

    `plan(*inputs, config=..., device=...)` validates, allocates and says what to launch; it works on `meta` tensors.
    `reference(*inputs)` computes the same outputs in fp32 or better, without changing its inputs, as a tuple in the
    order of `Plan.outputs`. `make_inputs(problem, torch_device=..., seed=...)` builds the positional inputs.
    """

    name: str
    space: SearchSpace
    plan: Callable[..., Plan]
    reference: Callable[..., tuple[torch.Tensor, ...]]
    make_inputs: Callable[..., Inputs]

    def launch(self, *inputs: Any, config: Config, device: Device) -> tuple[torch.Tensor, ...]:
        """Run the kernel with a config and return its outputs."""
        return self.plan(*inputs, config=config, device=device).run()

    def meta_plan(self, problem: Problem, config: Config, device: Device) -> Plan:
        """What would be launched, on tensors without storage."""
        inputs = self.make_inputs(problem, torch_device="meta", seed=0)
        return self.plan(*inputs, config=config, device=device)

    def with_space(self, space: SearchSpace) -> KernelSpec:
        """The same kernel with another (extended) space."""
        return replace(self, space=space)

    @property
    def digest(self) -> str:
        """Hash of the plan's source and of every kernel it can reach; changes whenever a stored time may be stale."""
        return source_digest(self.plan)


def random_tensor(
    *shape: int, dtype: torch.dtype, torch_device: str, generator: torch.Generator | None, scale: float = 1.0
) -> torch.Tensor:
    """Normal random values x scale; on `meta` only the shape. The generator lives on the CPU or on the device."""
    if torch_device == "meta":
        return torch.empty(*shape, dtype=dtype, device="meta")
    values = torch.randn(*shape, generator=generator, device=torch_device, dtype=torch.float32)
    return (values * scale).to(dtype)


def make_generator(torch_device: str, seed: int) -> torch.Generator | None:
    """A seeded generator on the device; None on `meta`."""
    return None if torch_device == "meta" else torch.Generator(torch_device).manual_seed(seed)
