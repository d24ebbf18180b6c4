"""Compile units: what decides a binary is in its key, and arguments are specialised as Triton's JIT does it."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from paiton.autotune import aot
from paiton.autotune.aot import target_of, unit_of, units_of
from paiton.kernels_triton.launch import Launch
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.presets import PRESETS
from paiton.search_spaces.registry import KERNEL_NAMES
from paiton.search_spaces.workload import problems

DEVICES = [resolve("gfx942"), resolve("sm_90")]


@triton.jit(do_not_specialize=["free"])
def _kernel(x_ptr, n, free, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), n + free)


@triton.jit(do_not_specialize=[2])
def _kernel_by_position(x_ptr, n, free, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), n + free)


def _launch(
    x: Any, n: Any = 3, free: Any = 5, block: int = 64, fn: Any = _kernel, options: dict[str, int] | None = None
) -> Launch:
    return Launch(fn, (1,), {"x_ptr": x, "n": n, "free": free}, {"BLOCK": block}, options or {"num_warps": 4})


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _triton_says(device: Device, value: Any, *, specialize: bool = True) -> tuple[str, Any]:
    jit = pytest.importorskip("triton.runtime.jit")
    if not hasattr(jit, "native_specialize_impl"):
        pytest.skip(f"Triton {triton.__version__} has no native_specialize_impl to compare with")
    name = "amd" if device.arch.triton_backend == "hip" else "nvidia"
    backend = triton.backends.backends[name].compiler
    found = jit.native_specialize_impl(backend, value, False, specialize, True)
    return found[0], found[1]


def _we_say(device: Device, value: Any, *, specialize: bool = True) -> tuple[str, Any]:
    """Our unit in Triton's words: type and either the constant or the letters of the attributes."""
    launch = _launch(value) if isinstance(value, torch.Tensor) else _launch(_meta(64), value, value)
    name = "x_ptr" if isinstance(value, torch.Tensor) else "n" if specialize else "free"
    position = {"x_ptr": 0, "n": 1, "free": 2}[name]
    unit = unit_of(launch, device)
    kind = dict(unit.signature)[name]
    if kind == "constexpr":
        return kind, dict(unit.constants)[name]
    letters = {"tt.divisibility": "D", "tt.pointer_range": "S"}
    return kind, "".join(letters[fact] for fact, _ in dict(unit.attributes).get(position, ()))


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("specialize", [True, False])
@pytest.mark.parametrize(
    "value", [0, 1, 2, 15, 16, 17, 2048, -16, -1, 2**31 - 1, 2**31, -(2**31), 2**40, 1.0, 0.0, None, True, False]
)
def test_scalars_as_triton_specialises_them(device: Device, value: Any, specialize: bool) -> None:
    kind, detail = _triton_says(device, value, specialize=specialize)
    assert _we_say(device, value, specialize=specialize) == (kind, detail if kind == "constexpr" else detail or "")


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("dtype", list(aot._POINTER_TYPES))
def test_pointers_as_triton_specialises_them(device: Device, dtype: torch.dtype) -> None:
    memory = torch.zeros(256, dtype=torch.uint8)
    offset = -memory.data_ptr() % 16
    aligned = memory[offset : offset + 64].view(dtype)
    assert _we_say(device, _meta(64, dtype=dtype)) == _triton_says(device, aligned)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("offset", [0, 1, 4, 8, 16])
def test_alignment_follows_the_offset_in_the_storage(device: Device, offset: int) -> None:
    """Allocators align storages to 256 bytes or more, so the offset decides; meta tensors have no address."""
    real = torch.empty(64 + 64, dtype=torch.bfloat16)
    if real.data_ptr() % 16:
        pytest.skip("this allocator does not align to 16 bytes")
    assert _we_say(device, _meta(128)[offset:]) == _triton_says(device, real[offset:])


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("count", [2**30 - 8, 2**30 - 1, 2**30, 2**31])
def test_pointer_range_at_two_gib(device: Device, count: int) -> None:
    """Of the whole storage, not of the view: AMD's backend asks `untyped_storage().size()`."""
    large = _meta(count)
    for tensor in (large, large[: 2**10]):
        assert _we_say(device, tensor) == _triton_says(device, tensor)
    is_small = 2 * count <= 2**31 - 1
    assert ("S" in _we_say(device, large)[1]) == (is_small and device.arch.is_amd)


def test_text_is_refused_as_a_runtime_argument(device: Device) -> None:
    with pytest.raises(TypeError, match="n='word' of _kernel is text, which only a constexpr can be"):
        unit_of(_launch(_meta(64), n="word"), device)


