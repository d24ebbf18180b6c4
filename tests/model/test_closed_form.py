"""Closed forms against what Triton 3.7.1 compiled (bf16, 21 November 2026): shared memory and occupancy."""

from __future__ import annotations

import numpy as np
import pytest

from paiton.search_spaces.arch import arch_named, known_archs, resolve
from paiton.search_spaces.config import Value
from paiton.search_spaces.model.attention import attention_shared_bytes, score_tile
from paiton.search_spaces.model.closed_form import (
    mfma_rows_of_waves,
    programs_per_unit,
    register_limit,
    uses_wgmma,
    waves_per_simd,
)
from paiton.search_spaces.model.compiled import Candidates, candidates
from paiton.search_spaces.model.estimate import shared_bytes_estimate
from paiton.search_spaces.model.gemm import GemmConfig, gemm_shared_bytes
from paiton.search_spaces.model.linear import linear_shape
from paiton.search_spaces.model.moe import down_shape, gate_up_shape, grouped_shapes
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.registry import space_of

MOE = {"experts": 128, "top_k": 8, "hidden": 2048, "inter": 768}
HEADS = {"q_heads": 32, "kv_heads": 4, "head_dim": 128, "window": 0}


def case_of(device: str, config: dict[str, Value]) -> Candidates:
    return candidates({name: np.array([value]) for name, value in config.items()}, resolve(device))


def tiled(
    block_m: int, block_n: int, block_k: int, num_warps: int, num_stages: int, **other: Value
) -> dict[str, Value]:
    return {
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": num_warps, "num_stages": num_stages,
        **other,
    }  # fmt: skip


GFX942 = {"matrix_instr_nonkdim": 16, "kpack": 1}
WHOLE = {"matrix_instr_nonkdim": 16, "kpack": 2}  # 16 bytes a lane: the right operand may bypass LDS
WIDE = {"matrix_instr_nonkdim": 32, "kpack": 2}
GFX950 = {"matrix_instr_nonkdim": 16}

