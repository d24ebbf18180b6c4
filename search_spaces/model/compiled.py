"""Facts of the compiler as columns, and how they replace closed forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..chip import Device
from .closed_form import Array, Columns, programs_per_unit, register_limit
from .constants import ModelConstants, flop_per_clk
from .facts import CompileFacts

_MFMA = re.compile(r"v_s?mfma\w*?_[a-z0-9]+_([0-9]+)x([0-9]+)x([0-9]+)_?([a-z0-9]*)")
_MIN_MFMA_CLK = 8.0


@dataclass(frozen=True)
class Compiled:
    """One entry per config, nan where it was not compiled (or the compiler does not tell)."""

    shared_bytes: Array
    registers: Array
    spills: Array
    mma_clk: Array
    """Matrix cycles of one pass through the compiled loop, per wave."""
    valu: Array
    loads: Array
    load_bytes: Array
    lds_read_bytes: Array
    """Per lane, like `load_bytes`."""
    launches: Array


def rows_of(columns: Columns) -> int:
    """Number of configs in the columns."""
    return len(next(iter(columns.values()))) if columns else 1


def compiled_columns(facts: Sequence[CompileFacts | None] | None, rows: int, device: Device) -> Compiled:
    """Columns of the facts. Raises ValueError when there is not one entry per config."""
    known = list(facts) if facts is not None else [None] * rows
    if len(known) != rows:
        raise ValueError(f"{len(known)} compile facts for {rows} configs")

    def numbers(name: str) -> Array:
        return np.array([np.nan if each is None else float(getattr(each, name)) for each in known])

    cycles = np.array([np.nan if each is None or not each.mfma else mfma_clk(each, device) for each in known])
    return Compiled(
        numbers("shared_bytes"), numbers("registers"), numbers("spills"), cycles, numbers("valu"),
        numbers("global_loads"), numbers("global_load_bytes"), numbers("lds_read_bytes"), numbers("launches"),
    )  # fmt: skip


def mfma_clk(facts: CompileFacts, device: Device) -> float:
    """Cycles of the loop's matrix instructions on one SIMD, from their shapes: `v_mfma_f32_16x16x16_bf16` takes 16."""
    total = 0.0
    for mnemonic, count in facts.mfma:
        if shape := _MFMA.match(mnemonic):
            flops = 2.0 * int(shape[1]) * int(shape[2]) * int(shape[3])
            total += count * max(flops / (flop_per_clk(device, _dtype_of(shape[4])) / 4), _MIN_MFMA_CLK)
    return total


def _dtype_of(suffix: str) -> str:
    for prefix, dtype in (
        ("bf16", "bf16"),
        ("f16", "fp16"),
        ("fp8", "fp8"),
        ("bf8", "fp8"),
        ("f8", "fp8"),
        ("xf32", "tf32"),
    ):
        if suffix.startswith(prefix):
            return dtype
    return "fp32"


def known_or(fact: Array, estimate: Array) -> Array:
    """The fact where there is one."""
    return np.where(np.isnan(fact), estimate, fact)


@dataclass(frozen=True)
class Residency:
    """Programs one unit holds (0: cannot launch) and registers that spill, with facts where there are any."""

    programs: Array
    spills: Array


def residency(
    compiled: Compiled,
    registers: Array,
    shared: Array,
    warps: Array,
    device: Device,
    constants: ModelConstants,
) -> Residency:
    """What fits on one compute unit. Estimated registers beyond the limit of a thread are taken as spilled."""
    limit = register_limit(warps, device.arch)
    spills = known_or(compiled.spills, np.maximum(registers - limit, 0.0))
    held = known_or(compiled.registers, np.minimum(registers, limit))
    needed = known_or(compiled.shared_bytes, shared)
    programs = programs_per_unit(held, needed, warps, constants.max_programs, device.arch)
    return Residency(programs, spills)
