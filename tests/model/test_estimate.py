"""What the static model must get right whatever its constants are worth: limits, bounds, directions."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paiton.search_spaces.arch import Device, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.model.estimate import (
    UnmodelledKernel,
    bound_of,
    estimate_us,
    explain_us,
    likely_spills,
    shared_bytes_estimate,
)
from paiton.search_spaces.model.facts import CompileFacts
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.registry import KERNEL_NAMES, space_of
from paiton.search_spaces.roofline import hbm_floor_us, roofline_us
from paiton.search_spaces.space import columns_of_config
from paiton.search_spaces.work import Work

MI300X = resolve("MI300X")
H200 = resolve("H200")
MOE = {"experts": 128, "top_k": 8, "hidden": 2048, "inter": 768}
HEADS = {"q_heads": 32, "kv_heads": 4, "head_dim": 128, "window": 0}
DIMS: dict[str, dict[str, int]] = {
    "rms_norm": {"hidden": 2048},
    "add_rms_norm": {"hidden": 5120},
    "linear": {"n": 2048, "k": 4096, "bias": 0, "residual": 1},
    "linear_silu_mul": {"n": 768, "k": 2048},
    "linear_qkv": {"n_q": 4096, "n_kv": 512, "k": 2048, "bias": 0},
    "router": {"experts": 128, "top_k": 8, "renormalize": 1},
    "moe_gate_up": MOE,
    "moe_down": MOE,
    "moe_grouped": MOE,
    "qk_norm_rope": {"q_heads": 32, "kv_heads": 4, "head_dim": 128, "qk_norm": 1},
    "attention_decode": {**HEADS, "context": 1000},
    "attention_decode_fused": {**HEADS, "context": 1000, "qk_norm": 1},
    "attention_prefill": HEADS,
}
Columns = dict[str, npt.NDArray[Any]]


def problem_of(kernel: str, batch: int, **dims: int) -> Problem:
    return space_of(kernel).problem(dtype="bf16", batch=batch, **{**DIMS[kernel], **dims})


def some_columns(problem: Problem, device: Device, count: int = 400) -> Columns:
    """Configs spread evenly over the feasible set."""
    columns = space_of(problem.kernel).enumerate(problem, device).columns()
    rows = len(next(iter(columns.values())))
    picked = np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(int))
    return {name: values[picked] for name, values in columns.items()}


def best_of(problem: Problem, device: Device) -> Config:
    feasible = space_of(problem.kernel).enumerate(problem, device)
    return feasible.config(int(np.argmin(estimate_us(problem, device, feasible.columns()))))


def one(problem: Problem, device: Device, config: Config, facts: CompileFacts | None = None) -> float:
    return float(estimate_us(problem, device, columns_of_config(config), [facts])[0])


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("device", ["MI300X", "MI355X", "MI250X", "A100", "H200", "B200"])
@pytest.mark.parametrize("batch", [1, 37, 256])
def test_never_below_the_roofline(kernel: str, device: str, batch: int) -> None:
    problem, chip = problem_of(kernel, batch), resolve(device)
    times = estimate_us(problem, chip, some_columns(problem, chip))
    assert not np.isnan(times).any()
    assert times.min() >= hbm_floor_us(problem, chip)
    assert times.min() < 1e5


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("device", ["MI300X", "H200"])
def test_a_fixed_config_takes_longer_for_more_tokens(kernel: str, device: str) -> None:
    chip = resolve(device)
    first = problem_of(kernel, 32)
    columns = some_columns(first, chip, 200)
    before = estimate_us(first, chip, columns)
    for batch in (48, 64, 128, 256, 1024):
        after = estimate_us(first.with_batch(batch), chip, columns)
        finite = np.isfinite(before)
        assert (np.isfinite(after) == finite).all()
        # A last block half full and a last wave half full make small steps down; a trend would be a bug.
        assert (after[finite] >= 0.93 * before[finite]).all()
        before = after


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_more_bandwidth_is_never_slower(kernel: str) -> None:
    for slow, fast in (("MI300X", "MI325X"), ("H100", "H200")):
        problem, chip = problem_of(kernel, 64), resolve(slow)
        columns = some_columns(problem, chip)
        base = estimate_us(problem, chip, columns)
        assert (estimate_us(problem, resolve(fast), columns) <= base).all()
        wider = dataclasses.replace(chip, hbm_gbps=chip.hbm_gbps * 1.1)
        assert (estimate_us(problem, wider, columns) <= base).all()


def test_a_config_beyond_the_lds_cannot_launch() -> None:
    problem = problem_of("moe_grouped", 1024)
    config = Config.of(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, GROUP_M=1, num_warps=8, num_stages=2)
    assert np.isinf(one(problem, MI300X, config))  # (128 + 2 x 128) x 128 x 2 bytes = 96 KiB
    assert np.isfinite(one(problem, resolve("MI355X"), config))
    assert np.isinf(one(problem, H200, config.replace(BLOCK_N=256, num_stages=4)))
    fitting = CompileFacts(shared_bytes=65536, registers=128)
    assert np.isfinite(one(problem, MI300X, config, fitting))
    assert np.isinf(one(problem, MI300X, config, dataclasses.replace(fitting, shared_bytes=65537)))


@pytest.mark.parametrize("device", [MI300X, H200], ids=str)
def test_one_token_wants_enough_programs_to_fill_the_chip(device: Device) -> None:
    problem = problem_of("linear", 1)
    best = best_of(problem, device)
    parts = explain_us(problem, device, best)
    assert parts["projection.programs"] >= 0.8 * device.compute_units
    few = Config.of(DOT=1, BLOCK_M=16, BLOCK_N=128, BLOCK_K=64, SPLIT_K=1, num_warps=4, num_stages=2)
    assert one(problem, device, few) > 1.5 * one(problem, device, best)  # 16 programs


def block_m_of(kernel: str, batch: int, device: Device) -> int:
    return best_of(problem_of(kernel, batch), device).integer("BLOCK_M")


@pytest.mark.parametrize("device", [MI300X, H200], ids=str)
def test_more_rows_want_taller_tiles(device: Device) -> None:
    assert block_m_of("moe_grouped", 64, device) < block_m_of("moe_grouped", 8192, device)
    assert block_m_of("moe_grouped", 8192, device) >= 64
    assert block_m_of("linear", 1, device) <= 16 < block_m_of("linear", 256, device)


@pytest.mark.parametrize("kernel", ["attention_decode", "attention_decode_fused"])
@pytest.mark.parametrize("device", [MI300X, H200], ids=str)
def test_one_sequence_wants_a_split_context_and_many_do_not(kernel: str, device: Device) -> None:
    assert best_of(problem_of(kernel, 1, context=4096), device).integer("SPLITS") >= 8
    assert best_of(problem_of(kernel, 256, context=4096), device).integer("SPLITS") <= 2


@pytest.mark.parametrize("device", [MI300X, H200], ids=str)
def test_decode_experts_one_token_by_pairs_many_by_tiles(device: Device) -> None:
    assert best_of(problem_of("moe_gate_up", 1), device)["FORM"] == "pair"
    assert best_of(problem_of("moe_down", 1), device)["FORM"] == "token"
    assert best_of(problem_of("moe_gate_up", 64), device)["FORM"] == "expert"
    assert best_of(problem_of("moe_down", 64), device)["FORM"] == "expert"


def test_a_sliding_window_bounds_the_work() -> None:
    config = Config.of(BLOCK_N=64, SPLITS=4, num_warps=4, num_stages=2)
    whole = one(problem_of("attention_decode", 16, context=8192), MI300X, config)
    window = one(problem_of("attention_decode", 16, context=8192, window=1024), MI300X, config)
    short = one(problem_of("attention_decode", 16, context=1024), MI300X, config)
    assert window == pytest.approx(short)
    assert window < whole / 2
    tile = Config.of(BLOCK_M=64, BLOCK_N=64, num_warps=4, num_stages=1)
    causal = one(problem_of("attention_prefill", 8192), MI300X, tile)
    assert one(problem_of("attention_prefill", 8192, window=512), MI300X, tile) < causal / 3


def test_facts_replace_the_closed_forms() -> None:
    problem = problem_of("moe_grouped", 512)
    config = Config.of(BLOCK_M=32, BLOCK_N=64, BLOCK_K=64, GROUP_M=1, num_warps=4, num_stages=2)
    facts = CompileFacts(shared_bytes=20480, registers=100, mfma=(("v_mfma_f32_16x16x16_bf16", 32),), valu=60,
                         global_loads=10, lds_read_bytes=320)  # fmt: skip
    base = one(problem, MI300X, config, facts)
    assert one(problem, MI300X, config, dataclasses.replace(facts, spills=200, scratch_bytes=800)) > base
    assert one(problem, MI300X, config, dataclasses.replace(facts, spills=20)) == base  # scalar, kept in vector lanes
    assert one(problem, MI300X, config, dataclasses.replace(facts, registers=512)) > base
    assert one(problem, MI300X, config, dataclasses.replace(facts, valu=5000)) > base
    twice = dataclasses.replace(facts, mfma=(("v_mfma_f32_16x16x16_bf16", 64),), valu=120, global_loads=20,
                                lds_read_bytes=640)  # fmt: skip
    assert one(problem, MI300X, config, twice) == pytest.approx(base)  # the same loop, unrolled twice


def test_facts_of_some_configs_leave_the_others_alone() -> None:
    problem = problem_of("moe_grouped", 512)
    columns = some_columns(problem, MI300X, 20)
    plain = estimate_us(problem, MI300X, columns)
    facts: list[CompileFacts | None] = [None] * len(plain)
    facts[3] = CompileFacts(shared_bytes=70000, registers=100)
    mixed = estimate_us(problem, MI300X, columns, facts)
    assert np.isinf(mixed[3])
    others = np.arange(len(plain)) != 3
    np.testing.assert_array_equal(mixed[others], plain[others])
    with pytest.raises(ValueError, match="1 compile facts for 20 configs"):
        estimate_us(problem, MI300X, columns, facts[:1])


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_columns_and_single_configs_agree_and_explain_adds_up(kernel: str) -> None:
    problem = problem_of(kernel, 24)
    columns = some_columns(problem, MI300X, 12)
    times = estimate_us(problem, MI300X, columns)
    for row in range(len(times)):
        config = {name: values[row].item() for name, values in columns.items()}
        parts = explain_us(problem, MI300X, config)
        assert parts["total"] == pytest.approx(times[row]) or np.isinf(times[row])
        launches = {name.split(".")[0] for name in parts if "." in name}
        if np.isfinite(times[row]):
            assert sum(parts[f"{launch}.total"] for launch in launches) == pytest.approx(parts["total"])
        for launch in launches:
            assert parts[f"{launch}.total"] >= max(parts[f"{launch}.loop"], parts[f"{launch}.traffic"])
            assert f"{launch}.{bound_of(parts, launch)}" in parts


def test_split_k_and_split_context_pay_for_a_second_launch() -> None:
    whole = Config.of(DOT=1, BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, SPLIT_K=1, num_warps=4, num_stages=2)
    linear = problem_of("linear", 16)
    assert "reduction.total" not in explain_us(linear, MI300X, whole)
    assert explain_us(linear, MI300X, whole.replace(SPLIT_K=4))["reduction.total"] > 3.0
    assert explain_us(linear, MI300X, whole.replace(SPLIT_K=4))["projection.programs"] == 4 * 2048 / 64
    decode = problem_of("attention_decode", 4)
    config = Config.of(BLOCK_N=64, SPLITS=1, num_warps=4, num_stages=2)
    assert "combine.total" not in explain_us(decode, MI300X, config)
    assert explain_us(decode, MI300X, config.replace(SPLITS=4))["combine.total"] > 3.0


def test_roofline_is_the_slower_of_bytes_and_flops() -> None:
    assert roofline_us(Work(flops=0, bytes=5.3e9), MI300X, "bf16") == pytest.approx(1000.0)
    assert roofline_us(Work(flops=1307.4e9, bytes=1), MI300X, "bf16") == pytest.approx(1000.0)


def test_unknown_kernel_is_named() -> None:
    with pytest.raises(UnmodelledKernel, match="no static model of kernel 'conv'; modelled: rms_norm"):
        estimate_us(SimpleNamespace(kernel="conv", batch=1), MI300X, {"num_warps": np.array([4])})


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_limits_known_before_compiling_have_one_entry_per_config(kernel: str) -> None:
    problem = problem_of(kernel, 64)
    columns = some_columns(problem, MI300X, 50)
    rows = len(columns["num_warps"])
    shared = shared_bytes_estimate(kernel, problem, MI300X, columns)
    assert shared.shape == (rows,)
    assert (shared >= 0).all()
    assert likely_spills(kernel, problem, MI300X, columns).shape == (rows,)


def test_huge_accumulators_are_queued_last() -> None:
    problem = problem_of("moe_grouped", 4096)
    columns = {
        "BLOCK_M": np.array([256, 32]), "BLOCK_N": np.array([256, 32]), "BLOCK_K": np.array([64, 64]),
        "GROUP_M": np.array([1, 1]), "num_warps": np.array([2, 4]), "num_stages": np.array([2, 2]),
    }  # fmt: skip
    for device in (MI300X, H200):
        assert likely_spills("moe_grouped", problem, device, columns).tolist() == [True, False]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 20000), n=st.integers(1, 60000), k=st.integers(1, 60000),
    device=st.sampled_from(["MI300X", "MI250X", "H100", "A100"]), dtype=st.sampled_from(["bf16", "fp16", "fp32"]),
    values=st.tuples(*(st.integers(0, limit) for limit in (1, 8, 8, 11, 4, 3, 3))),
)  # fmt: skip
def test_any_linear_problem_and_config_has_a_sane_time(
    batch: int, n: int, k: int, device: str, dtype: str, values: tuple[int, ...]
) -> None:
    dot, *powers = values
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT_K", "num_warps")
    columns = {name: np.array([1 << power]) for name, power in zip(names, powers[:-1], strict=True)}
    columns |= {"DOT": np.array([dot]), "num_stages": np.array([powers[-1] + 1])}
    problem = space_of("linear").problem(dtype=dtype, batch=batch, n=n, k=k, bias=0, residual=0)
    time = estimate_us(problem, resolve(device), columns)[0]
    bytes_moved = (n * k + batch * (n + k)) * problem.itemsize
    floor = roofline_us(Work(flops=2.0 * batch * n * k, bytes=bytes_moved), resolve(device), dtype)
    assert np.isinf(time) or floor <= time < 1e12
