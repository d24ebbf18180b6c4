"""QK-norm and RoPE in Triton's interpreter: every branch and layout against the reference, and the search space."""

from __future__ import annotations

import pytest
import torch

from paiton.kernels_triton.qk_norm_rope import QK_NORM_ROPE_SPEC as SPEC
from paiton.kernels_triton.qk_norm_rope import plan_qk_norm_rope, qk_norm_rope, qk_norm_rope_reference
from paiton.kernels_triton.spec import TORCH_DTYPES, Inputs
from paiton.kernels_triton.tolerance import TOLERANCES
from paiton.search_spaces.arch import Device, known_devices, resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import InvalidProblem
from paiton.search_spaces.qk_norm_rope import QkNormRopeProblem

DEVICE = resolve("gfx942")
CONFIG = Config.of(BLOCK_H=4, num_warps=1)
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def problem_of(
    batch: int = 3, dtype: str = "fp32", q_heads: int = 4, kv_heads: int = 2, head_dim: int = 16, qk_norm: int = 1
) -> QkNormRopeProblem:
    return QkNormRopeProblem(
        kernel=SPEC.name, dtype=dtype, batch=batch, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim,
        qk_norm=qk_norm,
    )  # fmt: skip


def inputs_of(problem: QkNormRopeProblem, seed: int = 1) -> Inputs:
    return SPEC.make_inputs(problem, torch_device="cpu", seed=seed)


