"""Facts of the compiler as columns, and how they replace closed forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..chip import Device
from .closed_form import Array, Columns, Mask, column, programs_per_unit, register_limit, rows_of
from .constants import ModelConstants, constants_of, flop_per_clk
from .facts import CompileFacts

_MFMA = re.compile(r"v_s?mfma\w*?_[a-z0-9]+_([0-9]+)x([0-9]+)x([0-9]+)_?([a-z0-9]*)")
_MFMA_DTYPES = {"bf16": "bf16", "f16": "fp16", "fp8": "fp8", "bf8": "fp8", "f8": "fp8", "xf32": "tf32"}
_MIN_MFMA_CLK = 8.0


@dataclass(frozen=True)
class Compiled:
    """One entry per config, nan where it was not compiled (or the compiler does not tell)."""

    shared_bytes: Array
    registers: Array
    spills: Array
    """Registers that live in memory. Scalar registers spilled to lanes of a vector register cost next to nothing."""
    mma_clk: Array
    """Matrix cycles of one pass through the compiled loop, per wave."""
    valu: Array
    loads: Array
    lds_read_bytes: Array
    """Per lane."""


@dataclass(frozen=True)
class Candidates:
    """The configs to estimate, as columns, with what the compiler said of them and the device they are for."""

    columns: Columns
    compiled: Compiled
    device: Device
    constants: ModelConstants

    def column(self, name: str, neutral: float) -> Array:
        """A parameter as floats, its neutral value where the space does not have it."""
        return column(self.columns, name, neutral)

    @property
    def warps(self) -> Array:
        return self.column("num_warps", 4)

    @property
    def stages(self) -> Array:
        """Pipeline stages; Triton's default where the space leaves them out."""
        return self.column("num_stages", 2.0 if self.device.arch.is_amd else 3.0)

    @property
    def rows(self) -> int:
        return rows_of(self.columns)

    def register_limit(self) -> Array:
        """Registers a thread may use: what its program leaves it, or less where the config asks for occupancy.

        AMD's `waves_per_eu` makes the compiler fit that many waves on a SIMD, NVIDIA's `maxnreg` is a limit itself.
        """
        arch = self.device.arch
        waves = np.maximum(self.column("waves_per_eu", 0), 1)
        asked = self.column("maxnreg", 0)
        limit = np.minimum(register_limit(self.warps, arch), np.floor(arch.registers_per_lane / waves / 8) * 8)
        return np.asarray(np.where(asked > 0, np.minimum(limit, asked), limit), np.float64)

    def loads_whole_vectors(self) -> Mask:
        """Whether a lane holds 16 bytes of a dot operand along K, so that they can be loaded into place (AMD)."""
        arch = self.device.arch
        return np.asarray(arch.is_amd & ((self.column("kpack", 1) > 1) | (not arch.allows_kpack)), np.bool_)


def candidates(columns: Columns, device: Device, facts: Sequence[CompileFacts | None] | None = None) -> Candidates:
    """The columns with their facts. Raises ValueError when there is not one fact (or None) per config."""
    compiled = compiled_columns(facts, rows_of(columns), device)
    return Candidates(columns, compiled, device, constants_of(device))


def compiled_columns(facts: Sequence[CompileFacts | None] | None, rows: int, device: Device) -> Compiled:
    """Columns of the facts. Raises ValueError when there is not one entry per config."""
    known = list(facts) if facts is not None else [None] * rows
    if len(known) != rows:
        raise ValueError(f"{len(known)} compile facts for {rows} configs")

    def numbers(name: str) -> Array:
        return np.array([np.nan if each is None else float(getattr(each, name)) for each in known])

    cycles = np.array([0.0 if each is None else mfma_clk(each, device) for each in known])
    return Compiled(
        shared_bytes=numbers("shared_bytes"), registers=numbers("registers"), spills=numbers("scratch_bytes") / 4,
        mma_clk=np.where(cycles > 0, cycles, np.nan), valu=numbers("valu"), loads=numbers("global_loads"),
        lds_read_bytes=numbers("lds_read_bytes"),
    )  # fmt: skip


def mfma_clk(facts: CompileFacts, device: Device) -> float:
    """Cycles of the loop's matrix instructions on one SIMD: a `v_mfma_f32_16x16x16_bf16` takes 16.

    0 for NVIDIA's mnemonics: PTX counts are taken before ptxas and do not describe what a warp issues.
    """
    total = 0.0
    for mnemonic, count in facts.mfma:
        if shape := _MFMA.match(mnemonic):
            flops = 2.0 * int(shape[1]) * int(shape[2]) * int(shape[3])
            total += count * max(flops / (flop_per_clk(device, _dtype_of(shape[4])) / 4), _MIN_MFMA_CLK)
    return total


def _dtype_of(suffix: str) -> str:
    return next((dtype for prefix, dtype in _MFMA_DTYPES.items() if suffix.startswith(prefix)), "fp32")


def known_or(fact: Array, estimate: Array) -> Array:
    """The fact where there is one."""
    return np.where(np.isnan(fact), estimate, fact)


@dataclass(frozen=True)
class LoopCounts:
    """One iteration as a wave executes it: matrix cycles, vector and load instructions; LDS bytes of the program."""

    mma_clk: Array
    valu: Array
    loads: Array
    lds_bytes: Array


def counted(estimate: LoopCounts, warps: Array, case: Candidates) -> LoopCounts:
    """The estimate, replaced by the compiled loop's counts where it has matrix instructions.

    The compiled loop may hold several iterations (unrolled), which its matrix work tells.
    """
    compiled = case.compiled
    has_counts = ~np.isnan(compiled.mma_clk)
    ratio = np.where(has_counts, compiled.mma_clk, 0.0) / np.maximum(estimate.mma_clk, 1e-9)
    passes = np.maximum(np.round(ratio), 1.0)
    lds = compiled.lds_read_bytes * case.device.arch.wave_size * warps
    return LoopCounts(
        np.where(has_counts, compiled.mma_clk / passes, estimate.mma_clk),
        np.where(has_counts, compiled.valu / passes, estimate.valu),
        np.where(has_counts, compiled.loads / passes, estimate.loads),
        np.where(has_counts, lds / passes, estimate.lds_bytes),
    )


@dataclass(frozen=True)
class Residency:
    """Programs one unit holds (0: cannot launch) and registers that spill, with facts where there are any."""

    programs: Array
    spills: Array


def residency(case: Candidates, registers: Array, shared: Array, warps: Array) -> Residency:
    """What fits on one compute unit; estimated registers beyond a thread's limit are taken as spilled."""
    limit = case.register_limit()
    spills = known_or(case.compiled.spills, np.maximum(registers - limit, 0.0))
    held = known_or(case.compiled.registers, np.minimum(registers, limit))
    needed = known_or(case.compiled.shared_bytes, shared)
    programs = programs_per_unit(held, needed, warps, case.constants.max_programs, case.device.arch)
    return Residency(programs, spills)
