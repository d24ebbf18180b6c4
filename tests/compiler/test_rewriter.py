"""The rewriter: values replaced only by equal ones, writes kept, and every step taken back without a trace."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from paiton.compiler import passes
from paiton.compiler.compose import compose
from paiton.compiler.graph_copy import copy_module
from paiton.compiler.ops.linear import LINEAR
from paiton.compiler.ops.norm import RMS_NORM
from paiton.compiler.patterns import add_rms_norm, linear, qkv, rms_norm, rope, swiglu
from paiton.compiler.rewriter import Pattern, Rewriter, single
from paiton.compiler.site import Reject, Status, need

from .rewriting import Captured, capture, operators, rewrite_and_compare, rewrite_graph, writes
from .tiny_models import make_tiny, static_cache, tokens

PATTERNS = [each.PATTERN for each in (rms_norm, rope, add_rms_norm, swiglu, qkv, linear)]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Dynamo warns of functools.lru_cache in transformers

H = 8


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def _block(x, norm, wq, wk, wv, wo):
    """A layer of everything there is, on [2, 3, H]."""
    residual = x
    for _ in range(2):
        y = _norm(x, norm)
        q, k, v = F.linear(y, wq), F.linear(y, wk), F.linear(y, wv)
        x = residual + F.linear(q + k.repeat(1, 1, 2) * v.sum(-1, keepdim=True), wo)
        y = _norm(x, norm)
        residual = x
        x = x + F.linear(F.silu(F.linear(y, wq)) * F.linear(y, wo), wo)
    return _norm(x, norm)


def _block_inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    sizes = ((2, 3, H), (H,), (H, H), (H // 2, H), (H // 2, H), (H, H))
    return tuple(torch.randn(*size, generator=generator) * 0.5 for size in sizes)


@functools.cache
def _block_graph() -> Captured:
    """Captured once, and no fixture: hypothesis asks for it in every example."""
    return capture(_block, *_block_inputs())[0]


def _decode_graph() -> Captured:
    model = make_tiny("qwen3", layers=1)
    mask = {"full_attention": torch.ones(2, 1, 1, 32, dtype=torch.bool)}
    inputs = {"attention_mask": mask, "position_ids": torch.full((2, 1), 3), "past_key_values": static_cache(model)}
    return capture(model, tokens()[:, :1], **inputs)[0]


@pytest.fixture(scope="module")
def decode() -> Captured:
    """One decode step of a Qwen3 layer with a static cache."""
    return _decode_graph()


def _assert_same(captured: Captured, module: fx.GraphModule) -> None:
    """The same outputs, and the same left in the inputs (caches)."""
    torch.testing.assert_close(captured.run(module), captured.run())


def test_the_block_holds_every_pattern_but_the_rotary_embedding() -> None:
    found = set(operators(rewrite_graph(_block_graph().module, PATTERNS).graph))
    assert found == {"rms_norm", "add_rms_norm", "linear_qkv", "linear_silu_mul", "linear"}


# Writes


def test_cache_writes_survive(decode: Captured) -> None:
    before = writes(decode.module.graph)
    assert before.count("index_copy_") == 2
    rewriter = rewrite_graph(decode.module, PATTERNS)
    assert writes(rewriter.graph) == before
    _assert_same(decode, rewriter.module)


def test_dead_code_elimination_of_fx_would_delete_them(decode: Captured) -> None:
    """The reason for a sweep of our own; should FX learn to see method calls, this test says so."""
    copied = copy_module(decode.module)
    copied.graph.eliminate_dead_code()
    assert len(writes(copied.graph)) < len(writes(decode.module.graph))


def test_sweep_deletes_only_what_sites_left_behind() -> None:
    """A value that nobody reads is not ours to delete, nor is a write into it."""

    def function(x, weight):
        unused = torch.zeros(3)
        unused.add_(1)
        y = F.linear(x, weight)
        x.mul_(2)
        return y

    done = rewrite_and_compare(function, torch.randn(2, 3), torch.randn(4, 3), patterns=PATTERNS)
    assert done.operators == {"linear": 1}
    assert writes(done.modules[0].graph) == writes(done.originals[0].graph)
    assert len(done.modules[0].graph.nodes) == len(done.originals[0].graph.nodes)


# Replacing


def _swap(make: Callable[[Rewriter, fx.Node], fx.Node]) -> Pattern:
    """A pattern that replaces every `exp` by what `make` gives."""

    def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str:
        rewriter.replace(group[0], make(rewriter, group[0]))
        return "swapped"

    return Pattern("swap", single(lambda node: node.target == "exp"), match)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda x: x[:1], "output shape"),
        (lambda x: x.double(), "output dtype"),
        (lambda x: x.to("meta"), "output device"),
        (lambda x: (x, x), "not a tensor"),
        (lambda x: x.t().contiguous().t(), "cannot view the new layout"),
    ],
)
def test_only_an_equal_value_takes_a_place(other: Callable[[Any], Any], reason: str) -> None:
    pattern = _swap(lambda rewriter, node: rewriter.emit(node, other, (node.args[0],), like=node))
    captured = capture(lambda x: x.exp().view(-1) + 1, torch.randn(3, 3))[0]
    rewriter = rewrite_graph(captured.module, [pattern])
    assert [site.status for site in rewriter.sites] == [Status.REJECTED]
    assert reason in rewriter.sites[0].detail
    assert str(rewriter.graph) == str(captured.module.graph)


@pytest.mark.parametrize("failure", [Reject("no"), ValueError("a fault of ours"), None])
def test_a_matcher_that_stops_half_way_leaves_no_trace(failure: Exception | None) -> None:
    def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str | None:
        node = group[0]
        first = rewriter.emit_method(node, "exp", (node.args[0],), like=node)
        rewriter.replace(node, rewriter.emit_method(node, "contiguous", (first,), like=node))
        rewriter.retire([node])
        if failure is not None:
            raise failure
        return None

    captured = capture(lambda x: (x.exp() + 1).exp(), torch.randn(3))[0]
    rewriter = rewrite_graph(captured.module, [Pattern("half", single(lambda node: node.target == "exp"), match)])
    assert str(rewriter.graph) == str(captured.module.graph)
    statuses = {Reject: [Status.REJECTED] * 2, ValueError: [Status.ERROR] * 2}.get(type(failure), [])
    assert [site.status for site in rewriter.sites] == statuses


def test_one_faulty_site_costs_only_itself() -> None:
    calls: list[fx.Node] = []

    def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str:
        calls.append(group[0])
        need(len(calls) != 2, "the second one")
        return "fine"

    captured = capture(lambda x: x.exp().exp().exp(), torch.randn(3))[0]
    rewriter = rewrite_graph(captured.module, [Pattern("all", single(lambda node: node.target == "exp"), match)])
    assert [site.status for site in rewriter.sites] == [Status.REPLACED, Status.REJECTED, Status.REPLACED]


def test_the_place_of_what_stood_there_is_kept(decode: Captured) -> None:
    rewriter = rewrite_graph(decode.module, PATTERNS)
    for node in rewriter.graph.nodes:
        if node.target is RMS_NORM.overload or node.target is LINEAR.overload:
            assert node.meta["nn_module_stack"] and "stack_trace" in node.meta
            assert node.meta["example_value"].shape


# Taking back


def _undo_all(rewriter: Rewriter, order: random.Random) -> None:
    while left := rewriter.replaced():
        site = order.choice(left)
        assert rewriter.undo(site, "for the test")
        assert site.status is Status.LEFT and site.reason == "for the test"
        rewriter.graph.lint()


@settings(max_examples=25)
@given(st.randoms(use_true_random=False))
def test_undo_of_everything_in_any_order(order: random.Random) -> None:
    captured = _block_graph()
    rewriter = rewrite_graph(captured.module, PATTERNS, lambda each: _undo_all(each, order))
    assert operators(rewriter.graph) == []
    assert str(rewriter.graph) == str(captured.module.graph)
    assert {site.status for site in rewriter.sites} == {Status.LEFT}


@settings(max_examples=25)
@given(st.randoms(use_true_random=False))
def test_undo_of_some(order: random.Random) -> None:
    """Whatever is taken back, what is left computes the same."""
    captured = _block_graph()

    def undo_some(rewriter: Rewriter) -> None:
        for site in order.sample(rewriter.sites, len(rewriter.sites) // 2):
            was = site.status
            assert rewriter.undo(site, "for the test") == (was is Status.REPLACED)
            rewriter.graph.lint()

    rewriter = rewrite_graph(captured.module, PATTERNS, undo_some)
    standing = [site for site in rewriter.sites if site.status is Status.REPLACED]
    assert len(operators(rewriter.graph)) == len(standing)
    _assert_same(captured, rewriter.module)


@pytest.mark.parametrize("seed", range(4))
def test_undo_in_a_whole_layer(decode: Captured, seed: int) -> None:
    """With every pattern, attention and the joins included."""

    def join_and_undo(rewriter: Rewriter) -> None:
        compose(rewriter, frozenset())
        rewriter.graph.lint()
        assert "attention_decode_fused" in operators(rewriter.graph)
        _undo_all(rewriter, random.Random(seed))

    rewriter = rewrite_graph(decode.module, passes.PATTERNS, join_and_undo)
    assert str(rewriter.graph) == str(decode.module.graph)
    _assert_same(decode, rewriter.module)


def test_undo_brings_the_parts_back() -> None:
    block = _block_graph()
    rewriter = Rewriter(copy_module(block.module))
    for pattern in PATTERNS:
        rewriter.run(pattern)
    whole = rewriter.replaced("add_rms_norm")[0]
    part = whole.parts[0]
    assert part.status is Status.JOINED
    assert not rewriter.undo(part, "it stands inside another")
    assert rewriter.undo(whole, "slower") and not rewriter.undo(whole, "again")
    assert part.status is Status.REPLACED and rewriter.site_of(part.call) is part  # type: ignore[arg-type]
    assert rewriter.undo(part, "slower")
    assert (whole.status, part.status) == (Status.LEFT, Status.LEFT)
    rewriter.sweep()
    rewriter.graph.lint()
    rewriter.module.recompile()
    _assert_same(block, rewriter.module)
