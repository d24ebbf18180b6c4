"""The experts: both ways of Hugging Face in two versions of it, and blocks with one thing changed, which stay.

transformers 5.23: grouped_mm is sort, gather, histc and cumsum for the offsets, two products, weights, the inverse
permutation, sum; batched_mm is two products of gathered matrices. 5.17 adds what is for experts spread over several
GPUs, on one GPU as well: `clamp` of the ids in batched_mm, and in grouped_mm `clamp_`, `masked_fill_` of the gathered
tokens and `masked_fill` of both products. 5.23 adds those only where the experts are spread. Both versions cast the
sorted ids to float32 for histc on a CPU, to int32 elsewhere, and use an operator of their own in place of
torch's grouped product for other dtypes than bfloat16. The "eager" implementation is a loop over `nonzero`, which
breaks the graph: what remains of it has no anchor.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from paiton.compiler.patterns import experts, router

from ..rewriting import rewrite, rewrite_and_compare, writes
from ..tiny_models import make_tiny

TOKENS, EXPERTS, TOP_K, HIDDEN, INTER = 7, 8, 3, 32, 16
PATTERNS = [router.PATTERN, experts.PATTERN]


def _random(*axes: int) -> torch.Tensor:
    return torch.randn(*axes, generator=torch.Generator().manual_seed(sum(axes))).bfloat16()


class _Block(torch.nn.Module):
    """Router and experts as transformers writes them; `change` alters one thing, `version` is that of transformers."""

    def __init__(self, form: str, version: str = "5.23", change: str = "") -> None:
        super().__init__()
        self.gate = torch.nn.Parameter(_random(EXPERTS + (change == "more_columns"), HIDDEN))
        self.w13 = torch.nn.Parameter(_random(EXPERTS, 2 * INTER, HIDDEN) * HIDDEN**-0.5)
        self.w2 = torch.nn.Parameter(_random(EXPERTS, HIDDEN, INTER) * INTER**-0.5)
        self.bias = torch.nn.Parameter(_random(HIDDEN))
        self.form, self.is_old, self.change = form, version == "5.17", change

    def forward(self, x):
        scores = F.softmax(F.linear(x, self.gate), dtype=torch.float, dim=-1)
        values, ids = torch.topk(scores, TOP_K, dim=-1)
        values /= values.sum(dim=-1, keepdim=True)
        weights = values.to(x.dtype)
        if self.change == "float_weights":
            weights = values + 0
        if self.change == "more_columns":
            ids = ids.clamp(max=EXPERTS - 1)
        if self.change == "ids_written":
            ids[:, 0] = 0
        out = (self.grouped if self.form == "grouped_mm" else self.batched)(x, ids, weights)
        return out, x

    def activation(self, rows):
        change = self.change
        gate, up = torch.split(rows, INTER, dim=-1) if change == "split" else rows.chunk(2, dim=-1)
        if change == "swapped":
            gate, up = up, gate
        if change == "gelu":
            return F.gelu(gate) * up
        if change == "quarters":
            gate, up, *_ = rows.chunk(4, dim=-1)
            gate, up = torch.cat([gate, up], -1), torch.cat([up, gate], -1)
        if change == "written_through_a_view":
            rows.view(-1)[:5] = 0.5
        if change == "silu_in_place":
            return F.silu(gate, inplace=True) * up
        if change == "other_way_round":
            return up * F.silu(gate)
        return F.silu(gate) * up

    def grouped(self, x, ids, weights):
        change, w13, w2 = self.change, self.w13, self.w2
        sample_weights, expert_ids = weights.reshape(-1), ids.reshape(-1)
        sorted_ids, perm = torch.sort(expert_ids, descending=change == "descending")
        selected = x[perm // (TOP_K + 1 if change == "other_k" else TOP_K)]
        sample_weights_sorted = sample_weights if change == "weights_unsorted" else sample_weights[perm]
        counted = sorted_ids.float() if change != "int_histc" else sorted_ids.float().int().float()
        if change == "other_counts":
            counted = (sorted_ids // 2).float()
        counts = torch.histc(counted, bins=EXPERTS, min=0, max=EXPERTS if change == "bins" else EXPERTS - 1)
        offsets = torch.cumsum(counts, dim=0, dtype=torch.int32)
        if self.is_old:
            limit = EXPERTS - 2 if change == "masks_an_expert" else EXPERTS
            sentinels = (sorted_ids >= limit).unsqueeze(-1)
            sorted_ids.clamp_(max=EXPERTS - 1)
            selected.masked_fill_(sentinels, 0.0)
        if change == "other_mask":
            selected.masked_fill_((sample_weights_sorted > 0.5).unsqueeze(-1), 0.0)
        if change == "computed_matrices":
            w13 = w13 * 2
        if change == "tokens_written":
            x.add_(1)
        rows = F.grouped_mm(selected.to(w13.dtype), w13.transpose(-2, -1), offs=offsets)
        if self.is_old:
            rows = rows.masked_fill(sentinels, 0.0)
        rows = self.activation(rows)
        if change == "other_offsets":
            offsets = offsets.flip(0).flip(0)
        product = F.grouped_mm(rows.to(w2.dtype), w2.transpose(-2, -1), offs=offsets)
        if change == "bias":
            product.add_(self.bias)
        if self.is_old:
            product = product.masked_fill(sentinels, 0.0)
        weighted = product * sample_weights_sorted.unsqueeze(-1)
        inverse = torch.empty_like(perm)
        numbers = torch.arange(perm.size(0))
        inverse[perm] = numbers // 2 if change == "other_inverse" else numbers
        if change != "not_restored":
            weighted = weighted[perm if change == "not_inverted" else inverse]
        return self.total(weighted, product, x)

    def batched(self, x, ids, weights):
        change = self.change
        selected = x.repeat_interleave(TOP_K, dim=0)
        if change == "tiled":
            selected = x.repeat(TOP_K, 1)
        sample_weights, expert_ids = weights.reshape(-1), ids.reshape(-1)
        if self.is_old or change == "clamps_an_expert":
            expert_ids = expert_ids.clamp(0, EXPERTS - 1 - (change == "clamps_an_expert"))
        rows = torch.bmm(self.w13[expert_ids], selected.unsqueeze(-1)).squeeze(-1)
        rows = self.activation(rows)
        other_ids = expert_ids.flip(0) if change == "other_ids" else expert_ids
        product = torch.bmm(self.w2[other_ids], rows.unsqueeze(-1)).squeeze(-1)
        weighted = product * (sample_weights[:, None] if change == "getitem" else sample_weights.unsqueeze(-1))
        return self.total(weighted, product, x)

    def total(self, weighted, product, x):
        change = self.change
        if change == "other_sum":
            return weighted.view(TOP_K, x.size(0), HIDDEN).sum(dim=0)
        rows = weighted.view(x.size(0), TOP_K, HIDDEN)
        if change == "mean":
            return rows.mean(dim=1)
        if change == "keeps_axis":
            return rows.sum(dim=1, keepdim=True)
        if change == "sum_in_double":
            return rows.sum(dim=1, dtype=torch.float64).to(x.dtype)
        out = rows.sum(dim=1).to(x.dtype)
        if change == "product_used":
            return out, product
        if change == "written_after":
            out.add_(x)
        return out


FORMS = [(form, version) for form in ("grouped_mm", "batched_mm") for version in ("5.17", "5.23")]


def _call(module):
    (call,) = (node for node in module.graph.nodes if node.name.startswith("experts_default"))
    return call


@pytest.mark.parametrize(("form", "version"), FORMS)
def test_matches(form: str, version: str) -> None:
    done = rewrite_and_compare(_Block(form, version), _random(TOKENS, HIDDEN), patterns=PATTERNS)
    assert done.counts == {"router": 1, "experts": 1}, done.reasons
    (module,) = done.modules
    x, w13, w2, weights, ids, residual = _call(module).args
    assert [x.op, w13.op, w2.op] == ["placeholder"] * 3 and residual is None
    assert weights.args[1] == 0 and ids.args[1] == 1
    # Nothing is left of the block but its inputs, the linear layer of the router, two calls, two items, the output.
    assert len(module.graph.nodes) == 4 + 1 + 2 + 2 + 1 and not writes(module.graph)
    assert f"{form}, top {TOP_K} of {EXPERTS} experts, {HIDDEN} to {INTER}" in done.sites[1].detail


@pytest.mark.parametrize(("form", "version"), FORMS)
def test_matches_without_our_router(form: str, version: str) -> None:
    """The ids are those of torch's top-k then; its division in place is no write to them, and it stays."""
    done = rewrite_and_compare(_Block(form, version), _random(TOKENS, HIDDEN), patterns=PATTERNS[1:])
    assert done.counts == {"experts": 1}, done.reasons
    assert len(writes(done.modules[0].graph)) == 1


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("grouped_mm", "split"),
        ("grouped_mm", "other_way_round"),
        ("grouped_mm", "int_histc"),
        ("grouped_mm", "float_weights"),
        ("batched_mm", "float_weights"),
        ("batched_mm", "getitem"),
    ],
)
def test_matches_other_spellings(form: str, change: str) -> None:
    block = _Block(form, change=change)
    done = rewrite_and_compare(block, _random(TOKENS, HIDDEN), patterns=PATTERNS)
    assert done.counts["experts"] == 1, done.reasons


