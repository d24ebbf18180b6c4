"""Mixture-of-experts problems, and the search spaces of the two decode kernels, moe_gate_up and moe_down.

Both kernels have a GEMV form, FMA on the vector units with one program per pair ("pair") or token ("token") and block
of outputs, and a tile form ("expert"), matrix units on the rows of one expert. What has no effect in a form is pinned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from .arch import Device
from .config import Config, Value
from .problem import InvalidProblem, Problem
from .space import Choices, Columns, Constraint, Mask, SearchSpace, vendor_knobs
from .work import Work

MIN_DOT = 16
"""Smallest M, N and K of a tl.dot on every target."""
MAX_UNROLLED_STEPS = 32
MAX_WEIGHT_RE_READS = 4.0
MAX_ACCUMULATORS_PER_THREAD = 128
MAX_UNROLLED_LOADS = 96
MAX_STEP_BYTES_PER_THREAD = 256
MAX_ELEMENTS = 1 << 20
"""Triton's limit on the elements of one tensor."""
ID_BYTES = 8
"""Of one expert id: Hugging Face routes with int64."""


@dataclass(frozen=True, kw_only=True)
class MoeProblem(Problem):
    """`batch` tokens, each to `top_k` of `experts` experts of size hidden -> inter -> hidden (SwiGLU)."""

    experts: int
    top_k: int
    hidden: int
    inter: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.top_k <= self.experts:
            raise InvalidProblem(f"top_k={self.top_k} is outside 1..experts={self.experts}")

    @property
    def pairs(self) -> int:
        """(token, expert) pairs, the rows of work."""
        return self.batch * self.top_k

    @property
    def distinct_experts(self) -> float:
        """Expected number of experts with a row under independent uniform routing: E (1 - (1 - k/E)^B)."""
        return float(self.experts * (1 - (1 - self.top_k / self.experts) ** self.batch))


def gate_up_work(problem: MoeProblem) -> Work:
    """[pairs, hidden] x [2 inter, hidden]^T; each touched expert's weights once, x, ids and h once."""
    weights = problem.distinct_experts * 2 * problem.inter * problem.hidden
    activations = problem.batch * problem.hidden + problem.pairs * problem.inter
    flops = 2.0 * problem.pairs * 2 * problem.inter * problem.hidden
    return Work(flops, (weights + activations) * problem.itemsize + ID_BYTES * problem.pairs)


def down_work(problem: MoeProblem) -> Work:
    """[pairs, inter] x [hidden, inter]^T; each touched expert's weights, h, residual, out, ids and weights once."""
    weights = problem.distinct_experts * problem.hidden * problem.inter
    activations = problem.pairs * problem.inter + 2 * problem.batch * problem.hidden
    flops = 2.0 * problem.pairs * problem.hidden * problem.inter
    return Work(flops, (weights + activations + problem.pairs) * problem.itemsize + ID_BYTES * problem.pairs)


@dataclass(frozen=True)
class _Shape:
    """One kernel as both forms see it: `matrices` weights of [rows, depth] read by a row of one expert."""

    rows: int
    depth: int
    matrices: int
    gemv_experts: int
    """Experts that one program of the GEMV form goes through."""


_ShapeOf = Callable[[MoeProblem], _Shape]


def _gate_up_shape(problem: MoeProblem) -> _Shape:
    return _Shape(rows=problem.inter, depth=problem.hidden, matrices=2, gemv_experts=1)


def _down_shape(problem: MoeProblem) -> _Shape:
    return _Shape(rows=problem.hidden, depth=problem.inter, matrices=1, gemv_experts=problem.top_k)


def _power_above(size: float) -> int:
    """The smallest power of two >= size."""
    return 1 << max(0, int(np.ceil(np.log2(size))))


def _rows_per_expert(problem: MoeProblem) -> float:
    """Expected rows of an expert that has any; also how often the GEMV forms read a weight."""
    return problem.pairs / problem.distinct_experts


def _choices(gemv_form: str, problem: MoeProblem, device: Device) -> Choices:
    # 1.5 times the mean, rounded up, covers most experts under uniform routing; more rows take further programs.
    largest_m = min(_power_above(1.5 * _rows_per_expert(problem)), _power_above(problem.batch))
    result: Choices = {
        "FORM": (gemv_form, "expert"),
        "BLOCK_M": tuple(size for size in (16, 32, 64) if size <= max(MIN_DOT, largest_m)),
        "BLOCK_N": (4, 8, 16, 32, 64, 128),
        "BLOCK_K": (64, 128, 256, 512, 1024, 2048),
        "SWAP": (0, 1),
        "ORDER": ("cols", "rows"),
        "num_warps": (1, 2, 4, 8),
        "num_stages": (1, 2) if device.arch.is_amd else (1, 2, 3, 4),
    }
    if device.xcds > 1:
        result["XCD_REMAP"] = (0, 1)
    return {**result, **vendor_knobs(device, has_dot=True)}


