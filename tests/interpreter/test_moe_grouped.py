"""The grouped MoE layer in Triton's interpreter: every branch against the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from paiton.autotune.aot import units_of
from paiton.kernels_triton import moe_grouped as module
from paiton.kernels_triton.moe_grouped import MOE_GROUPED_SPEC as SPEC
from paiton.kernels_triton.moe_grouped import moe_grouped, moe_grouped_reference, plan_moe_grouped
from paiton.kernels_triton.tolerance import TOLERANCES
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.moe import MoeProblem

DEVICE = resolve("gfx942")
CONFIG = Config.of(BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, GROUP_M=1, num_warps=4, num_stages=2)
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@pytest.fixture(autouse=True)
def _garbage_in_new_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and workspace start as NaN, or as integers that no index may be, so that a missed store shows."""
    empty = torch.empty

    def garbage(*size: int, **options: Any) -> torch.Tensor:
        tensor = empty(*size, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 0x7F7F7F7F)

    monkeypatch.setattr(torch, "empty", garbage)


def problem_of(batch: int, dtype: str = "bf16", **dims: int) -> MoeProblem:
    sizes = {"experts": 6, "top_k": 2, "hidden": 64, "inter": 48, **dims}
    return MoeProblem(kernel="moe_grouped", dtype=dtype, batch=batch, **sizes)


def inputs_of(problem: MoeProblem) -> list[Any]:
    return list(SPEC.make_inputs(problem, torch_device="cpu", seed=3))


def check(inputs: list[Any], config: Config = CONFIG) -> torch.Tensor:
    actual = moe_grouped(*inputs, config=config, device=DEVICE)
    tolerance = TOLERANCES[DTYPES[actual.dtype]]
    (expected,) = moe_grouped_reference(*inputs)
    torch.testing.assert_close(actual, expected, rtol=tolerance.relative, atol=tolerance.absolute)
    return actual


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("batch", "inter"), [(1, 96), (19, 48)])
@pytest.mark.parametrize("block_k", [32, 64])
def test_matches_reference(dtype: str, batch: int, inter: int, block_k: int) -> None:
    """inter 96 and 48 leave part tiles and part steps; hidden 64 never does."""
    check(inputs_of(problem_of(batch, dtype, inter=inter)), CONFIG.replace(BLOCK_K=block_k))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_sizes_that_nothing_divides(dtype: str) -> None:
    check(inputs_of(problem_of(5, dtype, experts=3, top_k=3, hidden=37, inter=41)))


def test_one_expert() -> None:
    check(inputs_of(problem_of(17, "fp32", experts=1, top_k=1)))


@pytest.mark.parametrize("group_m", [1, 4, 32])
@pytest.mark.parametrize("remap", [0, 1])
def test_program_order_does_not_change_a_bit(group_m: int, remap: int) -> None:
    """Experts with one, several and no block of rows."""
    inputs = inputs_of(problem_of(40, "fp32"))
    inputs[3] = torch.where(torch.arange(40)[:, None] < 37, torch.tensor([2, 4]), torch.tensor([5, 0])).to(torch.int32)
    actual = check(inputs, CONFIG.replace(GROUP_M=group_m, XCD_REMAP=remap))
    assert torch.equal(actual, moe_grouped(*inputs, config=CONFIG, device=DEVICE))


def test_all_tokens_to_one_expert() -> None:
    inputs = inputs_of(problem_of(21, top_k=1))
    inputs[3] = torch.full((21, 1), 4, dtype=torch.int32)
    check(inputs)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_residual(dtype: str) -> None:
    inputs = inputs_of(problem_of(4, dtype))
    inputs[5] = torch.randn(4, 100, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype)[:, 20:84]
    check(inputs)


def test_row_strides() -> None:
    """Views into wider tensors, as shards of a checkpoint or a fused projection give them."""
    x, w13, w2, ids, weights, _ = inputs_of(problem_of(5, "fp32", hidden=80, inter=112))
    check([x[:, 8:72], w13[:, 4:100, 8:72], w2[:, 3:67, 5:53], ids, weights, None])


def test_other_types_of_ids_and_weights() -> None:
    x, w13, w2, ids, weights, _ = inputs_of(problem_of(5))
    assert (ids.dtype, weights.dtype) == (torch.int64, x.dtype)
    check([x, w13, w2, ids.int(), weights.float(), None])


def test_experts_of_other_ranks_add_nothing() -> None:
    inputs = inputs_of(problem_of(4, "fp32"))
    inputs[3] = torch.tensor([[-1, 0], [6, 1], [-1, -1], [2, 3]], dtype=torch.int32)
    assert (check(inputs)[2] == 0).all()


