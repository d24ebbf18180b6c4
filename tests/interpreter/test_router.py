"""The router in Triton's interpreter against the reference, and the search space around it."""

from __future__ import annotations

import pytest
import torch

from paiton.kernels_triton.router import ROUTER_SPEC as SPEC
from paiton.kernels_triton.router import plan_router, router, router_reference
from paiton.search_spaces.arch import Device, known_devices, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.router import RouterProblem

DEVICE = resolve("gfx942")
CONFIG = Config.of(BLOCK_T=4, num_warps=4)


def problem_of(
    batch: int, dtype: str = "bf16", experts: int = 128, top_k: int = 8, renormalize: int = 1
) -> RouterProblem:
    return RouterProblem(
        kernel="router", dtype=dtype, batch=batch, experts=experts, top_k=top_k, renormalize=renormalize
    )


def check(logits: torch.Tensor, top_k: int, renormalize: bool, config: Config = CONFIG) -> None:
    """With fp32 weights the fp32 rounding of exp and sum is all that may differ, whatever the logits are."""
    plan = plan_router(logits, top_k, renormalize, torch.float32, config=config, device=DEVICE)
    plan.outputs[0].fill_(float("nan"))
    plan.outputs[1].fill_(-1)
    weights, ids = plan.run()
    expected_weights, expected_ids = router_reference(logits, top_k, renormalize, torch.float32)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (8, 2), (10, 3), (60, 6), (128, 8), (129, 129)])
@pytest.mark.parametrize("renormalize", [0, 1])
def test_matches_reference(dtype: str, experts: int, top_k: int, renormalize: int) -> None:
    problem = problem_of(5, dtype, experts, top_k, renormalize)
    check(*SPEC.make_inputs(problem, torch_device="cpu", seed=1))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_gives_what_hugging_face_gives(dtype: str, renormalize: bool) -> None:
    """Types and values of Qwen3MoeTopKRouter; a weight next to the middle of two numbers may round either way."""
    logits, top_k, _ = SPEC.make_inputs(problem_of(20, dtype), torch_device="cpu", seed=5)
    expected, expected_ids = logits.softmax(-1, torch.float32).topk(top_k, -1)
    if renormalize:
        expected = expected / expected.sum(-1, keepdim=True)
    weights, ids = router(logits, top_k, renormalize, config=CONFIG, device=DEVICE)
    assert weights.dtype == logits.dtype and ids.dtype == torch.int64
    # Equal logits are in any order in torch.topk, and in the order of their ids in ours.
    assert torch.equal(logits.gather(1, ids), logits.gather(1, expected_ids))
    assert (weights == expected.to(logits.dtype)).float().mean() > (0.98 if dtype != "fp32" else 0.2)
    tolerance = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2e-6}[dtype]
    torch.testing.assert_close(weights.float(), expected, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("arch", ["gfx942", "sm_90"])
@pytest.mark.parametrize("batch", [1, 9])
def test_every_legal_config_is_right(arch: str, batch: int) -> None:
    problem = problem_of(batch, experts=12, top_k=3)
    for config in SPEC.space.enumerate(problem, resolve(arch)):
        check(*SPEC.make_inputs(problem, torch_device="cpu", seed=2), config)


def test_equal_logits_go_to_the_lowest_id() -> None:
    check(torch.tensor([[1.0, 3.0, 3.0, 1.0, 3.0, 1.0]]), 5, True)
    check(torch.zeros(2, 7), 7, False)


def test_large_logits_do_not_overflow() -> None:
    check(torch.tensor([[1e4, 1e4 - 1, -1e4, 1e38, -1e38]]), 5, True)


def test_masked_experts_come_last_and_once() -> None:
    logits = torch.full((1, 6), float("-inf"))
    logits[0, 4] = 0.5
    weights, ids = router(logits, 3, True, config=CONFIG, device=DEVICE)
    assert ids.tolist() == [[4, 0, 1]]
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


def test_not_a_number_shows_in_the_weights_and_not_in_the_ids() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    logits[0, 2] = float("nan")
    weights, ids = router(logits, 6, True, config=CONFIG, device=DEVICE)
    assert sorted(ids[0].tolist()) == list(range(6)) and weights[0].isnan().all()
    torch.testing.assert_close(weights[1:], router_reference(logits[1:], 6, True)[0])


def test_row_strides() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    check(logits[:, 3:19], 4, True)


def test_no_tokens() -> None:
    weights, ids = router(torch.empty(0, 8), 2, True, config=CONFIG, device=DEVICE)
    assert weights.shape == ids.shape == (0, 2)


def test_refuses_what_it_cannot_take() -> None:
    for logits, top_k, message in (
        (torch.zeros(8), 2, "logits have the shape"),
        (torch.zeros(2, 8), 9, "top_k 9 is outside 1..8"),
        (torch.zeros(2, 8), 0, "top_k 0 is outside 1..8"),
        (torch.zeros(2, 8).int(), 2, "logits are torch.int32"),
        (torch.zeros(8, 2).T, 2, "stride 2 on their last axis"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_router(logits, top_k, True, config=CONFIG, device=DEVICE)
    with pytest.raises(ValueError, match=r"weights are torch\.float64"):
        plan_router(torch.zeros(2, 8), 2, True, torch.float64, config=CONFIG, device=DEVICE)


@pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)
def test_space(device: Device) -> None:
    for experts, top_k in ((8, 2), (60, 4), (128, 8), (512, 10)):
        for batch in (1, 2, 3, 32, 4096):
            problem = problem_of(batch, experts=experts, top_k=top_k)
            assert SPEC.space.faults(SPEC.space.default(problem, device), problem, device) == []
            assert 1 <= len(SPEC.space.enumerate(problem, device)) <= 24
    rejected = {
        reason
        for batch, experts in ((1, 128), (64, 16), (64, 512))
        for reason, _ in SPEC.space.enumerate(problem_of(batch, experts=experts), device).rejected
    }
    assert rejected == {constraint.reason for constraint in SPEC.space.constraints}


def test_work() -> None:
    work = SPEC.space.work(problem_of(32))
    assert work.bytes == 32 * 128 * 2 + 32 * 8 * (8 + 2)
    assert work.flops == 32 * 128 * 12
