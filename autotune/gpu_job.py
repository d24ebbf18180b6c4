"""The jobs of a GPU worker: check and time configs of one problem after the other on the device of this process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..kernels_triton.gpu import arch_text_of
from ..kernels_triton.launch import Plan
from ..search_spaces.arch import device_named
from ..search_spaces.config import Config
from ..search_spaces.model.facts import merged
from .adapters.registry import spec_of
from .aot import compile_unit, units_of
from .isa import facts_of
from .measure import Clock, GraphClock, cache_plan, sample, sample_interleaved
from .verify import fault_of, poison

MAX_ERROR_CHARS = 500


class GpuSession:
    """Holds the inputs and the reference of the current problem, so that each config pays only for itself."""

    def __init__(self, device_name: str, torch_device: str = "cuda", clock: Clock | None = None) -> None:
        self._device = device_named(device_name)
        self._torch_device = torch_device
        self._clock = clock or GraphClock()
        self._loaded: tuple[str, str, int, str] | None = None

    def answer(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """One reply: {"samples", "facts", "policy"}, {"rounds"}, or {"error", "state"}; nothing is raised.

        A GPU fault that leaves the context unusable is marked `"is_fatal": true`: the worker has to be replaced.
        """
        try:
            self._load(job)
            if job["op"] == "finalists":
                contenders = [self._calls(Config.from_json(text)) for text in job["configs"]]
                return {"rounds": sample_interleaved(self._clock, contenders, rounds=job["samples"])}
            return self._measured(Config.from_json(job["config"]), job)
        except Exception as error:  # compiler, driver and allocator errors have no common base class
            return _failure(error)

    def _load(self, job: Mapping[str, Any]) -> None:
        wanted = (job["kernel"], job["signature"], job["batch"], job["dtype"])
        if self._loaded == wanted:
            return
        self._loaded = None
        self._copies: list[Any] = []
        self._expected: tuple[torch.Tensor, ...] = ()
        if self._torch_device == "cuda":
            torch.cuda.empty_cache()
        self._spec = spec_of(job["kernel"])
        problem = self._spec.space.problem_from(job["signature"], job["dtype"], job["batch"])
        make = functools.partial(self._spec.make_inputs, problem, torch_device=self._torch_device)
        first = make(seed=0)
        size = sum(value.untyped_storage().nbytes() for value in first if isinstance(value, torch.Tensor))
        self._cache = cache_plan(self._spec.space.work(problem).bytes, size, self._device.last_level_bytes)
        self._copies = [first, *(make(seed=seed) for seed in range(1, self._cache.copies))]
        self._expected = self._spec.reference(*first)
        self._dtype = job["dtype"]
        self._loaded = wanted

    def _plan(self, inputs: Sequence[Any], config: Config) -> Plan:
        return self._spec.plan(*inputs, config=config, device=self._device)

    def _calls(self, config: Config) -> list[Callable[[], object]]:
        return [self._plan(inputs, config).run for inputs in self._copies]

    def _measured(self, config: Config, job: Mapping[str, Any]) -> dict[str, Any]:
        fault = self._fault(config)
        if fault:
            return {"error": fault, "state": "wrong"}
        plan = self._plan(self._copies[0], config)
        facts = None
        if self._torch_device == "cuda" and plan.launches:  # of somebody else's call nothing is known beforehand
            kernels = [compile_unit(unit) for unit in units_of(plan, self._device)]
            facts = merged([facts_of(kernel, self._device) for kernel in kernels]).json()
        times = sample(self._clock, self._calls(config), samples=job["samples"], give_up_us=job.get("give_up_us"))
        return {"samples": times, "facts": facts, "policy": self._cache.policy}

    def _fault(self, config: Config) -> str:
        """Run one plan twice, as a graph will (what it leaves in its workspaces must not matter), and compare."""
        inputs = tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in self._copies[0])
        plan = self._plan(inputs, config)
        for _ in range(2):
            poison(plan, inputs)
            outputs = plan.run()
        return fault_of(outputs, self._expected, self._dtype)


def _failure(error: Exception) -> dict[str, Any]:
    name = type(error).__name__
    text = " ".join(f"{name}: {error}".split())[:MAX_ERROR_CHARS]
    if name == "OutOfResources":
        return {"error": text, "state": "over_limit"}
    is_fault = isinstance(error, (torch.cuda.OutOfMemoryError, torch.AcceleratorError)) or "CUDA error" in text
    if is_fault or "HIP error" in text:
        return {"error": text, "state": "crash", "is_fatal": not isinstance(error, torch.cuda.OutOfMemoryError)}
    return {"error": text, "state": "compile_error"}


def describe_gpu() -> dict[str, str]:
    """What the database records of this GPU and its software."""
    import triton

    from .environment import toolkit, triton_source_key

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "arch_raw": arch_text_of(properties),
        "driver": _driver_version(),
        "toolkit": toolkit(),
        "triton": triton.__version__,
        "triton_key": triton_source_key(),
        "torch": torch.__version__,
    }


def _driver_version() -> str:
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if torch.version.hip:
        command = ["cat", "/sys/module/amdgpu/version"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found[0] if found else ""