def _is_tile(columns: Columns) -> Mask:
    return np.asarray(columns["FORM"] == "expert", np.bool_)


def _threads(columns: Columns, device: Device) -> npt.NDArray[np.int64]:
    return np.asarray(columns["num_warps"] * device.arch.wave_size, np.int64)


def _pinned(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    neutral = {"BLOCK_M": MIN_DOT, "SWAP": 0, "num_stages": 1, "matrix_instr_nonkdim": 16, "kpack": 1}
    pinned = [columns[name] == value for name, value in neutral.items() if name in columns]
    return np.asarray(_is_tile(columns) | np.logical_and.reduce(pinned), np.bool_)


def _wide_loads(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    elements = 16 // problem.itemsize * _threads(columns, device)
    return np.asarray(columns["BLOCK_N"] * columns["BLOCK_K"] >= elements, np.bool_)


def _gemv_blocks(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    return _is_tile(columns) | (columns["BLOCK_N"] <= 16)


def _tile_blocks(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    fits = (columns["BLOCK_N"] >= MIN_DOT) & (columns["BLOCK_K"] >= MIN_DOT) & (columns["BLOCK_M"] >= MIN_DOT)
    return ~_is_tile(columns) | fits


def _tile_depth(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    return ~_is_tile(columns) | (columns["BLOCK_K"] <= 256)


def _wide_instruction(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    width = columns.get("matrix_instr_nonkdim", np.full(len(columns["FORM"]), MIN_DOT))
    return ~_is_tile(columns) | ((columns["BLOCK_M"] >= width) & (columns["BLOCK_N"] >= width))


def _busy_warps(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    outputs = columns["BLOCK_M"] * columns["BLOCK_N"]
    # One matrix instruction makes 16 x 16 or 32 x 32 outputs on CDNA, 16 x 8 on NVIDIA.
    each = columns["matrix_instr_nonkdim"] ** 2 if "matrix_instr_nonkdim" in columns else 128
    return ~_is_tile(columns) | (2 * outputs >= each * columns["num_warps"])


def _stages(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    if device.arch.is_amd:
        return np.ones(len(columns["FORM"]), np.bool_)
    return ~_is_tile(columns) | (columns["num_stages"] >= 2)


def _re_reads(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    return _is_tile(columns) | (_rows_per_expert(problem) <= MAX_WEIGHT_RE_READS)


def _few_elements(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    return np.asarray(columns["BLOCK_N"] * columns["BLOCK_K"] <= MAX_ELEMENTS, np.bool_)


def _rows_needed(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    return np.asarray(columns["BLOCK_M"] <= max(MIN_DOT, _power_above(problem.batch)), np.bool_)


def _constraints(shape_of: _ShapeOf) -> tuple[Constraint, ...]:
    def no_wider_than_weights(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
        shape = shape_of(problem)
        return np.asarray(
            (columns["BLOCK_N"] <= max(MIN_DOT, _power_above(shape.rows)))
            & (columns["BLOCK_K"] <= max(64, _power_above(shape.depth))),
            np.bool_,
        )

    def few_steps(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
        shape = shape_of(problem)
        steps = shape.gemv_experts * -(-shape.depth // columns["BLOCK_K"])
        return _is_tile(columns) | (steps <= max(MAX_UNROLLED_STEPS, shape.gemv_experts))

    def few_loads(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
        shape = shape_of(problem)
        padded_depth = -(-shape.depth // columns["BLOCK_K"]) * columns["BLOCK_K"]
        weights = shape.gemv_experts * shape.matrices * columns["BLOCK_N"] * padded_depth
        loads = weights * problem.itemsize / 16 / _threads(columns, device)
        return np.asarray(_is_tile(columns) | (loads <= MAX_UNROLLED_LOADS), np.bool_)

    def small_accumulators(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
        matrices = shape_of(problem).matrices
        width = np.where(_is_tile(columns), columns["BLOCK_M"], columns["BLOCK_K"])
        registers = matrices * columns["BLOCK_N"] * width / _threads(columns, device)
        return np.asarray(registers <= MAX_ACCUMULATORS_PER_THREAD, np.bool_)

    def short_steps(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
        tile_bytes = shape_of(problem).matrices * columns["BLOCK_N"] * columns["BLOCK_K"] * problem.itemsize
        return ~_is_tile(columns) | (tile_bytes <= MAX_STEP_BYTES_PER_THREAD * _threads(columns, device))

    return (
        Constraint(
            "BLOCK_M, SWAP, num_stages, matrix_instr_nonkdim and kpack have no effect without tl.dot: pinned", _pinned
        ),
        Constraint("a weight tile must give every thread a load of 16 bytes", _wide_loads),
        Constraint("the GEMV form takes at most 16 rows of weights (registers)", _gemv_blocks),
        Constraint(f"tl.dot needs blocks of at least {MIN_DOT}", _tile_blocks),
        Constraint("the expert form steps at most 256 deep (shared memory)", _tile_depth),
        Constraint("blocks must hold the matrix instruction, matrix_instr_nonkdim wide", _wide_instruction),
        Constraint("no more than two warps may compute the same output", _busy_warps),
        Constraint("without two stages a tl.dot loop has one tile in flight on NVIDIA", _stages),
        Constraint(
            f"the GEMV form must not read a weight more than {MAX_WEIGHT_RE_READS:g} times (rows per expert)", _re_reads
        ),
        Constraint(f"a tensor has at most {MAX_ELEMENTS} elements", _few_elements),
        Constraint("BLOCK_M must not pass the power of two above the batch", _rows_needed),
        Constraint("BLOCK_N and BLOCK_K must not pass the power of two above the weights", no_wider_than_weights),
        # ptxas takes 10 to 100 s above 128 loads, and then spills (counted for sm_90, Triton 3.7).
        Constraint(f"the GEMV form unrolls at most {MAX_UNROLLED_LOADS} loads a thread", few_loads),
        Constraint(f"the GEMV form unrolls at most {MAX_UNROLLED_STEPS} steps, or one per expert", few_steps),
        Constraint(
            f"a thread loads at most {MAX_STEP_BYTES_PER_THREAD} bytes of weights a step of the expert form (spills)",
            short_steps,
        ),
        Constraint(f"a thread holds at most {MAX_ACCUMULATORS_PER_THREAD} accumulators", small_accumulators),
    )


def _with_knobs(config: Config, device: Device) -> Config:
    """The config with the parameters that only some devices have at their plain values."""
    knobs: dict[str, Value] = {name: values[0] for name, values in vendor_knobs(device, has_dot=True).items()}
    if device.xcds > 1:
        knobs["XCD_REMAP"] = 0
    return Config({**knobs, **config})


def _gemv_config(form: str, block_n: int, block_k: int, num_warps: int, device: Device) -> Config:
    # Rows fastest: programs that share an expert run side by side and find its weights in L2.
    config = Config.of(
        FORM=form, BLOCK_M=MIN_DOT, BLOCK_N=block_n, BLOCK_K=block_k, SWAP=0, ORDER="rows",
        num_warps=num_warps, num_stages=1,
    )  # fmt: skip
    return _with_knobs(config, device)


def _tile_config(device: Device) -> Config:
    tile = Config.of(FORM="expert", BLOCK_M=MIN_DOT, BLOCK_K=128, SWAP=0, ORDER="cols")
    if not device.arch.is_amd:
        return _with_knobs(tile.replace(BLOCK_N=64, num_warps=4, num_stages=3), device)
    tile = _with_knobs(tile.replace(BLOCK_N=32, num_warps=2, num_stages=2), device)
    # With kpack 2 Triton 3.7 takes the weights past LDS on gfx942: 4 KiB instead of 20 KiB a program.
    return tile.replace(kpack=2) if "kpack" in tile else tile


def _prefers_gemv(problem: MoeProblem) -> bool:
    """Little is read twice up to about 1.2 rows an expert, and the GEMV forms have more loads in flight."""
    return _rows_per_expert(problem) <= 1.2


def _gate_up_default(problem: MoeProblem, device: Device) -> Config:
    if not _prefers_gemv(problem):
        return _tile_config(device)
    if problem.hidden > 2048 and not device.arch.is_amd:
        return _gemv_config("pair", 4, 2048, 4, device)
    return _gemv_config("pair", 8, 1024, 4, device)


def _down_default(problem: MoeProblem, device: Device) -> Config:
    if not _prefers_gemv(problem):
        return _tile_config(device)
    # On CDNA the loads of 24 or so short steps are issued together (counted in the ISA: 24 against 6 at 1024 wide).
    if device.arch.is_amd and problem.top_k * -(-problem.inter // 256) <= MAX_UNROLLED_STEPS:
        return _gemv_config("token", 4, 256, 2, device)
    return _gemv_config("token", 4, 1024, 4, device)


MOE_GATE_UP = SearchSpace(
    kernel="moe_gate_up", problem_type=MoeProblem, choices=partial(_choices, "pair"),
    constraints=_constraints(_gate_up_shape), default=_gate_up_default, work=gate_up_work,
)  # fmt: skip
MOE_DOWN = SearchSpace(
    kernel="moe_down", problem_type=MoeProblem, choices=partial(_choices, "token"),
    constraints=_constraints(_down_shape), default=_down_default, work=down_work,
)  # fmt: skip