def check(inputs: Inputs, config: Config = CONFIG) -> tuple[torch.Tensor, ...]:
    """Run on outputs full of NaN, so that a store that is missed shows."""
    plan = plan_qk_norm_rope(*inputs, config=config, device=DEVICE)
    for output in plan.outputs:
        output.fill_(float("nan"))
    tolerance = TOLERANCES[DTYPE_NAMES[inputs[0].dtype]]
    actual = plan.run()
    for one, other in zip(actual, qk_norm_rope_reference(*inputs), strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one, other, rtol=tolerance.relative, atol=tolerance.absolute)
    return actual


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("qk_norm", [0, 1])
@pytest.mark.parametrize(("q_heads", "kv_heads", "head_dim"), [(1, 1, 8), (4, 2, 16), (5, 3, 40), (6, 1, 128)])
@pytest.mark.parametrize("block", [1, 4, 16])
def test_matches_reference(dtype: str, qk_norm: int, q_heads: int, kv_heads: int, head_dim: int, block: int) -> None:
    """Blocks within a token and over several; head 40 is no power of two; 3 tokens leave a part block."""
    problem = problem_of(3, dtype, q_heads, kv_heads, head_dim, qk_norm)
    check(inputs_of(problem), CONFIG.replace(BLOCK_H=block))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_rope_alone_is_equal_bit_by_bit(dtype: str) -> None:
    inputs = inputs_of(problem_of(7, dtype, head_dim=64, qk_norm=0))
    for actual, expected in zip(check(inputs), qk_norm_rope_reference(*inputs), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounds_as_hugging_face(dtype: str) -> None:
    """With the norm only the last bit of rsqrt may differ, which seldom moves a rounding."""
    hf = pytest.importorskip("transformers.models.qwen3.modeling_qwen3", reason="compares with Hugging Face's Qwen3")
    q, k, q_weight, k_weight, cos, sin, eps = inputs = inputs_of(problem_of(11, dtype, head_dim=64))
    expected = []
    for x, weight in ((q, q_weight), (k, k_weight)):
        norm = hf.Qwen3RMSNorm(64, eps).to(x.dtype)
        norm.weight.data.copy_(weight)
        expected.append(norm(x).transpose(1, 2))
    expected = [x.transpose(1, 2) for x in hf.apply_rotary_pos_emb(*expected, cos, sin)]
    for actual, reference, other in zip(check(inputs), qk_norm_rope_reference(*inputs), expected, strict=True):
        assert torch.equal(reference, other)
        assert (actual == other).float().mean() > 0.995
        once = (other.float() * 1.01).to(other.dtype)
        assert (actual == once).float().mean() < 0.5


def layouts(batch: int, tokens: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """q [B, S, 4, 16] and k [B, S, 2, 16] as models hold them."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    row = random(batch, tokens, 8 * 16 + 8)[..., 8:].unflatten(-1, (8, 16))
    by_head = random(batch, 8, tokens, 16).transpose(1, 2)
    last_tokens = random(batch, tokens + 5, 8, 16)[:, 5:]
    return {
        "contiguous": (random(batch, tokens, 4, 16), random(batch, tokens, 2, 16)),
        "one qkv row": (row[:, :, :4], row[:, :, 4:6]),
        "heads before tokens": (by_head[:, :, :4], by_head[:, :, 4:6]),
        "the last tokens": (last_tokens[:, :, :4], last_tokens[:, :, 4:6]),
    }


@pytest.mark.parametrize("layout", list(layouts(1, 1)))
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 5), (5, 1), (3, 5)])
@pytest.mark.parametrize("angles", ["one sequence", "expanded", "each sequence"])
def test_layouts(layout: str, batch: int, tokens: int, angles: str) -> None:
    q, k = layouts(batch, tokens)[layout]
    _, _, *weights, cos, sin, eps = inputs_of(problem_of(batch * tokens))
    if angles == "each sequence":
        cos, sin = cos.view(batch, tokens, 16), sin.view(batch, tokens, 16)
    else:
        cos, sin = cos[:, :tokens], sin[:, :tokens]
    if angles == "expanded":
        cos, sin = cos.expand(batch, tokens, 16), sin.expand(batch, tokens, 16)
    check((q, k, *weights, cos, sin, eps))


def test_tokens_are_one_axis_wherever_strides_allow() -> None:
    """So that decode, one prompt and several prompts share a binary: equal constants, the batch stride 0."""
    generator = torch.Generator().manual_seed(4)
    for batch, tokens, angles in ((1, 12, 1), (12, 1, 12), (3, 4, 3), (12, 1, 1)):
        q, k = torch.randn(batch, tokens, 8, 16, generator=generator).split((6, 2), 2)
        cos = torch.randn(angles, tokens, 16, generator=generator)
        (launch,) = plan_qk_norm_rope(q, k, None, None, cos, cos, config=CONFIG, device=DEVICE).launches
        assert launch.grid == (12 * 6 // 4 + 12 * 2 // 4, 1)
        assert launch.args["tokens"] == 12 and launch.args["q_token_stride"] == 128
        assert all(launch.args[f"{name}_batch_stride"] == 0 for name in ("q", "k", "cos", "sin"))
        assert launch.args["cos_token_stride"] == (16 if (batch, angles) != (12, 1) else 0)
    # Each of several prompts starts again at the first angle: no stride leads from one to the next.
    q, k = torch.randn(3, 4, 8, 16, generator=generator).split((6, 2), 2)
    cos = torch.randn(1, 4, 16, generator=generator)
    (launch,) = plan_qk_norm_rope(q, k, None, None, cos, cos, config=CONFIG, device=DEVICE).launches
    assert launch.grid == (4 * 6 // 4 + 4 * 2 // 4, 3)


def test_a_second_run_gives_the_same_bits_and_leaves_the_inputs() -> None:
    inputs = inputs_of(problem_of())
    before = [value.clone() for value in inputs[:6]]
    plan = plan_qk_norm_rope(*inputs, config=CONFIG, device=DEVICE)
    first = [output.clone() for output in plan.run()]
    assert all(torch.equal(one, other) for one, other in zip(plan.run(), first, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(inputs[:6], before, strict=True))


@pytest.mark.parametrize("arch", ["gfx942", "sm_90"])
@pytest.mark.parametrize("batch", [1, 5])
def test_every_legal_config_is_right(arch: str, batch: int) -> None:
    problem = problem_of(batch)
    for config in SPEC.space.enumerate(problem, resolve(arch)):
        check(inputs_of(problem), config)


def test_no_tokens() -> None:
    for shape in ((0, 1), (1, 0)):
        q_out, k_out = qk_norm_rope(
            torch.empty(*shape, 4, 8), torch.empty(*shape, 2, 8), None, None, torch.empty(*shape, 8),
            torch.empty(*shape, 8), config=CONFIG, device=DEVICE,
        )  # fmt: skip
        assert q_out.shape == (*shape, 4, 8) and k_out.shape == (*shape, 2, 8)


def test_refuses_what_it_cannot_take() -> None:
    q, k, angle, weight = torch.ones(2, 3, 4, 8), torch.ones(2, 3, 2, 8), torch.ones(2, 3, 8), torch.ones(8)
    q_long = torch.empty(1, 1, 1, 1 << 27, 8, device="meta")[..., 0, :].expand(1, 1 << 12, 1 << 20, 8)
    both = torch.ones(2, 3, 6, 8, 2)[..., 0]
    for values, message in (
        ((q[0], k[0], None, None, angle, angle), r"must be \[batch, tokens, heads, head_dim\]"),
        ((q.double(), k, None, None, angle, angle), "q is torch.float64"),
        ((q, k.half(), None, None, angle, angle), "k is torch.float16"),
        ((q, k[:1], None, None, angle, angle), "k has shape"),
        ((q, torch.ones(2, 3, 2, 16), None, None, angle, angle), "k has shape"),
        ((both[:, :, :4], both[:, :, 4:], None, None, angle, angle), "q has stride 2 over its last axis"),
        ((q[..., :7], k[..., :7], None, None, angle[..., :7], angle[..., :7]), "heads of an even size"),
        ((q, k[:, :, :0], None, None, angle, angle), "heads of an even size"),
        ((q, k, None, None, angle[:, :2], angle), "cos has shape"),
        ((q, k, None, None, angle, angle[..., :4]), "sin has shape"),
        ((q, k, None, None, angle, torch.ones(3, 3, 8)), "sin has shape"),
        ((q, k, None, None, angle.half(), angle), "cos is torch.float16"),
        ((q, k, weight, None, angle, angle), "must both be given or both be None"),
        ((q, k, weight, weight[:4], angle, angle), "k_weight has shape"),
        ((q_long, q_long, None, None, *[q_long[..., 0, :]] * 2), "passes the 2147483647 of a 32-bit offset"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_qk_norm_rope(*values, config=CONFIG, device=DEVICE)


def test_plan_needs_no_data() -> None:
    problem = problem_of(64, "bf16", 32, 4, 128)
    plan = SPEC.meta_plan(problem, SPEC.space.default(problem, DEVICE), DEVICE)
    assert plan.launches[0].grid == (64 * 32 // 8 + 64 * 4 // 8, 1)
    assert [tuple(output.shape) for output in plan.outputs] == [(1, 64, 32, 128), (1, 64, 4, 128)]
    assert all(output.is_meta for output in plan.outputs)


@pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)
def test_space(device: Device) -> None:
    for q_heads, kv_heads, head_dim in ((32, 4, 128), (4, 1, 128), (40, 8, 128), (14, 2, 64), (32, 32, 80)):
        for batch in (1, 3, 256, 8192):
            for dtype in ("bf16", "fp32"):
                problem = problem_of(batch, dtype, q_heads, kv_heads, head_dim)
                assert SPEC.space.faults(SPEC.space.default_config(problem, device), problem, device) == []
                assert 1 <= len(SPEC.space.enumerate(problem, device)) <= 24
                if batch * q_heads >= 32:
                    default = SPEC.space.default(problem, device)
                    assert SPEC.space.faults(default, problem, device) == []
    rejected = {
        reason
        for batch in (1, 256)
        for reason, _ in SPEC.space.enumerate(problem_of(batch, "bf16", 32, 4, 128), device).rejected
    }
    assert rejected == {constraint.reason for constraint in SPEC.space.constraints}


def test_defaults_fill_the_chip_first() -> None:
    """A warp per program in decode; more only where every compute unit has programs enough."""
    for arch, heads_per_warp in (("MI300X", 8), ("H200", 4)):
        small, large = problem_of(1, "bf16", 32, 4, 128), problem_of(8192, "bf16", 32, 4, 128)
        assert SPEC.space.default(small, resolve(arch)) == Config.of(BLOCK_H=heads_per_warp, num_warps=1)
        assert SPEC.space.default(large, resolve(arch)) == Config.of(BLOCK_H=4 * heads_per_warp, num_warps=4)


def test_work_is_the_minimum() -> None:
    plain = SPEC.space.work(problem_of(5, "bf16", 32, 4, 128, qk_norm=0))
    normed = SPEC.space.work(problem_of(5, "bf16", 32, 4, 128))
    assert plain.bytes == 2 * (2 * 5 * 36 * 128 + 2 * 5 * 128)
    assert normed.bytes == plain.bytes + 2 * 2 * 128
    assert plain.flops == 3 * 5 * 36 * 128 and normed.flops == 7 * 5 * 36 * 128


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"q_heads": 0}, "q_heads=0 and kv_heads=2 must be positive"),
        ({"kv_heads": 0}, "q_heads=4 and kv_heads=0 must be positive"),
        ({"qk_norm": 2}, "qk_norm=2 is neither 0 nor 1"),
        ({"head_dim": 12}, r"head_dim=12 is not a multiple of 8 in 8\.\.512"),
        ({"head_dim": 1024}, r"head_dim=1024 is not a multiple of 8 in 8\.\.512"),
    ],
)
def test_problems_that_make_no_sense(dims: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidProblem, match=message):
        problem_of(**dims)
