"""SearchSpace: a kernel's parameters and their choices, constraints with reasons, and the enumerated feasible set."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arch import Device
from .config import Config, Value
from .model.estimate import shared_bytes_estimate
from .problem import Problem, parse_signature
from .work import Work

Columns = dict[str, npt.NDArray[Any]]
Mask = npt.NDArray[np.bool_]
Choices = dict[str, tuple[Value, ...]]

MAX_RAW_CONFIGS = 4_000_000


class IllegalConfig(ValueError):
    """A config outside the space of its problem; the message holds every reason."""


class EmptySpace(ValueError):
    """No config of the space satisfies all constraints for a problem on a device."""


@dataclass(frozen=True)
class Constraint:
    """A rule over whole columns: `holds` gives True where a config is legal, `reason` says why it must hold."""

    reason: str
    holds: Callable[[Columns, Any, Device], Mask]


@dataclass(frozen=True)
class FeasibleSet:
    """Every legal config of one problem on one device, as ranks into the choices of each parameter."""

    choices: Choices
    ranks: npt.NDArray[np.int16]
    """[configs, parameters], in the order of the raw product: the first parameter varies slowest."""
    raw_count: int
    rejected: tuple[tuple[str, int], ...]
    """(reason, number of configs that break this rule); shared memory is asked only of those legal otherwise."""

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in the order of the columns of `ranks`."""
        return tuple(self.choices)

    def columns(self) -> Columns:
        """One array of values per parameter."""
        return columns_of(self.choices, self.ranks)

    def config(self, index: int) -> Config:
        """The config at a row of `ranks`."""
        return Config(
            {name: self.choices[name][rank] for name, rank in zip(self.names, self.ranks[index], strict=True)}
        )

    def __iter__(self) -> Iterator[Config]:
        return (self.config(index) for index in range(len(self)))

    def index(self, config: Config) -> int | None:
        """The row of a config, or None where it is not feasible."""
        if set(config) != set(self.choices):
            return None
        try:
            wanted = [self.choices[name].index(config[name]) for name in self.names]
        except ValueError:
            return None
        found = np.flatnonzero((self.ranks == np.array(wanted, np.int16)).all(axis=1))
        return int(found[0]) if len(found) else None

    def nearest(self, ranks: npt.ArrayLike, excluded: Mask | None = None) -> int | None:
        """The row with the smallest L1 distance on ranks, the first of equals; None when all rows are excluded."""
        distance = np.abs(self.ranks - np.asarray(ranks, np.int16)).sum(axis=1)
        if excluded is not None:
            if excluded.all():
                return None
            distance = np.where(excluded, np.iinfo(np.int64).max, distance)
        return int(distance.argmin())

    def nearest_to(self, config: Config) -> int | None:
        """The row nearest to a config of another problem: known parameters by rank, others ignored."""
        if not len(self):
            return None
        distance = np.zeros(len(self))
        for position, name in enumerate(self.names):
            if name in config:
                distance += _value_distance(self.choices[name], self.ranks[:, position], config[name])
        return int(distance.argmin())

    def neighbours(self, index: int) -> list[int]:
        """Rows that differ from a row in exactly one parameter (Hamming distance 1)."""
        differing = (self.ranks != self.ranks[index]).sum(axis=1)
        return [int(row) for row in np.flatnonzero(differing == 1)]


def _value_distance(choices: tuple[Value, ...], ranks: npt.NDArray[np.int16], value: Value) -> npt.NDArray[np.float64]:
    if isinstance(value, int) and all(isinstance(choice, int) for choice in choices):
        numbers = np.array([int(choice) for choice in choices], np.float64)
        steps = np.abs(np.log2(numbers + 1) - np.log2(value + 1))
    else:
        steps = np.array([0.0 if choice == value else 1.0 for choice in choices])
    return np.asarray(steps[ranks], np.float64)


def columns_of(choices: Choices, ranks: npt.NDArray[np.int16]) -> Columns:
    """Ranks -> one array of values per parameter."""
    return {name: np.array(values)[ranks[:, position]] for position, (name, values) in enumerate(choices.items())}


def columns_of_config(config: Config) -> Columns:
    """One config as columns of length 1."""
    return {name: np.array([value]) for name, value in config.items()}


