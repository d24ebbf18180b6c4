"""Search space of vLLM's `fused_moe`: that project's own parameters, by its names, one config for both GEMMs.

Its kernel is not ours: `autotune run --kernel vllm.fused_moe` measures it where vLLM is installed. Values are those its
tuned files use (338 files of release 0.33.0); which of them make sense is said by the same facts as for moe_grouped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .arch import Device
from .config import Config, Value
from .model.closed_form import DotTile, shared_bytes
from .moe import MoeProblem
from .moe_grouped import MOE_GROUPED, moe_grouped_work, rows_per_expert
from .space import Choices, Columns, Constraint, Mask, SearchSpace

FIELD_OF: Mapping[str, str] = {
    "BLOCK_M": "BLOCK_SIZE_M", "BLOCK_N": "BLOCK_SIZE_N", "BLOCK_K": "BLOCK_SIZE_K", "GROUP_M": "GROUP_SIZE_M",
}  # fmt: skip
"""Parameter of moe_grouped -> vLLM's word; all others have one name."""
OURS_OF: Mapping[str, str] = {theirs: ours for ours, theirs in FIELD_OF.items()}
MAX_PADDING_FACTOR = 4
SMALLEST_BLOCK_M = 16


def _choices(problem: MoeProblem, device: Device) -> Choices:
    is_amd = device.arch.is_amd
    result: Choices = {
        "BLOCK_SIZE_M": (16, 32, 64, 128, 256),
        "BLOCK_SIZE_N": (16, 32, 64, 128, 256) if is_amd else (32, 64, 128, 256),
        "BLOCK_SIZE_K": (32, 64, 128, 256),
        "GROUP_SIZE_M": (1, 4, 8, 16, 32) if is_amd else (1, 8, 16, 32, 64),
        "num_warps": (1, 2, 4, 8) if is_amd else (4, 8),
        "num_stages": (2,) if is_amd else (2, 3, 4, 5),
    }
    if is_amd:
        result |= {"waves_per_eu": (0, 1, 2, 4), "matrix_instr_nonkdim": (16, 32)}
        if device.arch.allows_kpack:
            result["kpack"] = (1, 2)
    return result


def _little_padding(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    largest = max(SMALLEST_BLOCK_M, MAX_PADDING_FACTOR * rows_per_expert(problem))
    return np.asarray(columns["BLOCK_SIZE_M"] <= largest, np.bool_)


def _wide_instruction(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    width = columns.get("matrix_instr_nonkdim", np.full(len(columns["num_warps"]), 16))
    return np.asarray((columns["BLOCK_SIZE_M"] >= width) & (columns["BLOCK_SIZE_N"] >= width), np.bool_)


def _tiles_fit(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    sizes = {name: columns[name].astype(np.float64) for name in columns}
    tile = DotTile(
        sizes["BLOCK_SIZE_M"], sizes["BLOCK_SIZE_N"], sizes["BLOCK_SIZE_K"], sizes["num_warps"], sizes["num_stages"],
        problem.itemsize,
    )  # fmt: skip
    return np.asarray(shared_bytes(tile, device.arch) <= device.arch.shared_limit_bytes, np.bool_)


def _group_needed(columns: Columns, problem: MoeProblem, device: Device) -> Mask:
    blocks: npt.NDArray[np.float64] = np.ceil(problem.pairs / columns["BLOCK_SIZE_M"]) + problem.distinct_experts
    return np.asarray((columns["GROUP_SIZE_M"] == 1) | (columns["GROUP_SIZE_M"] <= blocks), np.bool_)


CONSTRAINTS = (
    Constraint("BLOCK_SIZE_M must not be mostly padding at the mean number of rows per expert", _little_padding),
    Constraint("blocks must hold the matrix instruction, matrix_instr_nonkdim wide", _wide_instruction),
    Constraint("the tiles of all stages must fit the chip's shared memory (LDS)", _tiles_fit),
    Constraint("GROUP_SIZE_M must not pass the number of row blocks", _group_needed),
)


def _default(problem: MoeProblem, device: Device) -> Config:
    """A start where vLLM cannot be asked: the default of moe_grouped in its words."""
    ours = MOE_GROUPED.default_config(as_grouped(problem), device)
    known = _choices(problem, device)
    return Config(
        {FIELD_OF.get(name, name): value for name, value in ours.items() if FIELD_OF.get(name, name) in known}
    )


def as_grouped(problem: MoeProblem) -> MoeProblem:
    """The same layer as a problem of our kernel, for which there is a static model."""
    return MoeProblem(kernel=MOE_GROUPED.kernel, dtype=problem.dtype, batch=problem.batch, **problem.dims())


def grouped_columns(columns: Columns, device: Device) -> Columns:
    """The configs as those of moe_grouped."""
    rows = len(columns["num_warps"])
    ours = {OURS_OF.get(name, name): values for name, values in columns.items()}
    extra: dict[str, Value] = {"XCD_REMAP": 0} if device.xcds > 1 else {}
    extra |= {} if device.arch.is_amd else {"maxnreg": 0}
    return ours | {name: np.full(rows, value) for name, value in extra.items()}


VLLM_FUSED_MOE = SearchSpace(
    kernel="vllm.fused_moe", problem_type=MoeProblem, choices=_choices, constraints=CONSTRAINTS, default=_default,
    work=moe_grouped_work,
)  # fmt: skip
