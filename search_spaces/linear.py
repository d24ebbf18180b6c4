"""Skinny dense projections, y = x W^T with few rows of x, and their fused forms: problems and search spaces."""

from __future__ import annotations

from dataclasses import dataclass

from .arch import Device
from .config import Config
from .linear_rules import CONSTRAINTS, MAX_FMA_ROWS, MIN_DOT, VECTOR_BYTES
from .problem import Problem
from .space import Choices, SearchSpace, vendor_knobs
from .work import Work


@dataclass(frozen=True, kw_only=True)
class LinearProblem(Problem):
    """[batch, k] x [n, k]^T -> [batch, n]; bias and residual are 0 or 1."""

    n: int
    k: int
    bias: int
    residual: int

    @property
    def segments(self) -> tuple[int, ...]:
        """Output columns per weight; a block of columns never straddles two segments."""
        return (self.n,)

    @property
    def weights_per_column(self) -> int:
        """Rows of weights, and so accumulators, behind one output column."""
        return 1


@dataclass(frozen=True, kw_only=True)
class LinearSiluMulProblem(Problem):
    """silu(x Wg^T) * (x Wu^T): two [n, k] weights -> [batch, n]."""

    n: int
    k: int

    @property
    def segments(self) -> tuple[int, ...]:
        """Output columns per pair of weights."""
        return (self.n,)

    @property
    def weights_per_column(self) -> int:
        """Gate and up."""
        return 2


@dataclass(frozen=True, kw_only=True)
class LinearQkvProblem(Problem):
    """Three projections of one x: [n_q, k], [n_kv, k], [n_kv, k] -> [batch, n_q + 2 n_kv]."""

    n_q: int
    n_kv: int
    k: int
    bias: int

    @property
    def segments(self) -> tuple[int, ...]:
        """Output columns of q, k and v."""
        return (self.n_q, self.n_kv, self.n_kv)

    @property
    def weights_per_column(self) -> int:
        """One row of weights per output column."""
        return 1


AnyLinear = LinearProblem | LinearSiluMulProblem | LinearQkvProblem


def _power_of_two_from(value: int) -> int:
    """The smallest power of two that is not below value."""
    return 1 << max(0, value - 1).bit_length()


