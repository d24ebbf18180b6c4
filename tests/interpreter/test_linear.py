"""The skinny projections in Triton's interpreter: every form, split and fusion against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from paiton.kernels_triton.linear import (
    LINEAR_QKV_SPEC,
    LINEAR_SILU_MUL_SPEC,
    LINEAR_SPEC,
    linear,
    linear_qkv,
    linear_silu_mul,
    plan_linear,
    plan_linear_qkv,
    plan_linear_silu_mul,
)
from paiton.kernels_triton.spec import KernelSpec
from paiton.kernels_triton.tolerance import TOLERANCES
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem

DEVICE = resolve("gfx942")
FMA = Config.of(DOT=0, BLOCK_M=2, BLOCK_N=16, BLOCK_K=128, SPLIT_K=1, XCD_REMAP=0, num_warps=1, num_stages=1)
DOT = Config.of(DOT=1, BLOCK_M=16, BLOCK_N=16, BLOCK_K=64, SPLIT_K=1, XCD_REMAP=0, num_warps=1, num_stages=1)
FORMS = [pytest.param(FMA, id="fma"), pytest.param(DOT, id="dot")]


@dataclass(frozen=True)
class Case:
    """A kernel with all it can fuse, at awkward sizes: columns and k that no block divides."""

    spec: KernelSpec
    dims: dict[str, int]

    def problem(self, dtype: str, batch: int, **dims: int) -> Problem:
        return self.spec.space.problem(dtype=dtype, batch=batch, **{**self.dims, **dims})


CASES = [
    pytest.param(Case(LINEAR_SPEC, {"n": 37, "k": 200, "bias": 1, "residual": 1}), id="linear"),
    pytest.param(Case(LINEAR_SILU_MUL_SPEC, {"n": 37, "k": 200}), id="silu_mul"),
    pytest.param(Case(LINEAR_QKV_SPEC, {"n_q": 40, "n_kv": 19, "k": 200, "bias": 1}), id="qkv"),
]


def check(spec: KernelSpec, problem: Problem, config: Config, seed: int = 0) -> None:
    """Run with outputs and workspace full of NaN, so that a store that is missed shows."""
    check_inputs(spec, spec.make_inputs(problem, torch_device="cpu", seed=seed), problem.dtype, config)


def check_inputs(spec: KernelSpec, inputs: tuple[Any, ...], dtype: str, config: Config) -> None:
    plan = spec.plan(*inputs, config=config, device=DEVICE)
    for output in (*plan.outputs, plan.launches[0].args["out_ptr"]):
        output.fill_(float("nan"))
    tolerance = TOLERANCES[dtype]
    for actual, expected in zip(plan.run(), spec.reference(*inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance.relative, atol=tolerance.absolute)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("config", FORMS)
@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_matches_reference(case: Case, config: Config, split: int, dtype: str) -> None:
    check(case.spec, case.problem(dtype, 3), config.replace(SPLIT_K=split))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("config", FORMS)
@pytest.mark.parametrize("batch", [1, 5])
def test_batches(case: Case, config: Config, batch: int) -> None:
    check(case.spec, case.problem("fp32", batch), config)


@pytest.mark.parametrize("config", FORMS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 128), (17, 129), (16, 127)])
def test_sizes_around_a_block(config: Config, n: int, k: int) -> None:
    check(LINEAR_SPEC, LINEAR_SPEC.space.problem(dtype="fp32", batch=3, n=n, k=k, bias=1, residual=0), config)


@pytest.mark.parametrize(("bias", "residual"), [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("split", [1, 4])
def test_each_fusion_alone(bias: int, residual: int, split: int) -> None:
    problem = LINEAR_SPEC.space.problem(dtype="fp32", batch=2, n=32, k=512, bias=bias, residual=residual)
    check(LINEAR_SPEC, problem, FMA.replace(SPLIT_K=split))


def test_qkv_without_bias() -> None:
    problem = LINEAR_QKV_SPEC.space.problem(dtype="fp32", batch=2, n_q=32, n_kv=16, k=128, bias=0)
    check(LINEAR_QKV_SPEC, problem, DOT)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("config", FORMS)
def test_xcd_remap_and_row_blocks(case: Case, config: Config) -> None:
    """Three blocks of rows, and a grid that is no multiple of the number of XCDs."""
    rows = 2 * config.integer("BLOCK_M") + 1
    check(case.spec, case.problem("fp32", rows, k=64), config.replace(XCD_REMAP=1))


@pytest.mark.parametrize("rows", [64, 128])
def test_high_tiles(rows: int) -> None:
    problem = LINEAR_SILU_MUL_SPEC.space.problem(dtype="fp32", batch=rows + 3, n=40, k=96)
    check(LINEAR_SILU_MUL_SPEC, problem, DOT.replace(BLOCK_M=rows, BLOCK_N=32, BLOCK_K=64))


def test_loop_with_groups_and_rest() -> None:
    """12 steps in groups of 5: the last two fill no group, and the last one hangs over k."""
    problem = LINEAR_SPEC.space.problem(dtype="fp32", batch=2, n=8, k=12 * 128 - 5, bias=0, residual=0)
    inputs = LINEAR_SPEC.make_inputs(problem, torch_device="cpu", seed=0)
    plan = plan_linear(*inputs, config=FMA.replace(BLOCK_N=4), device=DEVICE)
    steps, unroll = plan.launches[0].constexprs["STEPS"], plan.launches[0].constexprs["UNROLL"]
    assert (steps, unroll) == (12, 5)
    check(LINEAR_SPEC, problem, FMA.replace(BLOCK_N=4))


def test_empty_split() -> None:
    """Three steps over four splits: the last has nothing to add and must add zero."""
    problem = LINEAR_SPEC.space.problem(dtype="fp32", batch=2, n=8, k=300, bias=1, residual=1)
    check(LINEAR_SPEC, problem, FMA.replace(SPLIT_K=4))


@pytest.mark.parametrize("config", FORMS)
def test_row_strides(config: Config) -> None:
    problem = LINEAR_SPEC.space.problem(dtype="fp32", batch=3, n=40, k=300, bias=0, residual=1)
    x, _, _, residual = LINEAR_SPEC.make_inputs(problem, torch_device="cpu", seed=0)
    weight = torch.randn(21, 130)
    check_inputs(LINEAR_SPEC, (x[:, 7:137], weight, None, residual[:, 3:24]), "fp32", config)


def test_same_bits_at_every_call() -> None:
    problem = LINEAR_SPEC.space.problem(dtype="fp32", batch=2, n=32, k=512, bias=0, residual=0)
    inputs = LINEAR_SPEC.make_inputs(problem, torch_device="cpu", seed=0)
    config = FMA.replace(SPLIT_K=4)
    first = linear(*inputs, config=config, device=DEVICE)
    assert torch.equal(first, linear(*inputs, config=config, device=DEVICE))


def test_next_row_is_not_read() -> None:
    """A tile hangs over k: what lies behind a row of the weight is the next row and must count for nothing."""
    weight = torch.ones(5, 100)
    weight[1:] = 1e30
    y = linear(torch.ones(1, 100), weight, config=DOT, device=DEVICE)
    assert y[0, 0] == 100 and (y[0, 1:] > 1e31).all()


def test_public_launchers() -> None:
    x, w, v = torch.randn(2, 64), torch.randn(16, 64), torch.randn(8, 64)
    silu = linear_silu_mul(x, w, -w, config=FMA, device=DEVICE)
    gate = x @ w.T
    torch.testing.assert_close(silu, torch.nn.functional.silu(gate) * -gate, rtol=1e-4, atol=1e-4)
    qkv = linear_qkv(x, w, v, -v, config=FMA, device=DEVICE)
    torch.testing.assert_close(qkv, torch.cat([gate, x @ v.T, -(x @ v.T)], 1), rtol=1e-4, atol=1e-4)


def test_no_tokens() -> None:
    y = linear(torch.empty(0, 64), torch.ones(16, 64), config=FMA, device=DEVICE)
    assert y.shape == (0, 16)


def test_refuses_what_it_cannot_take() -> None:
    x, w = torch.ones(2, 64), torch.ones(16, 64)

    def refused(plan: Any, *inputs: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            plan(*inputs, config=FMA, device=DEVICE)

    refused(plan_linear, torch.ones(64), w, match="x is")
    refused(plan_linear, torch.ones(64, 2).T, w, match="x is .* strides")
    refused(plan_linear, x.double(), w.double(), match="x is .* torch.float64")
    refused(plan_linear, x, torch.ones(16, 63), match=r"weight is \(16, 63\)")
    refused(plan_linear, x, w.half(), match="weight is .* torch.float16")
    refused(plan_linear, x, torch.ones(64, 16).T, match="weight has strides")
    refused(plan_linear, x, w, torch.ones(15), match="bias is")
    refused(plan_linear, x, w, None, torch.ones(2, 15), match="residual is")
    refused(plan_linear_silu_mul, x, w, torch.ones(15, 64), match="up_weight is")
    refused(plan_linear_qkv, x, w, w, torch.ones(15, 64), match="v_weight is")
    refused(plan_linear_qkv, x, w, w, w, torch.ones(16), match="only q_bias given")
    refused(plan_linear_qkv, x, w, w, w, *[torch.ones(15)] * 3, match="q_bias is")
