"""MoE decode in Triton's interpreter: every form and branch of gate_up and down against the fp32 references."""

from __future__ import annotations

import random

import pytest
import torch

from paiton.kernels_triton.moe_down import MOE_DOWN_SPEC, moe_down, plan_moe_down
from paiton.kernels_triton.moe_gate_up import MOE_GATE_UP_SPEC, moe_gate_up, plan_moe_gate_up
from paiton.kernels_triton.spec import Inputs, KernelSpec
from paiton.kernels_triton.tolerance import TOLERANCES
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.moe import MoeProblem

SPECS = [MOE_GATE_UP_SPEC, MOE_DOWN_SPEC]
DEVICE = resolve("gfx942")
DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}

GEMV = Config.of(
    FORM="gemv", BLOCK_M=16, BLOCK_N=16, BLOCK_K=32, SWAP=0, ORDER="rows", XCD_REMAP=0, num_warps=1, num_stages=1
)
TILE = GEMV.replace(FORM="expert", BLOCK_N=32, ORDER="cols")
BRANCHES = {
    "gemv": GEMV,
    # 512 elements are a load of 16 bytes for each of 64 threads: the activations are then loaded as a vector.
    "gemv-row-spans": GEMV.replace(BLOCK_K=512),
    "gemv-cols-xcd": GEMV.replace(ORDER="cols", XCD_REMAP=1),
    "tile": TILE,
    "tile-swap": TILE.replace(SWAP=1),
    "tile-rows-xcd": TILE.replace(ORDER="rows", XCD_REMAP=1),
    "tile-swap-cols-xcd": TILE.replace(SWAP=1, BLOCK_K=16, XCD_REMAP=1),
}
IDS = torch.tensor([[3, 1], [0, 3], [1, 2]], dtype=torch.int32)
EACH_SPEC = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
EACH_BRANCH = pytest.mark.parametrize("branch", BRANCHES.values(), ids=BRANCHES.keys())
EACH_FORM = pytest.mark.parametrize("form", [GEMV, TILE], ids=["gemv", "tile"])


def problem_of(spec: KernelSpec, batch: int = 3, dtype: str = "fp32", **dims: int) -> MoeProblem:
    sizes = {"experts": 4, "top_k": 2, "hidden": 40, "inter": 24, **dims}
    return MoeProblem(kernel=spec.name, dtype=dtype, batch=batch, **sizes)


def named(spec: KernelSpec, config: Config) -> Config:
    """The config with the kernel's own word for its GEMV form."""
    words = {"gemv": "pair" if spec is MOE_GATE_UP_SPEC else "token"}
    form = config.word("FORM")
    return config.replace(FORM=words.get(form, form))


def check(spec: KernelSpec, inputs: Inputs, config: Config) -> None:
    """Run on outputs full of NaN, so that a store that is missed shows."""
    plan = spec.plan(*inputs, config=named(spec, config), device=DEVICE)
    (output,) = plan.outputs
    output.fill_(float("nan"))
    actual = plan.run()[0]
    tolerance = TOLERANCES[DTYPE_NAMES[output.dtype]]
    expected = spec.reference(*inputs)[0]
    torch.testing.assert_close(actual, expected, rtol=tolerance.relative, atol=tolerance.absolute)


def with_ids(inputs: Inputs, ids: torch.Tensor) -> Inputs:
    return (*inputs[:2], ids.to(torch.int32), *inputs[3:])


@EACH_SPEC
@EACH_BRANCH
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_matches_reference(spec: KernelSpec, branch: Config, dtype: str) -> None:
    """Neither hidden 40 nor inter 24 is a multiple of a block, so every mask is used."""
    check(spec, spec.make_inputs(problem_of(spec, dtype=dtype), torch_device="cpu", seed=1), branch)


@EACH_SPEC
@EACH_FORM
def test_blocks_that_divide_the_weights(spec: KernelSpec, form: Config) -> None:
    """The loads without a mask."""
    problem = problem_of(spec, hidden=64, inter=32)
    check(spec, spec.make_inputs(problem, torch_device="cpu", seed=2), form)


@EACH_SPEC
@EACH_FORM
def test_a_second_run_gives_the_same_bits(spec: KernelSpec, form: Config) -> None:
    """Nothing is added to what the outputs or the workspace held."""
    inputs = spec.make_inputs(problem_of(spec), torch_device="cpu", seed=15)
    plan = spec.plan(*inputs, config=named(spec, form), device=DEVICE)
    first = plan.run()[0].clone()
    assert torch.equal(plan.run()[0], first)


@EACH_SPEC
@EACH_FORM
@pytest.mark.parametrize("top_k", [1, 3])
def test_one_token(spec: KernelSpec, form: Config, top_k: int) -> None:
    problem = problem_of(spec, batch=1, experts=3, top_k=top_k)
    check(spec, spec.make_inputs(problem, torch_device="cpu", seed=3), form)