def test_a_write_after_the_block_stays() -> None:
    """`out += shared` writes what the block made: now it writes what our operation made."""
    done = rewrite_and_compare(
        _Block("grouped_mm", "5.17", "written_after"), _random(TOKENS, HIDDEN), patterns=PATTERNS
    )
    assert done.counts["experts"] == 1 and writes(done.modules[0].graph) == ["add_"]


@pytest.mark.parametrize(("form", "version"), FORMS)
def test_undone_it_is_what_it_was(form: str, version: str) -> None:
    done = rewrite_and_compare(
        _Block(form, version), _random(TOKENS, HIDDEN), patterns=PATTERNS,
        before_sweep=lambda rewriter: [rewriter.undo(site, "slower") for site in reversed(rewriter.replaced())],
    )  # fmt: skip
    names = [[node.name for node in module.graph.nodes] for module in (done.modules[0], done.originals[0])]
    assert names[0] == names[1]


REJECTS = [
    ("grouped_mm", "5.23", "other_k", "not gathered by expert"),
    ("grouped_mm", "5.23", "descending", "not sorted upwards"),
    ("grouped_mm", "5.23", "weights_unsorted", "routing weights are not sorted"),
    ("grouped_mm", "5.23", "bins", "one bin for each expert"),
    ("grouped_mm", "5.23", "other_counts", "not that of the expert ids"),
    ("grouped_mm", "5.23", "other_offsets", "different offsets"),
    ("grouped_mm", "5.23", "other_mask", "masked_fill_ may change something"),
    ("grouped_mm", "5.17", "masks_an_expert", "may change something"),
    ("grouped_mm", "5.23", "computed_matrices", "the experts' matrices are computed"),
    ("grouped_mm", "5.23", "tokens_written", "written in place by add_"),
    ("grouped_mm", "5.23", "bias", "is used elsewhere as well"),
    ("grouped_mm", "5.23", "other_inverse", "no inverse permutation"),
    ("grouped_mm", "5.23", "not_inverted", "no inverse permutation"),
    ("grouped_mm", "5.23", "not_restored", "not restored"),
    ("grouped_mm", "5.23", "gelu", "not silu(gate) * up"),
    ("grouped_mm", "5.23", "swapped", "not halves of one product"),
    ("grouped_mm", "5.23", "quarters", "not halves of one product"),
    ("grouped_mm", "5.23", "written_through_a_view", "writes in between"),
    ("grouped_mm", "5.23", "silu_in_place", "an activation in place"),
    ("grouped_mm", "5.23", "mean", "no sum over"),
    ("grouped_mm", "5.23", "other_sum", "no [tokens, k, hidden] before the sum"),
    ("grouped_mm", "5.23", "keeps_axis", "no sum over"),
    ("grouped_mm", "5.23", "sum_in_double", "another dtype"),
    ("grouped_mm", "5.23", "product_used", "used elsewhere"),
    ("grouped_mm", "5.23", "more_columns", "do not come from a top-k over the 8 experts"),
    ("grouped_mm", "5.23", "ids_written", "written in place by setitem"),
    ("batched_mm", "5.23", "tiled", "tokens are not repeated"),
    ("batched_mm", "5.23", "clamps_an_expert", "different experts"),
    ("batched_mm", "5.23", "other_ids", "not flattened"),
    ("batched_mm", "5.17", "written_through_a_view", "writes in between"),
    ("batched_mm", "5.17", "ids_written", "written in place by setitem"),
]


