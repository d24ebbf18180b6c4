"""The search spaces of the skinny projections: sizes, defaults, reasons, and that no legal config is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from paiton.kernels_triton.linear import LINEAR_QKV_SPEC, LINEAR_SILU_MUL_SPEC, LINEAR_SPEC
from paiton.kernels_triton.spec import KernelSpec
from paiton.kernels_triton.tolerance import TOLERANCES
from paiton.search_spaces.arch import known_devices, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.linear import LINEAR, LINEAR_QKV, LINEAR_SILU_MUL
from paiton.search_spaces.problem import Problem

BATCHES = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256)
VOCABULARY = 151936


def main_problems(batch: int, dtype: str = "bf16") -> Iterator[Problem]:
    """The projections of Qwen3-30B-A3B, Qwen3-32B, QwQ-32B and Qwen3-235B-A22B; head_dim 128."""
    for hidden, heads, kv_heads, bias, inter in (
        (2048, 32, 4, 0, 0), (5120, 64, 8, 0, 25600), (5120, 40, 8, 1, 27648), (4096, 64, 4, 0, 0),
    ):  # fmt: skip
        common = {"dtype": dtype, "batch": batch}
        q = heads * 128
        yield LINEAR_QKV.problem(n_q=q, n_kv=kv_heads * 128, k=hidden, bias=bias, **common)
        yield LINEAR.problem(n=hidden, k=q, bias=0, residual=1, **common)
        yield LINEAR.problem(n=VOCABULARY, k=hidden, bias=0, residual=0, **common)
        if inter:
            yield LINEAR_SILU_MUL.problem(n=inter, k=hidden, **common)
            yield LINEAR.problem(n=hidden, k=inter, bias=0, residual=1, **common)
        else:
            yield LINEAR.problem(n=128, k=hidden, bias=0, residual=0, **common)


SPACES = {space.kernel: space for space in (LINEAR, LINEAR_SILU_MUL, LINEAR_QKV)}


@pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_defaults_are_legal(device, dtype: str) -> None:
    for batch in BATCHES:
        for problem in main_problems(batch, dtype):
            space = SPACES[problem.kernel]
            space.check(space.default(problem, device), problem, device)


@pytest.mark.parametrize("name", ["MI300X", "MI355X", "H200", "B200"])
def test_sizes_and_reasons(name: str) -> None:
    """Every feasible set can be enumerated in a blink, and every rule is needed by some problem."""
    device = resolve(name)
    reasons = set()
    for batch in (1, 8, 16, 32, 64, 256):
        for problem in main_problems(batch):
            feasible = SPACES[problem.kernel].enumerate(problem, device)
            assert feasible.raw_count <= 150_000
            assert 60 <= len(feasible) <= 15_000
            reasons |= {reason for reason, _ in feasible.rejected}
    unused = {constraint.reason for constraint in LINEAR.constraints} - reasons
    expected = set() if device.arch.is_amd else {"32-wide matrix", "XCD_REMAP"}
    assert {next((word for word in expected if word in reason), reason) for reason in unused} == expected


def test_forms_by_batch() -> None:
    device = resolve("gfx942")

    def forms(batch: int) -> set[tuple[int, int]]:
        columns = LINEAR.enumerate(next(p for p in main_problems(batch) if p.kernel == "linear"), device).columns()
        return set(zip(columns["DOT"].tolist(), columns["BLOCK_M"].tolist(), strict=True))

    assert forms(1) == {(0, 1), (1, 16)}
    assert forms(8) == {(0, 8), (1, 16)}
    assert forms(24) == {(1, 16), (1, 32)}
    assert forms(256) == {(1, 64), (1, 128)}


def test_pinned_without_dot() -> None:
    """Parameters without effect hold one value, so no two FMA configs are the same program."""
    problem = LINEAR.problem(dtype="bf16", batch=1, n=2048, k=4096, bias=0, residual=0)
    columns = LINEAR.enumerate(problem, resolve("gfx942")).columns()
    fma = columns["DOT"] == 0
    for name in ("num_stages", "kpack", "matrix_instr_nonkdim"):
        assert len(set(columns[name][fma].tolist())) == 1


@pytest.mark.parametrize("spec", [LINEAR_SPEC, LINEAR_SILU_MUL_SPEC, LINEAR_QKV_SPEC], ids=lambda spec: spec.name)
@pytest.mark.parametrize("arch", ["gfx942", "sm_90"])
@pytest.mark.parametrize("batch", [2, 18])
def test_random_legal_configs_are_right(spec: KernelSpec, arch: str, batch: int) -> None:
    device = resolve(arch)
    dims = {
        "linear": {"n": 40, "k": 600, "bias": 1, "residual": 1},
        "linear_silu_mul": {"n": 40, "k": 600},
        "linear_qkv": {"n_q": 24, "n_kv": 10, "k": 600, "bias": 1},
    }[spec.name]
    problem = spec.space.problem(dtype="fp16", batch=batch, **dims)
    feasible = spec.space.enumerate(problem, device)
    inputs = spec.make_inputs(problem, torch_device="cpu", seed=5)
    (expected,) = spec.reference(*inputs)
    tolerance = TOLERANCES["fp16"]
    for config in random.Random(7).sample(list(feasible), 5):
        plan = spec.plan(*inputs, config=config, device=device)
        plan.outputs[0].fill_(float("nan"))
        (actual,) = plan.run()
        torch.testing.assert_close(
            actual,
            expected,
            rtol=tolerance.relative,
            atol=tolerance.absolute,
            msg=lambda text, c=config: f"{c}: {text}",
        )


def test_work_counts_every_weight_once() -> None:
    plain = LINEAR.work(LINEAR.problem(dtype="bf16", batch=4, n=10, k=20, bias=1, residual=1))
    assert plain.bytes == 2 * (10 * 20 + 4 * 20 + 4 * 10 + 10 + 4 * 10)
    assert plain.flops == 2 * 4 * 10 * 20
    silu = LINEAR_SILU_MUL.work(LINEAR_SILU_MUL.problem(dtype="bf16", batch=4, n=10, k=20))
    assert silu.bytes == 2 * (2 * 10 * 20 + 4 * 20 + 4 * 10)
    assert silu.flops == 2 * 4 * 2 * 10 * 20
    qkv = LINEAR_QKV.work(LINEAR_QKV.problem(dtype="bf16", batch=4, n_q=10, n_kv=5, k=20, bias=1))
    assert qkv.bytes == 2 * (20 * 20 + 4 * 20 + 4 * 20 + 20)


def test_meta_plan_allocates_a_workspace_only_with_a_split() -> None:
    device = resolve("gfx942")
    problem = LINEAR.problem(dtype="bf16", batch=16, n=2048, k=4096, bias=0, residual=1)
    config = LINEAR.default(problem, device)
    split = LINEAR_SPEC.meta_plan(problem, config.replace(SPLIT_K=4), device)
    assert len(split.launches) == 2
    workspace = split.launches[0].args["out_ptr"]
    assert isinstance(workspace, torch.Tensor) and workspace.is_meta and workspace.shape == (4, 16, 2048)
    assert split.outputs[0].shape == (16, 2048)
    assert len(LINEAR_SPEC.meta_plan(problem, config.replace(SPLIT_K=1), device).launches) == 1


def test_illegal_config_names_its_reasons() -> None:
    problem = LINEAR.problem(dtype="bf16", batch=4, n=2048, k=4096, bias=0, residual=0)
    config = Config.of(DOT=1, BLOCK_M=4, BLOCK_N=8, BLOCK_K=1024, SPLIT_K=1, num_warps=4, num_stages=3, maxnreg=0)
    faults = " ".join(LINEAR.faults(config, problem, resolve("sm_90")))
    assert "16 rows or more" in faults and "16 columns or more" in faults and "512 deep" in faults
