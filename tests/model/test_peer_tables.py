"""Where published fused-MoE winners stand in the model's ranking of the space they won in: vLLM's tuner, 16 bits.

The tables (vLLM, Apache-2.0) are not part of this repository. They hold one winner per number of tokens and no times.
Hidden size and top-k are not in the file names, so only tables that belong to one model are used. The model was not
fitted to them; the bounds below catch a broken formula and are no quality target.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.model.compiled import candidates
from paiton.search_spaces.model.gemm import GemmConfig, GemmShape, gemm_timing
from paiton.search_spaces.model.moe import padded_blocks
from paiton.search_spaces.model.routing import row_blocks

# (experts, inter of one shard) -> (hidden, top_k)
MODELS = {
    (8, 14336): (4096, 2),  # Mixtral-8x7B
    (8, 7168): (4096, 2),  # Mixtral-8x7B on 2 GPUs
    (128, 1024): (5120, 1),  # Llama-4-Maverick on 8 GPUs
    (128, 768): (2048, 8),  # Qwen3-30B-A3B, and on 2, 4 and 8 GPUs
    (128, 384): (2048, 8),
    (128, 192): (2048, 8),
    (128, 96): (2048, 8),
}
NAMES = {
    "MI300X": "AMD_Instinct_MI300X", "MI325X": "AMD_Instinct_MI325X", "H100": "NVIDIA_H100_80GB_HBM3",
    "H200": "NVIDIA_H200", "B200": "NVIDIA_B200",
}  # fmt: skip
AMD_SPACE = {
    "BLOCK_SIZE_M": (16, 32, 64, 128, 256), "BLOCK_SIZE_N": (16, 32, 64, 128, 256),
    "BLOCK_SIZE_K": (16, 32, 64, 128, 256), "GROUP_SIZE_M": (1, 4, 8, 16, 32), "num_warps": (1, 2, 4, 8),
    "num_stages": (2,), "matrix_instr_nonkdim": (16, 32), "kpack": (1, 2),
}  # fmt: skip
NVIDIA_SPACE = {
    "BLOCK_SIZE_M": (16, 32, 64, 128, 256), "BLOCK_SIZE_N": (32, 64, 128, 256), "BLOCK_SIZE_K": (64, 128, 256),
    "GROUP_SIZE_M": (1, 16, 32, 64), "num_warps": (4, 8), "num_stages": (2, 3, 4, 5),
}  # fmt: skip
OUR_NAMES = {
    "BLOCK_SIZE_M": "BLOCK_M", "BLOCK_SIZE_N": "BLOCK_N", "BLOCK_SIZE_K": "BLOCK_K", "GROUP_SIZE_M": "GROUP_M",
}  # fmt: skip
Grid = dict[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class PeerProblem:
    """One table and one number of tokens, with the config that won."""

    device: Device
    tokens: int
    experts: int
    inter: int
    hidden: int
    top_k: int
    winner: dict[str, int]

    def gemms(self) -> tuple[GemmShape, GemmShape]:
        """vLLM's two launches, without a fused activation."""
        gate_up, down = (2 * self.inter, self.hidden), (self.hidden, self.inter)
        return _gemm(self, *gate_up), _gemm(self, *down)


def _gemm(problem: PeerProblem, n: int, k: int) -> GemmShape:
    return GemmShape(
        tokens=problem.tokens, n=n, k=k, dtype="bf16", itemsize=2, output_itemsize=2, experts=problem.experts,
        top_k=problem.top_k, loads_rows=False,
    )  # fmt: skip


def folder() -> Path | None:
    """Where the tables are: PAITON_PEER_CONFIGS, or shared/reference/peer_configs beside the repository."""
    named = os.environ.get("PAITON_PEER_CONFIGS")
    beside = Path(__file__).resolve().parents[3] / "shared" / "reference" / "peer_configs"
    path = Path(named) if named else beside
    return path if (path / "vllm").is_dir() else None


def problems_of(path: Path, device_name: str) -> Iterator[PeerProblem]:
    """The 16-bit problems of one device."""
    space = space_of(resolve(device_name))
    for (experts, inter), (hidden, top_k) in MODELS.items():
        file = path / "vllm" / f"E={experts},N={inter},device_name={NAMES[device_name]}.json"
        if not file.is_file():
            continue
        for tokens, config in json.loads(file.read_text()).items():
            if tokens.isdigit():
                winner = {name: config[name] for name in space}
                yield PeerProblem(resolve(device_name), int(tokens), experts, inter, hidden, top_k, winner)


def space_of(device: Device) -> dict[str, tuple[int, ...]]:
    return AMD_SPACE if device.arch.is_amd else NVIDIA_SPACE