@pytest.mark.parametrize(("form", "version", "change", "reason"), REJECTS)
def test_rejects(form: str, version: str, change: str, reason: str) -> None:
    done = rewrite_and_compare(_Block(form, version, change), _random(TOKENS, HIDDEN), patterns=PATTERNS)
    assert "experts" not in done.counts
    assert any(reason in each for each in done.reasons), done.reasons


def test_rejects_ids_of_unknown_origin() -> None:
    """A sentinel among them would make the masks do something."""
    block = _Block("grouped_mm", "5.17")
    ids = torch.randint(0, EXPERTS, (TOKENS, TOP_K), generator=torch.Generator().manual_seed(1))
    done = rewrite_and_compare(block.grouped, _random(TOKENS, HIDDEN), ids, _random(TOKENS, TOP_K), patterns=PATTERNS)
    assert len(done.reasons) == 1 and "do not come from a top-k" in done.reasons[0]


KINDS = ["qwen3_moe", "qwen2_moe", "olmoe", "mixtral"]


@pytest.mark.parametrize("form", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face(kind: str, form: str) -> None:
    """Qwen2-MoE has a shared expert beside the others, which stays outside."""
    block = make_tiny(kind, torch.bfloat16, layers=1, experts_implementation=form).model.layers[0].mlp
    done = rewrite_and_compare(block, _random(2, 5, 128), patterns=PATTERNS)
    assert done.counts == {"router": 1, "experts": 1}, done.reasons
    assert not writes(done.modules[0].graph)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["grouped_mm", "batched_mm"])