@dataclass(frozen=True)
class SearchSpace:
    """What may be tuned of one kernel.

    `choices(problem, device)` lists the values of each parameter in ascending order; `default(problem, device)`
    is what an untuned launch uses; `work(problem)` is the least flops and bytes.
    """

    kernel: str
    problem_type: type[Problem]
    choices: Callable[[Any, Device], Choices]
    constraints: tuple[Constraint, ...]
    default: Callable[[Any, Device], Config]
    work: Callable[[Any], Work]

    def problem(self, *, dtype: str, batch: int, **dims: int) -> Problem:
        """A problem of this kernel. Raises InvalidProblem, or TypeError for unknown or missing dims."""
        return self.problem_type(kernel=self.kernel, dtype=dtype, batch=batch, **dims)

    def problem_from(self, signature: str, dtype: str, batch: int) -> Problem:
        """A problem from its database key fields."""
        return self.problem(dtype=dtype, batch=batch, **parse_signature(signature))

    def enumerate(self, problem: Problem, device: Device) -> FeasibleSet:
        """The feasible set. Raises EmptySpace, naming the rules, when nothing is legal."""
        choices = self.choices(problem, device)
        sizes = [len(values) for values in choices.values()]
        raw_count = int(np.prod(sizes))
        if raw_count > MAX_RAW_CONFIGS:
            raise EmptySpace(f"{self.kernel}: {raw_count} raw configs, at most {MAX_RAW_CONFIGS} can be enumerated")
        ranks = np.indices(sizes, np.int16).reshape(len(sizes), -1).T
        columns = columns_of(choices, ranks)
        legal = np.ones(raw_count, np.bool_)
        rejected = []
        for constraint in (*GENERAL_CONSTRAINTS, *self.constraints):
            holds = constraint.holds(columns, problem, device)
            rejected.append((constraint.reason, int(raw_count - holds.sum())))
            legal &= holds
        # The closed form of shared memory costs more than all other rules together: only where they leave a choice.
        rows = np.flatnonzero(legal)
        fits = FITS_SHARED_MEMORY.holds(columns_of(choices, ranks[rows]), problem, device)
        rejected.append((FITS_SHARED_MEMORY.reason, int(len(rows) - fits.sum())))
        legal[rows] = fits
        if not legal.any():
            raise EmptySpace(f"no config of {self.kernel} is legal for {problem} on {device.name}")
        return FeasibleSet(choices, np.ascontiguousarray(ranks[legal]), raw_count, tuple(r for r in rejected if r[1]))

    def faults(self, config: Config, problem: Problem, device: Device) -> list[str]:
        """Why a config is not in the space, one sentence a fault; empty when it is legal."""
        choices = self.choices(problem, device)
        faults = [f"{name} is no parameter of {self.kernel}" for name in config if name not in choices]
        faults += [f"{name} is missing" for name in choices if name not in config]
        faults += [
            f"{name}={config[name]} is not one of {', '.join(map(str, values))}"
            for name, values in choices.items()
            if name in config and config[name] not in values
        ]
        if faults:
            return faults
        columns = columns_of_config(config)
        rules = (*GENERAL_CONSTRAINTS, *self.constraints, FITS_SHARED_MEMORY)
        return [rule.reason for rule in rules if not rule.holds(columns, problem, device)[0]]

    def check(self, config: Config, problem: Problem, device: Device) -> None:
        """Raises IllegalConfig with every reason when the config is not in the space."""
        faults = self.faults(config, problem, device)
        if faults:
            raise IllegalConfig(f"{config} of {problem} on {device.name}: {'; '.join(faults)}")

    def default_config(self, problem: Problem, device: Device) -> Config:
        """The default, moved to the nearest legal config where the problem's sizes forbid it."""
        config = self.default(problem, device)
        if not self.faults(config, problem, device):
            return config
        feasible = self.enumerate(problem, device)
        nearest = feasible.nearest_to(config)
        assert nearest is not None
        return feasible.config(nearest)

    def extended(self, extra: Mapping[str, tuple[Value, ...]]) -> SearchSpace:
        """The same space with more values for some parameters; constraints still hold."""

        def choices(problem: Problem, device: Device) -> Choices:
            base = self.choices(problem, device)
            for name in extra:
                if name not in base:
                    raise IllegalConfig(f"{name} is no parameter of {self.kernel} on {device.name}: {', '.join(base)}")
            return {name: _union(values, extra.get(name, ())) for name, values in base.items()}

        return dataclasses.replace(self, choices=choices)

    def digest(self, names: tuple[str, ...]) -> str:
        """Hash of the kernel's name, its dims and its parameters' names: what a stored config means."""
        dims = sorted(field.name for field in dataclasses.fields(self.problem_type))
        text = "|".join((self.kernel, ",".join(dims), ",".join(sorted(names))))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _union(values: tuple[Value, ...], extra: tuple[Value, ...]) -> tuple[Value, ...]:
    merged = set(values) | set(extra)
    if all(isinstance(value, int) for value in merged):
        return tuple(sorted(merged, key=int))
    return (*values, *(value for value in extra if value not in values))