LINEAR = [
    ("MI300X", tiled(64, 256, 64, 8, 2, **GFX942), 40960),
    ("MI300X", tiled(64, 128, 128, 4, 2, **GFX942), 49152),
    ("MI300X", tiled(32, 128, 64, 4, 2, **WHOLE), 4096),  # only x in LDS
    ("MI300X", tiled(32, 256, 64, 2, 2, **WIDE), 4096),
    ("MI300X", tiled(64, 64, 256, 4, 2, **WHOLE), 65536),  # two waves share each weight: no bypass
    ("MI300X", tiled(32, 32, 128, 4, 2, **WIDE), 16384),
    ("MI300X", tiled(32, 64, 128, 4, 1, **WIDE), 16384),
    ("MI355X", tiled(32, 256, 64, 2, 2, **GFX950), 4096),
    ("MI355X", tiled(64, 16, 128, 2, 2, **GFX950), 20480),
    ("H200", tiled(32, 256, 128, 8, 4), 221184),
    ("H200", tiled(32, 32, 128, 4, 3), 32768),
    ("H200", tiled(64, 128, 64, 4, 3), 73728),  # wgmma keeps one more buffer
    ("H200", tiled(64, 256, 64, 8, 5), 204800),
    ("B200", tiled(32, 64, 512, 8, 3), 196608),
]
GROUPED = [  # gate_up, down
    ("MI300X", tiled(16, 128, 32, 4, 2, **WHOLE), (17408, 9216)),
    ("MI300X", tiled(16, 32, 256, 2, 2, **WHOLE), (40960, 24576)),
    ("MI300X", tiled(64, 32, 128, 2, 1, **GFX942), (16384, 16384)),
    ("MI355X", tiled(32, 32, 64, 2, 2, **GFX950), (12288, 8192)),
    ("H200", tiled(16, 256, 64, 8, 3), (135168, 69632)),
    ("H200", tiled(32, 64, 128, 4, 3), (81920, 49152)),
]
DECODE_TILES = [
    ("moe_down", "MI300X", tiled(16, 64, 128, 4, 2, SWAP=0, **GFX942), 20480),
    ("moe_down", "MI300X", tiled(16, 64, 256, 4, 2, SWAP=0, **WHOLE), 8192),
    ("moe_down", "MI300X", tiled(16, 16, 128, 1, 2, SWAP=1, **WHOLE), 4096),
    ("moe_down", "MI355X", tiled(16, 64, 128, 4, 2, SWAP=0, **GFX950), 4096),
    ("moe_down", "H200", tiled(16, 32, 128, 8, 3, SWAP=1), 24576),
    ("moe_gate_up", "MI300X", tiled(16, 32, 256, 2, 2, SWAP=0, **WHOLE), 8192),
    ("moe_gate_up", "MI300X", tiled(16, 64, 64, 1, 2, SWAP=1, **GFX942), 18432),
]
ATTENTION: list[tuple[str, str, dict[str, Value], int]] = [
    ("attention_decode", "MI300X", {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2, **GFX942}, 32768),
    ("attention_decode", "MI300X", {"BLOCK_N": 128, "num_warps": 8, "num_stages": 3, **GFX942}, 131072),
    ("attention_decode", "MI300X", {"BLOCK_N": 64, "num_warps": 1, "num_stages": 3, **WHOLE}, 32768),
    ("attention_decode", "MI300X", {"BLOCK_N": 256, "num_warps": 8, "num_stages": 1, **GFX942}, 65536),
    ("attention_decode", "MI355X", {"BLOCK_N": 16, "num_warps": 2, "num_stages": 2, **GFX950}, 8192),
    ("attention_decode", "H200", {"BLOCK_N": 32, "num_warps": 4, "num_stages": 2}, 21504),
    ("attention_decode", "H200", {"BLOCK_N": 256, "num_warps": 8, "num_stages": 1}, 77824),
    ("attention_prefill", "MI300X", {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2, **WIDE}, 32768),
    ("attention_prefill", "MI300X", {"BLOCK_M": 64, "BLOCK_N": 16, "num_warps": 4, "num_stages": 3, **GFX942}, 16384),
    ("attention_prefill", "H200", {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}, 81920),
    ("attention_prefill", "H200", {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 4}, 294912),
    ("attention_prefill", "H200", {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 2, "num_stages": 2}, 45056),
]


def problem(kernel: str) -> Problem:
    dims = {"linear": {"n": 5120, "k": 2048, "bias": 0, "residual": 0}, "attention_prefill": HEADS,
            "attention_decode": {**HEADS, "context": 4096}}.get(kernel, MOE)  # fmt: skip
    return space_of(kernel).problem(dtype="bf16", batch=64, **dims)


def assert_sure_at_most(kernel: str, device: str, config: dict[str, Value], compiled: int) -> None:
    columns = {name: np.array([value]) for name, value in {"DOT": 1, "FORM": "expert", **config}.items()}
    assert shared_bytes_estimate(kernel, problem(kernel), resolve(device), columns)[0] <= compiled


@pytest.mark.parametrize(("device", "config", "compiled"), LINEAR)
def test_shared_memory_of_linear(device: str, config: dict[str, Value], compiled: int) -> None:
    case = case_of(device, config)
    assert gemm_shared_bytes(linear_shape(problem("linear")), GemmConfig.of(case), case)[0] == compiled
    assert_sure_at_most("linear", device, config, compiled)


@pytest.mark.parametrize(("device", "config", "compiled"), GROUPED)
def test_shared_memory_of_grouped(device: str, config: dict[str, Value], compiled: tuple[int, int]) -> None:
    case = case_of(device, config)
    shapes = grouped_shapes(problem("moe_grouped"))
    found = tuple(gemm_shared_bytes(shape, GemmConfig.of(case), case)[0] for shape in shapes.values())
    assert found == compiled
    assert_sure_at_most("moe_grouped", device, config, max(compiled))