def test_do_not_specialize_by_position(device: Device) -> None:
    assert dict(unit_of(_launch(_meta(64), 1, 1, fn=_kernel_by_position), device).signature)["free"] == "i32"


def test_what_decides_the_binary_is_in_the_key(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    base = _launch(_meta(64))
    variants = {
        "base": base,
        "constexpr": _launch(_meta(64), block=128),
        "option": _launch(_meta(64), options={"num_warps": 8}),
        "AMD option": _launch(_meta(64), options={"num_warps": 4, "waves_per_eu": 2}),
        "dtype": _launch(_meta(64, dtype=torch.float16)),
        "alignment": _launch(_meta(72)[1:]),
        "integer 16": _launch(_meta(64), n=16),
        "integer 1": _launch(_meta(64), n=1),
        "wide integer": _launch(_meta(64), n=2**31),
        "wide free": _launch(_meta(64), free=2**31),
        "no tensor": _launch(None),
        "other source": _launch(_meta(64), fn=_kernel_by_position),
    }
    keys = {name: unit_of(launch, device).key for name, launch in variants.items()}
    keys |= {f"on {arch}": unit_of(base, resolve(arch)).key for arch in ("gfx950", "gfx90a", "sm_90", "sm_100")}
    monkeypatch.setattr(triton, "__version__", "99.0")
    keys["Triton"] = unit_of(base, device).key
    same = [pair for pair in itertools.combinations(keys, 2) if keys[pair[0]] == keys[pair[1]]]
    assert same == [] and all(len(key) == 16 for key in keys.values())


def test_what_does_not_decide_the_binary_is_not_in_the_key(device: Device) -> None:
    base = unit_of(_launch(_meta(64)), device).key
    assert unit_of(_launch(_meta(1024)), device).key == base
    assert unit_of(_launch(_meta(64), n=7), device).key == base, "3 and 7 are specialised alike"
    for free in (1, 16, 1000):
        assert unit_of(_launch(_meta(64), free=free), device).key == base
    assert unit_of(dataclasses.replace(_launch(_meta(64)), grid=(99,)), device).key == base
    assert unit_of(_launch(_meta(64)), resolve("MI325X")).key == base, "one binary for all products of an arch"


def test_options_of_the_other_vendor_are_left_out() -> None:
    options = {"num_warps": 4, "num_stages": 2, "waves_per_eu": 1, "kpack": 2, "matrix_instr_nonkdim": 16}
    amd, nvidia = (dict(unit_of(_launch(_meta(64), options=options), device).options) for device in DEVICES)
    assert amd == options and nvidia == {"num_warps": 4, "num_stages": 2}


def test_targets() -> None:
    targets = {name: target_of(resolve(name)) for name in ("gfx942", "gfx950", "sm_90", "sm_100")}
    assert {name: (each.backend, each.arch, each.warp_size) for name, each in targets.items()} == {
        "gfx942": ("hip", "gfx942", 64),
        "gfx950": ("hip", "gfx950", 64),
        "sm_90": ("cuda", 90, 32),
        "sm_100": ("cuda", 100, 32),
    }


def _problems_of(kernel: str) -> list[Any]:
    """Problems of one shape at three batches, of the first built-in model that uses the kernel."""
    lengths = kernel in ("attention_prefill", "moe_grouped")
    batches = {"batch_sizes": (), "prefill_lengths": (512, 1024)} if lengths else {"batch_sizes": (2, 3, 64)}
    for model in PRESETS:
        used = {item.problem.kernel for item in problems(model)}
        if kernel in used:
            found = [item.problem for item in problems(model, **{"prefill_lengths": (), **batches}, kernels=(kernel,))]
            return [problem for problem in found if problem.signature == found[0].signature]
    raise AssertionError(f"no built-in model uses {kernel}")


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_one_binary_serves_every_batch(kernel: str, device: Device) -> None:
    spec = spec_of(kernel)
    first, *others = _problems_of(kernel)
    assert others
    config = spec.space.default_config(first, device)
    units = units_of(spec.meta_plan(first, config, device), device)
    assert units
    for other in others:
        keys = [unit.key for unit in units_of(spec.meta_plan(other, config, device), device)]
        assert keys == [unit.key for unit in units], f"batch {other.batch} compiles again"


def test_configs_of_a_real_kernel_have_keys_of_their_own(linear: Any, device: Device) -> None:
    spec, problem = spec_of("linear"), linear(2)
    feasible = spec.space.enumerate(problem, device)
    keys: dict[tuple[bytes, ...], Config] = {}
    for row in range(0, len(feasible), 23):
        config = feasible.config(row)
        key = tuple(unit.key for unit in units_of(spec.meta_plan(problem, config, device), device))
        assert key not in keys, f"{config} and {keys[key]}"
        keys[key] = config