def vendor_knobs(device: Device, *, has_dot: bool, limits_registers: bool = True) -> Choices:
    """The compiler knobs of the device's vendor.

    AMD: waves_per_eu (0 = compiler decides); with a dot also matrix_instr_nonkdim (16 or 32 wide MFMA) and, where the
    backend honours it, kpack (gfx950 forces 1 with a warning: Triton backends/amd/compiler.py).
    NVIDIA: with a dot maxnreg, registers per thread (0 = ptxas decides; 128 lets two programs of 8 warps share an SM),
    unless `limits_registers` is false: accumulators of wgmma cannot be spilled, ptxas then refuses to compile (C7602).
    num_ctas is not offered: none of our kernels splits its work over a cluster, and more than one CTA per program is
    fragile in Triton 3.6 and 3.7.
    """
    if device.arch.vendor == "amd":
        knobs: Choices = {"waves_per_eu": (0, 1, 2, 4)}
        if has_dot:
            knobs["matrix_instr_nonkdim"] = (16, 32)
            if device.arch.allows_kpack:
                knobs["kpack"] = (1, 2)
        return knobs
    return {"maxnreg": (0, 128)} if has_dot and limits_registers else {}


def _is_power_of_two(values: npt.NDArray[Any]) -> Mask:
    return np.asarray((values > 0) & (values & (values - 1) == 0), np.bool_)


def _powers_of_two(columns: Columns, problem: Problem, device: Device) -> Mask:
    holds = np.ones(len(columns["num_warps"]), np.bool_)
    for name, values in columns.items():
        if name.startswith("BLOCK_") or name == "num_warps":
            holds &= _is_power_of_two(values)
    return holds


def _threads_fit(columns: Columns, problem: Problem, device: Device) -> Mask:
    return np.asarray(columns["num_warps"] * device.arch.wave_size <= device.arch.max_threads_per_program, np.bool_)


def _accumulators_fit(columns: Columns, problem: Problem, device: Device) -> Mask:
    limit = columns.get("maxnreg")
    if limit is None or "BLOCK_M" not in columns:
        return np.ones(len(columns["num_warps"]), np.bool_)
    # Two accumulator tiles (gate and up) at most; half of the registers stay for operands and addresses.
    held = 2 * columns["BLOCK_M"] * columns["BLOCK_N"] / (columns["num_warps"] * device.arch.wave_size)
    return np.asarray((limit == 0) | (held <= limit / 2), np.bool_)


def _shared_memory_fits(columns: Columns, problem: Problem, device: Device) -> Mask:
    needed = shared_bytes_estimate(problem.kernel, problem, device, columns)
    return np.asarray(needed <= device.arch.shared_limit_bytes, np.bool_)


GENERAL_CONSTRAINTS = (
    Constraint("block sizes and num_warps must be powers of two (tl.arange)", _powers_of_two),
    Constraint("num_warps x wave size must not pass the threads of one program", _threads_fit),
    Constraint("accumulators must leave half of maxnreg free (wgmma cannot spill them)", _accumulators_fit),
)
FITS_SHARED_MEMORY = Constraint("the tiles must fit the chip's shared memory (LDS)", _shared_memory_fits)