def space_columns(problem: PeerProblem) -> Grid:
    """vLLM's space with waves_per_eu 0; on AMD what its pruning leaves for either of the two GEMMs."""
    space = space_of(problem.device)
    grid = np.array(list(itertools.product(*space.values())), np.int64)
    columns = {name: grid[:, position] for position, name in enumerate(space)}
    if not problem.device.arch.is_amd:
        return columns
    rows = problem.tokens * problem.top_k
    kept = np.logical_or.reduce([_survives(columns, rows, gemm.n, gemm.k) for gemm in problem.gemms()])
    return {name: values[kept] for name, values in columns.items()}


def _survives(columns: Grid, rows: int, n: int, k: int) -> npt.NDArray[np.bool_]:
    """vLLM's rules for one 16-bit GEMM of rows x n x k on AMD."""
    block_m, block_n, block_k, group, warps, _, instruction, _ = columns.values()
    kept = instruction <= (16 if rows < 32 or n < 32 else 32)
    kept &= (instruction <= block_m) & (instruction <= block_n)
    kept &= (instruction < rows) | (instruction == block_m)
    kept &= (instruction < n) | (instruction == block_n)
    kept &= (block_m <= 2 * rows) | (block_m == 16)
    kept &= (block_n <= 2 * n) | (block_n == 16)
    kept &= k % block_k == 0
    kept &= (group * block_m <= rows) | (group == 1)
    kept &= (block_m + block_n) * block_k * 2 <= 65536
    if rows >= 2048 and n >= 2048:
        kept &= (block_m >= 64) & (block_n >= 64) & (block_k >= 64) & (warps >= 4)
    return np.asarray(kept, np.bool_)


def modelled_us(problem: PeerProblem, columns: Grid) -> npt.NDArray[np.float64]:
    """Both GEMMs with one config, run back to back on the same inputs as vLLM's tuner does."""
    case = candidates({OUR_NAMES.get(name, name): values for name, values in columns.items()}, problem.device)
    config = GemmConfig.of(case)
    active = row_blocks(problem.tokens, problem.experts, problem.top_k, 16).active
    total = np.zeros(case.rows)
    for gemm in problem.gemms():
        launched = padded_blocks(gemm, config.block_m) * np.ceil(gemm.n / config.block_n)
        warm_bytes = active * 3 * problem.inter * problem.hidden * 2
        total += gemm_timing(gemm, config, case, launched=launched, warm_bytes=warm_bytes).total_us
    return total


def percentile_of_winner(problem: PeerProblem) -> float | None:
    """0 where the model puts the winner first, 50 at random, None where the winner is outside the space."""
    columns = space_columns(problem)
    times = modelled_us(problem, columns)
    winner = np.logical_and.reduce([columns[name] == value for name, value in problem.winner.items()])
    if not winner.any():
        return None
    time = times[winner][0]
    if np.isinf(time):
        return 100.0
    feasible = times[np.isfinite(times)]
    ties = (np.abs(feasible - time) <= 1e-9).sum()
    return float(100 * ((feasible < time - 1e-9).sum() + (ties - 1) / 2) / (len(feasible) - 1))


def test_the_space_is_the_one_vllm_searches() -> None:
    """The counts of vLLM's pruning for Qwen3-30B-A3B, with its four values of waves_per_eu."""
    counts = {
        tokens: 4 * len(space_columns(PeerProblem(resolve("MI300X"), tokens, 128, 768, 2048, 8, {}))["kpack"])
        for tokens in (1, 4, 64, 1024)
    }
    assert counts == {1: 704, 4: 2656, 64: 15296, 1024: 25760}


# Per device: the largest mean percentile, the smallest share of winners in the best quarter.
BOUNDS = {"MI300X": (30, 60), "MI325X": (30, 60), "H100": (35, 50), "H200": (35, 50), "B200": (40, 40)}


@pytest.mark.parametrize("device", BOUNDS)
def test_published_winners_rank_high(device: str, record_property: Callable[[str, object], None]) -> None:
    path = folder()
    if path is None:
        pytest.skip("vLLM's tuned tables are not here; PAITON_PEER_CONFIGS names the folder that holds vllm/")
    found = [percentile_of_winner(problem) for problem in problems_of(path, device)]
    scores = np.array([score for score in found if score is not None])
    if not len(scores):
        pytest.skip(f"no 16-bit table of a known model for {device}")
    mean, top_10, top_25 = scores.mean(), 100 * (scores <= 10).mean(), 100 * (scores <= 25).mean()
    line = f"{len(scores)} problems, {len(found) - len(scores)} outside the space: mean {mean:.1f}, "
    line += f"median {np.median(scores):.1f}, top 10 % {top_10:.0f}, top 25 % {top_25:.0f}"
    print(f"{device}: {line}")
    record_property("percentiles", line)
    largest_mean, smallest_share = BOUNDS[device]
    assert mean < largest_mean
    assert top_25 > smallest_share