@EACH_SPEC
@pytest.mark.parametrize(("form", "batch"), [(GEMV, 4), (TILE, 17)], ids=["gemv", "tile"])
def test_all_tokens_to_one_expert(spec: KernelSpec, form: Config, batch: int) -> None:
    """17 rows are one more than a tile; the other experts have none."""
    inputs = spec.make_inputs(problem_of(spec, batch=batch, top_k=1), torch_device="cpu", seed=4)
    check(spec, with_ids(inputs, torch.full((batch, 1), 3)), form)


@EACH_SPEC
@pytest.mark.parametrize("swap", [0, 1])
def test_an_expert_with_none_and_one_with_all(spec: KernelSpec, swap: int) -> None:
    """16 rows fill a tile to the last; expert 2 has none."""
    inputs = spec.make_inputs(problem_of(spec, batch=16), torch_device="cpu", seed=5)
    others = torch.tensor([0, 1] * 8)
    check(spec, with_ids(inputs, torch.stack([torch.full((16,), 3), others], 1)), TILE.replace(SWAP=swap))


@EACH_SPEC
@pytest.mark.parametrize(("block_m", "search_elements"), [(16, 256), (32, 512), (64, 4096)])
def test_more_pairs_than_one_chunk_of_the_search(
    spec: KernelSpec, block_m: int, search_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """66 pairs in chunks of 16 and, as they are at BLOCK_M 64, of 64; three experts of 22 rows on average."""
    monkeypatch.setattr(f"{spec.plan.__module__}.SEARCH_ELEMENTS", search_elements)
    problem = problem_of(spec, batch=33, experts=3, hidden=16, inter=16)
    inputs = spec.make_inputs(problem, torch_device="cpu", seed=6)
    check(spec, inputs, TILE.replace(BLOCK_M=block_m, BLOCK_N=16, BLOCK_K=16))


@EACH_BRANCH
def test_gate_up_takes_strided_rows(branch: Config) -> None:
    """Views into larger tensors: rows and experts apart, and rows that start at odd offsets."""
    problem = problem_of(MOE_GATE_UP_SPEC, experts=8, hidden=60, inter=40)
    x, w13, _ = MOE_GATE_UP_SPEC.make_inputs(problem, torch_device="cpu", seed=7)
    check(MOE_GATE_UP_SPEC, (x[:, 5:45], w13[::2, :48, 5:45], IDS), branch)


@EACH_BRANCH
def test_down_takes_strided_rows(branch: Config) -> None:
    problem = problem_of(MOE_DOWN_SPEC, experts=8, hidden=60, inter=40)
    h, w2, _, weights, residual = MOE_DOWN_SPEC.make_inputs(problem, torch_device="cpu", seed=8)
    check(MOE_DOWN_SPEC, (h[:, 7:31], w2[::2, :40, 7:31], IDS, weights, residual[:, 3:43]), branch)


@EACH_BRANCH
@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.bfloat16])
def test_down_without_residual(branch: Config, weights_dtype: torch.dtype) -> None:
    problem = problem_of(MOE_DOWN_SPEC, dtype="bf16")
    h, w2, ids, weights, _ = MOE_DOWN_SPEC.make_inputs(problem, torch_device="cpu", seed=9)
    check(MOE_DOWN_SPEC, (h, w2, ids, weights.to(weights_dtype)), branch)


@pytest.mark.parametrize("arch", ["gfx942", "sm_90"])
@EACH_SPEC
def test_random_legal_configs_are_right(spec: KernelSpec, arch: str) -> None:
    problem = problem_of(spec, batch=2, experts=3, hidden=24, inter=20, dtype="fp16")
    inputs = spec.make_inputs(problem, torch_device="cpu", seed=10)
    feasible = spec.space.enumerate(problem, resolve(arch))
    forms = feasible.columns()["FORM"]
    tiles = [row for row, form in enumerate(forms) if form == "expert"]
    others = [row for row, form in enumerate(forms) if form != "expert"]
    rng = random.Random(11)
    for row in (*rng.sample(tiles, 6), *rng.sample(others, 4)):
        check(spec, inputs, feasible.config(row))


def test_references_are_the_formula() -> None:
    """Against a loop over pairs in fp64, written from the formula; and the inputs stay as they were."""
    x, w13, ids = gate_up = MOE_GATE_UP_SPEC.make_inputs(problem_of(MOE_GATE_UP_SPEC), torch_device="cpu", seed=12)
    _, w2, _, weights, residual = MOE_DOWN_SPEC.make_inputs(problem_of(MOE_DOWN_SPEC), torch_device="cpu", seed=13)
    before = [tensor.clone() for tensor in (*gate_up, w2, weights, residual)]
    out = residual.double()
    rows = []
    for token in range(3):
        for choice in range(2):
            gate, up = (w13[ids[token, choice]].double() @ x[token].double()).chunk(2)
            rows.append(gate / (1 + torch.exp(-gate)) * up)
            out[token] += weights[token, choice] * (w2[ids[token, choice]].double() @ rows[-1])
    (h,) = MOE_GATE_UP_SPEC.reference(*gate_up)
    torch.testing.assert_close(h.double(), torch.stack(rows), rtol=2e-5, atol=2e-5)
    down = MOE_DOWN_SPEC.reference(h, w2, ids, weights, residual)[0]
    torch.testing.assert_close(down.double(), out, rtol=2e-5, atol=2e-5)
    for tensor, copy in zip((*gate_up, w2, weights, residual), before, strict=True):
        assert torch.equal(tensor, copy)