def _choices(problem: AnyLinear, device: Device) -> Choices:
    """A block of rows is the batch rounded up, or half of it, so the list depends on the batch.

    Up to 8 rows both forms are offered, FMA with exactly the rows needed and tl.dot padded to 16. Above, arithmetic
    and not memory would set the time of the FMA form: at 8 rows it takes about two thirds of an H200's issue slots
    (computed: one conversion and 8 multiply-adds for each of 9.3 weights per clock and SM at 4.3 TB/s).
    """
    rows = _power_of_two_from(problem.batch)
    has_fma = rows <= MAX_FMA_ROWS
    row_blocks: tuple[int, ...]
    if has_fma:
        row_blocks = (rows, MIN_DOT)
    elif rows == MIN_DOT:
        row_blocks = (MIN_DOT,)
    else:
        row_blocks = (min(rows, 128) // 2, min(rows, 128))
    choices: Choices = {
        "DOT": (0, 1) if has_fma else (1,),
        "BLOCK_M": row_blocks,
        "BLOCK_N": (2, 4, 8, 16, 32, 64, 128) if has_fma else (16, 32, 64, 128) + ((256,) if rows > 32 else ()),
        "BLOCK_K": (128, 256, 512, 1024, 2048) if has_fma else (64, 128, 256, 512),
        "SPLIT_K": (1, 2, 4, 8),
        "num_warps": (1, 2, 4, 8) if rows <= 32 else (2, 4, 8),
        "num_stages": ((1, 2, 3) if rows <= 16 else (1, 2)) if device.arch.is_amd else (2, 3, 4, 5),
    }
    if device.xcds > 1:
        choices["XCD_REMAP"] = (0, 1) if problem.batch > row_blocks[0] else (0,)
    knobs = vendor_knobs(device, has_dot=True)
    if "matrix_instr_nonkdim" in knobs and row_blocks[-1] < 32:
        knobs["matrix_instr_nonkdim"] = (16,)
    return {**choices, **knobs}


def _default(problem: AnyLinear, device: Device) -> Config:
    """FMA up to 4 rows of x, tl.dot above; tiles small enough and k split enough to fill the device."""
    config = _fma_default(problem, device) if problem.batch <= 4 else _dot_default(problem, device)
    if device.arch.is_amd:
        config = config.replace(waves_per_eu=0, matrix_instr_nonkdim=16)
        if device.arch.allows_kpack:
            config = config.replace(kpack=1)
    else:
        config = config.replace(maxnreg=0)
    return config.replace(XCD_REMAP=0) if device.xcds > 1 else config


def _fma_default(problem: AnyLinear, device: Device) -> Config:
    block_k = max(256, VECTOR_BYTES // problem.itemsize * device.arch.wave_size)
    config = Config.of(
        DOT=0, BLOCK_M=_power_of_two_from(problem.batch), BLOCK_N=4 // problem.weights_per_column, BLOCK_K=block_k,
        SPLIT_K=1, num_warps=1, num_stages=1 if device.arch.is_amd else 2,
    )  # fmt: skip
    while (
        config.integer("num_warps") < 4
        and problem.k % (2 * config.integer("BLOCK_K")) == 0
        and config.integer("BLOCK_K") < 2048
    ):
        config = config.replace(BLOCK_K=2 * config.integer("BLOCK_K"), num_warps=2 * config.integer("num_warps"))
    return config


def _dot_default(problem: AnyLinear, device: Device) -> Config:
    block_m = min(128 if problem.itemsize == 2 else 64, max(MIN_DOT, _power_of_two_from(problem.batch)))
    columns = sum(problem.segments)
    row_blocks = -(-problem.batch // block_m)
    block_n = (64 if block_m < 64 else max(64, block_m)) // problem.weights_per_column
    while block_n > max(MIN_DOT, block_m // 4) and columns // block_n * row_blocks < device.compute_units:
        block_n //= 2
    block_k = 128 if block_m <= 32 else 64
    block_k = max(64, block_k * 2 // problem.itemsize)
    if problem.batch <= MAX_FMA_ROWS:
        block_k = max(128, block_k)
    fragments = block_m * block_n // (MIN_DOT * MIN_DOT)
    warps = 8 if block_m * block_n * problem.weights_per_column >= 128 * 128 else min(4, 2 * fragments)
    while block_n * block_k * problem.itemsize < VECTOR_BYTES * warps * device.arch.wave_size:
        block_k *= 2
    split = 1
    tiles = sum(-(-segment // block_n) for segment in problem.segments) * row_blocks
    while split < 8 and tiles * split * 2 <= 2 * device.compute_units and _can_split(problem.k, block_k, 2 * split):
        split *= 2
    return Config.of(
        DOT=1, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, SPLIT_K=split,
        num_warps=warps, num_stages=2 if device.arch.is_amd else 3,
    )  # fmt: skip


def _can_split(k: int, block_k: int, splits: int) -> bool:
    steps = -(-k // block_k)
    per_split = -(-steps // splits)
    return per_split >= 4 and -(-steps // per_split) == splits


def _work(problem: AnyLinear) -> Work:
    """Each weight, x and y once; one extra read of the residual and of the bias where there is one."""
    columns = sum(problem.segments)
    weights = columns * problem.weights_per_column * problem.k
    elements = weights + problem.batch * (problem.k + columns)
    if not isinstance(problem, LinearSiluMulProblem) and problem.bias:
        elements += columns
    if isinstance(problem, LinearProblem) and problem.residual:
        elements += problem.batch * columns
    return Work(flops=2.0 * problem.batch * weights, bytes=float(problem.itemsize * elements))


def _space(kernel: str, problem_type: type[Problem]) -> SearchSpace:
    return SearchSpace(
        kernel=kernel, problem_type=problem_type, choices=_choices, constraints=CONSTRAINTS, default=_default,
        work=_work,
    )  # fmt: skip


LINEAR = _space("linear", LinearProblem)
LINEAR_SILU_MUL = _space("linear_silu_mul", LinearSiluMulProblem)
LINEAR_QKV = _space("linear_qkv", LinearQkvProblem)