@pytest.mark.parametrize(("kernel", "device", "config", "compiled"), DECODE_TILES)
def test_shared_memory_of_decode_tiles(kernel: str, device: str, config: dict[str, Value], compiled: int) -> None:
    case = case_of(device, config)
    shape = gate_up_shape(problem(kernel)) if kernel == "moe_gate_up" else down_shape(problem(kernel), 4)
    assert gemm_shared_bytes(shape, GemmConfig.of(case), case)[0] == compiled
    assert_sure_at_most(kernel, device, config, compiled)


@pytest.mark.parametrize(("kernel", "device", "config", "compiled"), ATTENTION)
def test_shared_memory_of_attention(kernel: str, device: str, config: dict[str, Value], compiled: int) -> None:
    case = case_of(device, config)
    assert attention_shared_bytes(score_tile(problem(kernel), case), case)[0] == compiled
    assert_sure_at_most(kernel, device, config, compiled)


def test_without_a_pipeline_nothing_is_sure_on_amd() -> None:
    """A 32x256x128 tile with one stage needs 32 KiB on gfx942, half of its larger operand."""
    columns = {name: np.array([value]) for name, value in tiled(32, 256, 128, 4, 1, DOT=1, **GFX942).items()}
    assert shared_bytes_estimate("linear", problem("linear"), resolve("MI300X"), columns)[0] <= 32768


@pytest.mark.parametrize(
    ("registers", "waves"), [(1, 8), (64, 8), (65, 7), (128, 4), (168, 3), (169, 2), (256, 2), (257, 1), (512, 1)]
)
def test_waves_per_simd_on_cdna(registers: int, waves: int) -> None:
    assert waves_per_simd(np.array([float(registers)]), arch_named("gfx942"))[0] == waves


def test_waves_per_quarter_on_nvidia() -> None:
    registers = np.array([32.0, 33.0, 64.0, 128.0, 255.0])
    assert waves_per_simd(registers, arch_named("sm_90")).tolist() == [16, 12, 8, 4, 2]


def test_programs_per_unit_by_registers_and_by_shared_memory() -> None:
    arch = arch_named("gfx942")
    registers, shared = np.array([128.0, 128.0, 32.0, 512.0, 64.0]), np.array([0.0, 40000.0, 100.0, 0.0, 65537.0])
    warps = np.array([4.0, 4.0, 1.0, 8.0, 4.0])
    assert programs_per_unit(registers, shared, warps, 16, arch).tolist() == [4, 1, 16, 0, 0]


@pytest.mark.parametrize("arch", known_archs(), ids=str)
def test_a_program_within_its_register_limit_always_fits(arch: object) -> None:
    chip = arch_named(str(arch))
    warps = 2.0 ** np.arange(0, 5 if chip.is_amd else 6)
    limit = register_limit(warps, chip)
    assert (programs_per_unit(limit, np.zeros(len(warps)), warps, 16, chip) >= 1).all()
    assert limit[0] == chip.registers_per_thread


@pytest.mark.parametrize(
    ("rows", "columns", "instruction", "warps", "down"),
    [(64, 256, 16, 4, 1), (32, 128, 32, 2, 1), (32, 64, 16, 8, 2), (64, 32, 16, 2, 2), (32, 64, 32, 4, 4),
     (16, 16, 16, 1, 1), (16, 32, 16, 4, 4), (128, 128, 32, 4, 2)],
)  # fmt: skip
def test_layout_of_waves(rows: int, columns: int, instruction: int, warps: int, down: int) -> None:
    config = tiled(rows, columns, 64, warps, 2)
    tile = GemmConfig.of(case_of("MI300X", config)).tile(linear_shape(problem("linear")))
    assert mfma_rows_of_waves(tile, np.array([float(instruction)]))[0] == down


def test_wgmma_needs_64_rows_and_4_warps() -> None:
    shape = linear_shape(problem("linear"))
    expected = {(64, 4): True, (32, 4): False, (64, 2): False, (128, 8): True}
    for (rows, warps), emitted in expected.items():
        tile = GemmConfig.of(case_of("H200", tiled(rows, 64, 64, warps, 3))).tile(shape)
        assert uses_wgmma(tile, arch_named("sm_90"))[0] == emitted
        assert not uses_wgmma(tile, arch_named("sm_80"))[0]