@EACH_SPEC
def test_inputs_route_each_token_to_distinct_experts(spec: KernelSpec) -> None:
    ids = spec.make_inputs(problem_of(spec, batch=50, experts=6, top_k=4), torch_device="cpu", seed=14)[2]
    assert ids.dtype == torch.int64 and ids.min() >= 0 and ids.max() == 5
    assert all(len(row.unique()) == 4 for row in ids)


@EACH_FORM
def test_no_tokens(form: Config) -> None:
    w13, w2 = torch.ones(4, 32, 16), torch.ones(4, 16, 16)
    ids = torch.empty(0, 2, dtype=torch.int32)
    h = moe_gate_up(torch.empty(0, 16), w13, ids, config=named(MOE_GATE_UP_SPEC, form), device=DEVICE)
    assert h.shape == (0, 16)
    out = moe_down(h, w2, ids, torch.empty(0, 2), config=named(MOE_DOWN_SPEC, form), device=DEVICE)
    assert out.shape == (0, 16)


@EACH_SPEC
def test_plan_needs_no_data_and_keeps_the_batch_out_of_the_binary(spec: KernelSpec) -> None:
    plans = [
        spec.meta_plan(problem_of(spec, batch=batch, hidden=2048, inter=768), named(spec, form), DEVICE)
        for batch in (1, 48)
        for form in (GEMV, TILE)
    ]
    assert all(output.is_meta for plan in plans for output in plan.outputs)
    for small, large in zip(plans[:2], plans[2:], strict=True):
        for first, second in zip(small.launches, large.launches, strict=True):
            assert first.constexprs == second.constexprs
            assert first.args["batch"] == 1 and second.args["batch"] == 48


def test_gate_up_refuses_what_it_cannot_take() -> None:
    x, w13, ids = torch.ones(3, 16), torch.ones(4, 32, 16), torch.zeros(3, 2, dtype=torch.int32)
    config = named(MOE_GATE_UP_SPEC, GEMV)

    def refuses(match: str, *inputs: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=match):
            plan_moe_gate_up(*inputs, config=config, device=DEVICE)

    refuses("do not take rows", torch.ones(3, 17), w13, ids)
    refuses("do not take rows", x, w13[0], ids)
    refuses("rows are torch.float16", x.half(), w13, ids)
    refuses("rows are torch.int64", x.long(), w13.long(), ids)
    refuses("last axis must be contiguous", torch.ones(16, 3).T, w13, ids)
    refuses("last axis must be contiguous", x, torch.ones(4, 16, 32).transpose(1, 2), ids)
    refuses("contiguous int32 or int64", x, w13, ids.short())
    refuses("contiguous int32", x, w13, torch.zeros(2, 3, dtype=torch.int32).T)
    refuses("top_k=5 is outside 1..experts=4", x, w13, torch.zeros(3, 5, dtype=torch.int32))
    refuses("do not fit together", torch.ones(4, 16), w13, ids)
    refuses("do not fit together", x, torch.ones(4, 31, 16), ids)
    long = torch.empty(1 << 20, 16, device="meta"), torch.empty(4, 1024, 16, device="meta")
    refuses("pass the 2147483647", *long, torch.empty(1 << 20, 4, dtype=torch.int32, device="meta"))


def test_down_refuses_what_it_cannot_take() -> None:
    h, w2, ids = torch.ones(6, 16), torch.ones(4, 32, 16), torch.zeros(3, 2, dtype=torch.int32)
    weights, residual = torch.ones(3, 2), torch.ones(3, 32)
    config = named(MOE_DOWN_SPEC, GEMV)

    def refuses(match: str, *inputs: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=match):
            plan_moe_down(*inputs, config=config, device=DEVICE)

    refuses("h has 5 rows", h[:5], w2, ids, weights)
    refuses("routing weights must be", h, w2, ids, torch.ones(3, 3))
    refuses("routing weights must be", h, w2, ids, ids)
    refuses("routing weights must be", h, w2, ids, torch.ones(2, 3).T)
    refuses("residual must be", h, w2, ids, weights, torch.ones(3, 31))
    refuses("residual must be", h, w2, ids, weights, residual.half())
    refuses("residual must be", h, w2, ids, weights, torch.ones(32, 3).T)