def test_padding_does_not_spread_not_a_number() -> None:
    """The padding of a block reads the last token's row; its NaN must stay with that token."""
    inputs = inputs_of(problem_of(3, "fp32"))
    expected = moe_grouped(*inputs, config=CONFIG, device=DEVICE)
    inputs[0][2] = float("nan")
    actual = moe_grouped(*inputs, config=CONFIG, device=DEVICE)
    assert torch.equal(actual[:2], expected[:2]) and actual[2].isnan().all()


@pytest.mark.parametrize("arch", ["gfx942", "gfx950", "sm_90"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_random_legal_configs(arch: str, dtype: str) -> None:
    problem = problem_of(40, dtype, experts=3, top_k=2, hidden=40, inter=56)
    inputs = inputs_of(problem)
    feasible = SPEC.space.enumerate(problem, resolve(arch))
    for index in torch.randperm(len(feasible), generator=torch.Generator().manual_seed(5))[:4].tolist():
        check(inputs, feasible.config(index))


def test_reference_keeps_its_inputs() -> None:
    inputs = inputs_of(problem_of(4))
    inputs[5] = torch.ones_like(inputs[0])
    copies = [tensor.clone() for tensor in inputs]
    moe_grouped_reference(*inputs)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


def test_one_binary_serves_all_batches_and_group_sizes() -> None:
    keys = {
        unit.key
        for batch, group_m in ((1, 1), (16, 1), (256, 1), (4096, 8), (4096, 16))
        for unit in units_of(
            SPEC.meta_plan(problem_of(batch, hidden=2048, inter=768), CONFIG.replace(GROUP_M=group_m), DEVICE), DEVICE
        )
    }
    assert len(keys) == 5


def test_no_tokens() -> None:
    inputs = inputs_of(problem_of(1))
    inputs[0], inputs[3], inputs[4] = inputs[0][:0], inputs[3][:0], inputs[4][:0]
    assert moe_grouped(*inputs, config=CONFIG, device=DEVICE).shape == (0, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(4, 8, 64)}, r"x, w2 and ids have the shapes \(4, 8, 64\)"),
        ({1: torch.zeros(6, 95, 64)}, r"w13 has the shape \(6, 95, 64\), expected \(6, 96, 64\)"),
        ({4: torch.zeros(4, 3)}, r"weights has the shape \(4, 3\)"),
        ({5: torch.zeros(4, 63)}, r"residual has the shape \(4, 63\)"),
        ({2: torch.zeros(6, 64, 48).half()}, r"w2 is torch.float16, x is torch.float32"),
        ({0: torch.zeros(4, 64).int()}, "w13 is torch.float32, x is torch.int32"),
        ({3: torch.zeros(4, 2)}, "ids are torch.float32"),
        ({1: torch.zeros(6, 64, 96).transpose(1, 2)}, "w13 has the stride 96 on its last axis"),
        ({3: torch.zeros(2, 4, dtype=torch.int32).T}, "must be contiguous"),
    ],
)
def test_refuses_what_it_cannot_take(change: dict[int, torch.Tensor], message: str) -> None:
    inputs = inputs_of(problem_of(4, "fp32"))
    for position, tensor in change.items():
        inputs[position] = tensor
    with pytest.raises(ValueError, match=message):
        plan_moe_grouped(*inputs, config=CONFIG, device=DEVICE)


def test_refuses_types_without_a_kernel() -> None:
    x, w13, w2, ids, weights, _ = inputs_of(problem_of(4, "fp32"))
    with pytest.raises(ValueError, match=r"x is torch.float64, expected one of"):
        plan_moe_grouped(x.double(), w13.double(), w2.double(), ids, weights, None, config=CONFIG, device=DEVICE)


def test_refuses_more_than_32_bit_offsets_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_OFFSET", 6143)
    inputs = inputs_of(problem_of(65, "fp32"))
    with pytest.raises(ValueError, match="h spans 6240 elements, at most 6143"):
        plan_moe_grouped(*inputs, config=CONFIG, device=DEVICE)


def test_large_prompts_fit() -> None:
    """65536 tokens of Qwen3-235B-A22B: y passes 4 GiB, which its 64-bit offsets reach."""
    problem = problem_of(65536, experts=128, top_k=8, hidden=4096, inter=1536)
    plan = SPEC.meta_plan(problem, SPEC.space.default_config(problem, DEVICE), DEVICE)
    assert [launch.fn.fn.__name__ for launch in plan.launches] == [
        "_moe_count_kernel", "_moe_scatter_kernel", "_moe_grouped_gate_up_kernel", "_moe_grouped_down_kernel",
        "_moe_sum_kernel",
    ]  # fmt: skip
    assert dataclasses.astuple(SPEC.space.work(problem))[0] == 6.0 * 65536 * 8 * 4096 * 1536