def test_the_branches_of_a_gpu(form: str, dtype: torch.dtype) -> None:
    """On device "meta" transformers takes every branch that is not a CPU's: histc of int32, torch's grouped product."""
    block = make_tiny("qwen3_moe", dtype, layers=1, device="meta", experts_implementation=form).model.layers[0].mlp
    done = rewrite(block, torch.empty(2, 5, 128, dtype=dtype, device="meta"), patterns=PATTERNS)
    assert done.counts == {"router": 1, "experts": 1}, done.reasons
    assert not writes(done.modules[0].graph)
    if form == "grouped_mm":
        (histogram,) = (node for node in done.originals[0].graph.nodes if node.name == "tokens_per_expert")
        assert histogram.args[0].meta["example_value"].dtype == torch.int32


@pytest.mark.parametrize("form", ["grouped_mm", "batched_mm"])
def test_symbolic_number_of_tokens(form: str) -> None:
    block = make_tiny("qwen3_moe", torch.float32, layers=1, experts_implementation=form).model.layers[0].mlp
    done = rewrite_and_compare(block, _random(2, 5, 128).float(), patterns=PATTERNS, dynamic=True)
    assert done.counts == {"router": 1, "experts": 1}, done.reasons
    assert isinstance(_call(done.modules[0]).meta["example_value"].shape[0], torch.SymInt)


@pytest.mark.parametrize("form", ["grouped_mm", "batched_mm"])
def test_experts_with_biases_stay(form: str) -> None:
    block = make_tiny("gpt_oss", torch.bfloat16, layers=1, experts_implementation=form).model.layers[0].mlp
    done = rewrite(block, _random(2, 5, 128), patterns=PATTERNS)
    assert not done.counts


def test_a_loop_over_the_experts_breaks_the_graph() -> None:
    """The router is found, the experts are not there to be found."""
    block = make_tiny("qwen3_moe", torch.bfloat16, layers=1, experts_implementation="eager").model.layers[0].mlp
    done = rewrite_and_compare(block, _random(1, 3, 128), patterns=PATTERNS)
    assert len(done.modules) > 1 and done.counts == {"router": 1} and not done.reasons
