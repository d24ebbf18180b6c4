"""The router: in the spellings of Qwen3-MoE, Qwen2-MoE, OLMoE and Mixtral, and other gating functions, which stay.

transformers 5.17 and 5.23 hold the same forms: Qwen's three take softmax(logits, dtype=float32), divide the top-k
values by their sum in place where `norm_topk_prob` asks for it, and cast them to the model's dtype. Mixtral takes
softmax(logits.float()), always divides, and keeps float32.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from paiton.compiler.patterns.router import PATTERN

from ..rewriting import operators, rewrite, rewrite_and_compare, writes
from ..tiny_models import make_tiny

TOKENS, EXPERTS, TOP_K = 7, 16, 4
Function = Callable[..., object]


def _logits(dtype: torch.dtype = torch.bfloat16, *axes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*(axes or (TOKENS, EXPERTS)), generator=generator).to(dtype)


def _qwen(logits):
    scores = F.softmax(logits, dtype=torch.float, dim=-1)
    values, ids = torch.topk(scores, TOP_K, dim=-1)
    values /= values.sum(dim=-1, keepdim=True)
    return values.to(logits.dtype), ids


def _qwen_without_renormalisation(logits):
    values, ids = torch.topk(F.softmax(logits, dtype=torch.float, dim=-1), TOP_K, dim=-1)
    return values.to(logits.dtype), ids


def _mixtral(logits):
    scores = F.softmax(logits.float(), dim=-1)
    values, ids = torch.topk(scores, TOP_K, dim=-1)
    values /= values.sum(dim=-1, keepdim=True)
    return values, ids


def _methods(logits):
    values, ids = logits.softmax(1, dtype=torch.float32).topk(TOP_K, 1, True)
    return torch.div(values, torch.sum(values, 1, True)).type(logits.dtype), ids


def _float32_without_a_cast(logits):
    values, ids = torch.softmax(logits.to(torch.float32), 1).topk(k=TOP_K, dim=1)
    return values.div(values.sum(-1, keepdim=True)), ids


SPELLINGS = [_qwen, _qwen_without_renormalisation, _mixtral, _methods, _float32_without_a_cast]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", SPELLINGS)
def test_matches(function: Function, dtype: torch.dtype) -> None:
    done = rewrite_and_compare(function, _logits(dtype), patterns=[PATTERN])
    assert done.counts == {"router": 1}, done.reasons
    (module,) = done.modules
    assert [node.op for node in module.graph.nodes] == ["placeholder", *["call_function"] * 3, "output"]
    (call,) = (node for node in module.graph.nodes if node.name.startswith("router_default"))
    weights, ids = done.result
    renormalises = function is not _qwen_without_renormalisation
    assert call.args[1:] == (TOP_K, renormalises, weights.dtype) and ids.dtype == torch.int64


def test_the_division_in_place_is_gone() -> None:
    """It writes what the top-k made, so it must die with it: nothing reads that any more."""
    done = rewrite_and_compare(_qwen, _logits(), patterns=[PATTERN])
    assert writes(done.originals[0].graph) and not writes(done.modules[0].graph)


def test_undone_it_is_what_it_was() -> None:
    done = rewrite_and_compare(
        _qwen, _logits(), patterns=[PATTERN],
        before_sweep=lambda rewriter: [rewriter.undo(site, "slower") for site in rewriter.replaced()],
    )  # fmt: skip
    names = [[node.name for node in module.graph.nodes] for module in (done.modules[0], done.originals[0])]
    assert names[0] == names[1] and done.sites[0].reason == "slower"


def test_symbolic_number_of_tokens() -> None:
    gate = make_tiny("qwen3_moe", torch.bfloat16, layers=1).model.layers[0].mlp.gate
    done = rewrite_and_compare(gate, _logits(torch.bfloat16, 5, 128), patterns=[PATTERN], dynamic=True)
    assert done.counts == {"router": 1}, done.reasons
    (call,) = (node for node in done.modules[0].graph.nodes if node.name.startswith("router_default"))
    assert isinstance(call.meta["example_value"][0].shape[0], torch.SymInt)


def test_other_users_keep_what_they_use() -> None:
    """An auxiliary loss reads the logits, a report the scores, and the weights go on in two ways."""

    def block(logits):
        scores = F.softmax(logits, dtype=torch.float, dim=-1)
        values, ids = torch.topk(scores, TOP_K, dim=-1)
        values = values / values.sum(dim=-1, keepdim=True)
        ids.add_(1)
        return values.to(logits.dtype), values * 2, ids, scores.mean(0), logits.sum()

    done = rewrite_and_compare(block, _logits(), patterns=[PATTERN])
    assert done.counts == {"router": 1} and writes(done.modules[0].graph) == ["add_"]


def _sigmoid(logits):
    values, ids = torch.topk(torch.sigmoid(logits.float()), TOP_K, dim=-1)
    return values / values.sum(dim=-1, keepdim=True), ids


def _bias_that_steers_the_choice(logits):
    scores = F.softmax(logits, dtype=torch.float, dim=-1)
    _, ids = torch.topk(scores + 0.1, TOP_K, dim=-1)
    return scores.gather(1, ids), ids


def _softmax_over_the_chosen(logits):
    values, ids = torch.topk(logits, TOP_K, dim=-1)
    return F.softmax(values, dim=-1, dtype=torch.float), ids


def _softmax_over_the_tokens(logits):
    return torch.topk(F.softmax(logits, dtype=torch.float, dim=0), TOP_K, dim=-1)


def _softmax_in_half_precision(logits):
    return torch.topk(F.softmax(logits, dim=-1), TOP_K, dim=-1)


def _softmax_in_double_precision(logits):
    values, ids = torch.topk(F.softmax(logits.double(), dim=-1), TOP_K, dim=-1)
    return values.float(), ids


def _three_axes(logits):
    return torch.topk(F.softmax(logits[None], dtype=torch.float, dim=-1), TOP_K, dim=-1)


def _smallest(logits):
    return torch.topk(F.softmax(logits, dtype=torch.float, dim=-1), TOP_K, dim=-1, largest=False)


def _in_no_order(logits):
    values, ids = torch.topk(F.softmax(logits, dtype=torch.float, dim=-1), TOP_K, dim=-1, sorted=False)
    return values, ids


def _chosen_among_the_tokens(logits):
    return torch.topk(F.softmax(logits, dtype=torch.float, dim=-1), TOP_K, dim=0)


def _only_ids(logits):
    return torch.topk(F.softmax(logits, dtype=torch.float, dim=-1), TOP_K, dim=-1)[1]


def _renormalised_by(change):
    def router(logits):
        values, ids = torch.topk(F.softmax(logits, dtype=torch.float, dim=-1), TOP_K, dim=-1)
        return change(values), ids

    return router


def _used_before(logits):
    values, ids = torch.topk(F.softmax(logits, dtype=torch.float, dim=-1), TOP_K, dim=-1)
    first = values[:, 0]
    values /= values.sum(dim=-1, keepdim=True)
    return values, ids, first


def _sum_used_elsewhere(logits):
    values, ids = torch.topk(F.softmax(logits, dtype=torch.float, dim=-1), TOP_K, dim=-1)
    total = values.sum(dim=-1, keepdim=True)
    return values / total, ids, total


def _scores_written(logits):
    scores = F.softmax(logits, dtype=torch.float, dim=-1)
    scores.view(-1).mul_(torch.arange(scores.numel()))
    return torch.topk(scores, TOP_K, dim=-1)


def _logits_written(logits):
    scores = F.softmax(logits, dtype=torch.float, dim=-1)
    logits.zero_()
    return torch.topk(scores, TOP_K, dim=-1)


REJECTS = [
    (_sigmoid, "no softmax before the top-k"),
    (_bias_that_steers_the_choice, "no softmax before the top-k"),
    (_softmax_over_the_chosen, "no softmax before the top-k"),
    (_softmax_over_the_tokens, "softmax over another axis"),
    (_softmax_in_half_precision, "softmax in torch.bfloat16"),
    (_softmax_in_double_precision, "softmax in torch.float64"),
    (_three_axes, "not [tokens, experts]"),
    (_smallest, "the smallest"),
    (_in_no_order, "in no particular order"),
    (_chosen_among_the_tokens, "top-k over another axis"),
    (_only_ids, "not taken once each"),
    (_renormalised_by(lambda v: v / v.sum(dim=0, keepdim=True)), "summed otherwise"),
    (_renormalised_by(lambda v: v / v.sum(dim=-1)[:, None]), "summed otherwise"),
    (_renormalised_by(lambda v: v / v.sum(-1, keepdim=True, dtype=torch.float64)), "summed otherwise"),
    (_renormalised_by(lambda v: v / (v.sum(dim=-1, keepdim=True) + 1e-20)), "the sum of the weights is used otherwise"),
    (_renormalised_by(lambda v: v.sum(dim=-1, keepdim=True) / v), "not divided by their sum"),
    (_renormalised_by(lambda v: v.div(v.sum(-1, keepdim=True), rounding_mode="floor")), "not divided by their sum"),
    (_used_before, "used before they are renormalised"),
    (_sum_used_elsewhere, "the sum of the weights is used otherwise"),
    (_scores_written, "written in place by mul_"),
    (_logits_written, "written in place by zero_"),
]


@pytest.mark.parametrize(("function", "reason"), REJECTS, ids=lambda each: getattr(each, "__name__", None))
def test_rejects(function: Function, reason: str) -> None:
    done = rewrite_and_compare(function, _logits(), patterns=[PATTERN])
    assert not done.counts
    assert len(done.reasons) == 1 and reason in done.reasons[0]
    assert operators(done.modules[0].graph) == []


def test_number_of_the_chosen_must_be_static() -> None:
    def router(logits, other):
        return torch.topk(F.softmax(logits, dtype=torch.float, dim=-1), other.shape[0], dim=-1)

    done = rewrite(router, _logits(), torch.zeros(3), patterns=[PATTERN], dynamic=True)
    assert done.reasons == ["number of experts or of the chosen is not static"]


@pytest.mark.parametrize(
    ("kind", "changes", "renormalizes"),
    [
        ("qwen3_moe", {"norm_topk_prob": True}, True),
        ("qwen3_moe", {"norm_topk_prob": False}, False),
        ("qwen2_moe", {}, False),
        ("olmoe", {}, False),
        ("mixtral", {}, True),
    ],
)
def test_hugging_face(kind: str, changes: dict[str, bool], renormalizes: bool) -> None:
    gate = make_tiny(kind, torch.bfloat16, layers=1, **changes).model.layers[0].mlp.gate
    done = rewrite_and_compare(gate, _logits(torch.bfloat16, 5, 128), patterns=[PATTERN])
    assert done.counts == {"router": 1}, done.reasons
    assert ("renormalised" in done.sites[0].detail) == renormalizes


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe"])
def test_sigmoid_routers_of_hugging_face_stay(kind: str) -> None:
    layer = make_tiny(kind, torch.bfloat16, layers=2).model.layers[1]
    done = rewrite(layer.mlp, _logits(torch.bfloat16, 1, 5, 128), patterns=[PATTERN])
    assert not done.counts and done.reasons
    assert all("another gating function" in reason for reason in done.reasons)
