"""Ahead-of-time compilation: a planned launch becomes a content-keyed unit that Triton compiles for an absent GPU.

A unit is specialised as Triton's JIT would specialise the launch, otherwise another kernel than the one that will run
is compiled: divisibility by 16 of pointers and integers, integers equal to 1 as constants, and on AMD
`tt.pointer_range = 32` for tensors of at most 2^31 - 1 bytes, which turns global loads into buffer loads
(Triton backends/amd/compiler.py, get_tensor_specialization).
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from ..kernels_triton.digest import source_digest
from ..kernels_triton.launch import Launch, Plan
from ..search_spaces.arch import Device

_POINTER_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*u1",
}
_MAX_INT32 = 2**31 - 1
_HIP_ONLY = ("waves_per_eu", "matrix_instr_nonkdim", "kpack")

Attributes = tuple[tuple[int, tuple[tuple[str, int], ...]], ...]


@dataclass(frozen=True)
class CompileUnit:
    """One binary: a jitted function, its specialised signature, constants, attributes, options and target."""

    fn: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    attributes: Attributes
    options: tuple[tuple[str, int], ...]
    device: Device

    @property
    def key(self) -> bytes:
        """16 bytes over everything that decides the binary, Triton's version included."""
        parts = (
            self.fn.__name__, source_digest(self.fn), self.signature, self.constants, self.attributes,
            self.options, self.device.arch.name, triton.__version__,
        )  # fmt: skip
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


@cache
def _parameters(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _unspecialised(fn: Any) -> frozenset[str]:
    """The arguments the JIT must not specialise, from a compiled or an interpreted function."""
    named = getattr(fn, "do_not_specialize", None)
    if named is None:
        named = getattr(fn, "kwargs", {}).get("do_not_specialize")
    names = _parameters(fn.fn)
    return frozenset(names[item] if isinstance(item, int) else item for item in named or ())


def unit_of(launch: Launch, device: Device) -> CompileUnit:
    """The unit of one launch on a device."""
    signature: list[tuple[str, str]] = []
    constants: list[tuple[str, Any]] = []
    attributes: list[tuple[int, tuple[tuple[str, int], ...]]] = []
    unspecialised = _unspecialised(launch.fn)
    is_hip = device.arch.triton_backend == "hip"
    for position, name in enumerate(_parameters(launch.fn.fn)):
        value = launch.constexprs[name] if name in launch.constexprs else launch.args[name]
        if name in launch.constexprs or value is None:
            signature.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, torch.Tensor):
            signature.append((name, _POINTER_TYPES[value.dtype]))
            facts: list[tuple[str, int]] = []
            if value.storage_offset() * value.element_size() % 16 == 0:
                facts.append(("tt.divisibility", 16))
            if is_hip and value.untyped_storage().size() <= _MAX_INT32:
                facts.append(("tt.pointer_range", 32))
            if facts:
                attributes.append((position, tuple(facts)))
        elif isinstance(value, bool):  # before the integers, of which Python makes it one
            signature.append((name, "u1"))
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        elif isinstance(value, str):
            raise TypeError(f"{name}={value!r} of {launch.fn.__name__} is text, which only a constexpr can be")
        elif value == 1 and name not in unspecialised:
            signature.append((name, "constexpr"))
            constants.append((name, 1))
        else:
            signature.append((name, "i32" if -(2**31) <= value <= _MAX_INT32 else "i64"))
            if value % 16 == 0 and name not in unspecialised:
                attributes.append((position, (("tt.divisibility", 16),)))
    options = {k: v for k, v in launch.options.items() if is_hip or k not in _HIP_ONLY}
    return CompileUnit(
        launch.fn,
        tuple(signature),
        tuple(constants),
        tuple(attributes),
        tuple(sorted(options.items())),
        device,
    )


def units_of(plan: Plan, device: Device) -> tuple[CompileUnit, ...]:
    """The units of a plan, in launch order."""
    return tuple(unit_of(launch, device) for launch in plan.launches)


def target_of(device: Device) -> GPUTarget:
    """Triton's name for the device's arch."""
    arch = device.arch
    return GPUTarget(arch.triton_backend, arch.triton_target, arch.wave_size)


def compile_unit(unit: CompileUnit) -> Any:
    """Triton's compiled kernel (`.asm`, `.metadata`). Raises what Triton's compiler raises.

    Needs real jitted functions: a process in which Triton's interpreter is on cannot compile.
    """
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=unit.fn,
        signature=dict(unit.signature),
        constexprs=dict(unit.constants),
        attrs=_as_the_jit_writes(unit),
    )
    return triton.compile(source, target=target_of(unit.device), options=dict(unit.options))


def _as_the_jit_writes(unit: CompileUnit) -> dict[tuple[int], list[list[Any]]]:
    """The attributes in the very form of Triton's JIT, whose text is part of the key of Triton's cache.

    An argument that could be specialised and is not, a constant included, has an empty list; one that never is (a
    float, a truth value, an argument of `do_not_specialize`) has none (Triton runtime/jit.py, JITFunction._pack_args).
    Without the empty lists the binary is the same, but a launch does not find it.
    """
    facts = dict(unit.attributes)
    never = _unspecialised(unit.fn)
    return {
        (position,): [list(fact) for fact in facts.get(position, ())]
        for position, (name, kind) in enumerate(unit.signature)
        if kind == "constexpr" or position in facts or (kind not in ("fp32", "u1") and name not in never)
    }
