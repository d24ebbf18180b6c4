"""RMSNorm in its spellings, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from paiton.compiler.patterns.rms_norm import PATTERN

from ..rewriting import Rewritten, backend, capture, operators, rewrite, rewrite_and_compare, rewrite_graph

HIDDEN, EPS = 24, 1e-3
Function = Callable[..., torch.Tensor]


def _tensors(dtype: torch.dtype, rows: tuple[int, ...] = (3, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*rows, HIDDEN, generator=generator) * 2
    return x.to(dtype), (1 + torch.randn(HIDDEN, generator=generator)).to(dtype)


def _llama(x, weight):
    dtype = x.dtype
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(variance + EPS)
    return weight * wide.to(dtype)


def _methods_and_keywords(x, weight):
    wide = x.float()
    root = torch.rsqrt(torch.add(EPS, torch.mean(torch.pow(wide, exponent=2), dim=(-1,), keepdim=True)))
    return torch.mul(root.mul(wide).type(x.dtype), weight)


def _squared_by_itself(x, weight):
    wide = x.float()
    return (wide * (EPS + (wide * wide).mean(wide.ndim - 1, True)).rsqrt()).to(x.dtype) * weight


def _square_function(x, weight):
    wide = x.float()
    return weight.mul((torch.square(wide).mean(dim=-1, keepdim=True).add(EPS).rsqrt() * wide).to(x.dtype))


def _function(x, weight):
    return F.rms_norm(x, (HIDDEN,), weight, EPS)


SPELLINGS = [_llama, _methods_and_keywords, _squared_by_itself, _square_function, _function]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("function", SPELLINGS)
def test_matches(function: Function, dtype: torch.dtype) -> None:
    done = rewrite_and_compare(function, *_tensors(dtype), patterns=[PATTERN])
    assert done.operators == {"rms_norm": 1}
    # Nothing of the original is left: three inputs at most, our call, the output.
    assert [node.op for node in done.modules[0].graph.nodes if node.op != "placeholder"] == ["call_function", "output"]


@pytest.mark.parametrize("rows", [(), (1,), (2, 3, 4)])
def test_matches_any_number_of_axes(rows: tuple[int, ...]) -> None:
    assert rewrite_and_compare(_llama, *_tensors(torch.bfloat16, rows), patterns=[PATTERN]).operators


def test_matches_without_casts_in_fp32() -> None:
    def norm(x, weight):
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))

    assert rewrite_and_compare(norm, *_tensors(torch.float32), patterns=[PATTERN]).operators


def test_weight_before_a_rounding_that_rounds_nothing() -> None:
    """OLMo-2's form is the same in fp32, and another one in half precision."""

    def norm(x, weight):
        wide = x.float()
        return (weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS))).to(x.dtype)

    assert rewrite_and_compare(norm, *_tensors(torch.float32), patterns=[PATTERN]).operators
    done = rewrite_and_compare(norm, *_tensors(torch.bfloat16), patterns=[PATTERN])
    assert done.reasons == ["the weight multiplies before the rounding"]


class _Module(torch.nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(_tensors(torch.float32)[1])
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def test_eps_of_a_module_under_dynamic_shapes() -> None:
    """Dynamo then makes a graph input of the number; reading it must install the guard that recompiles."""
    module = _Module(EPS)
    x = _tensors(torch.float32)[0]
    done = rewrite(module, x, patterns=[PATTERN], dynamic=True)
    assert done.operators == {"rms_norm": 1}
    with torch.no_grad():
        torch.testing.assert_close(done.result, module(x))

    torch._dynamo.reset()
    noted = Rewritten()
    compiled = torch.compile(module, backend=backend([PATTERN], noted), dynamic=True)
    with torch.no_grad():
        for eps in (EPS, 0.5, 0.5, 7.0):
            module.eps = eps
            torch.testing.assert_close(compiled(x), module(x))
            torch.testing.assert_close(compiled(x[:2]), module(x[:2]))
    assert set(noted.counts) == {"rms_norm"} and len(noted.modules) <= 4


def test_parameters_held_by_the_graph_match_as_well() -> None:
    """A weight can be an attribute of the graph instead of an input."""
    captured = capture(_llama, *_tensors(torch.float32))[0]
    module, (x, weight) = captured.module, captured.inputs
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    placeholder = list(module.graph.find_nodes(op="placeholder"))[1]
    with module.graph.inserting_after(placeholder):
        attribute = module.graph.get_attr("weight")
    attribute.meta = dict(placeholder.meta)
    placeholder.replace_all_uses_with(attribute)
    module.graph.erase_node(placeholder)
    rewriter = rewrite_graph(module, [PATTERN])
    assert operators(rewriter.graph) == ["rms_norm"]
    torch.testing.assert_close(rewriter.module(x)[0], _llama(x, weight))


def _norm_with(change: str) -> Function:
    """The written-out form with one thing changed."""

    def norm(x, weight, other):
        wide = x if change == "variance in half precision" else x.float()
        squares = wide.pow(3 if change == "cubes" else 2)
        if change == "product of two":
            squares = wide * other.float()
        axis = -2 if change == "another axis" else -1
        if change == "two axes":
            axis = (-1, -2)
        if change == "fp64 mean":
            mean = squares.mean(axis, keepdim=True, dtype=torch.float64)
        else:
            mean = squares.mean(axis, keepdim=change != "axis dropped")
        if change == "alpha":
            total = torch.add(mean, EPS, alpha=3)
        elif change == "eps per row":
            total = mean + other.float().abs()[..., :1]
        else:
            total = mean + EPS
        root = torch.rsqrt(total)
        if change == "x written meanwhile":
            x.add_(1)
        if change == "root used twice":
            x = x + root
        scaled = (other.float() if change == "another factor" else wide) * root
        normalised = scaled.to(torch.float16 if change == "another rounding" else x.dtype)
        if change == "no weight":
            return normalised * 2
        if change == "one plus weight":
            weight = 1 + weight
        if change == "weight per row":
            weight = other
        if change == "normalised used twice":
            return weight * normalised + normalised
        if change == "weight of another dtype":
            weight = weight.double()
        if change == "division":
            return weight / normalised
        return weight * normalised

    return norm


@pytest.mark.parametrize(
    ("change", "dtype", "reason"),
    [
        ("variance in half precision", torch.bfloat16, "taken in torch.bfloat16"),
        ("cubes", torch.float32, "not of squares"),
        ("product of two", torch.float32, "not of squares"),
        ("another axis", torch.float32, "not over the last axis"),
        ("two axes", torch.float32, "not over the last axis"),
        ("axis dropped", torch.float32, "drops its axis"),
        ("fp64 mean", torch.float32, "changes the dtype"),
        ("alpha", torch.float32, "further arguments"),
        ("eps per row", torch.float32, "eps is not a number"),
        ("x written meanwhile", torch.float32, "written in place"),
        ("root used twice", torch.float32, "is used 2 times"),
        ("another factor", torch.float32, "does not multiply x"),
        ("another rounding", torch.bfloat16, "before the rounding"),
        ("no weight", torch.float32, "a number multiplies"),
        ("one plus weight", torch.float32, "the weight is computed"),
        ("weight per row", torch.float32, "the weight is not [24]"),
        ("normalised used twice", torch.float32, "is used 2 times"),
        ("weight of another dtype", torch.float32, "the weight is computed"),
        ("division", torch.float32, "no weight multiplies"),
    ],
)
def test_rejects(change: str, dtype: torch.dtype, reason: str) -> None:
    x, weight = _tensors(dtype, (HIDDEN,))  # square, so that a dropped axis still broadcasts
    done = rewrite_and_compare(_norm_with(change), x, weight, torch.flip(x, (0,)).clone(), patterns=[PATTERN])
    assert not done.operators
    assert len(done.reasons) == 1 and reason in done.reasons[0], done.reasons


def test_the_unchanged_form_of_the_rejects_matches() -> None:
    x, weight = _tensors(torch.float32, (HIDDEN,))
    assert rewrite_and_compare(_norm_with("nothing"), x, weight, x.clone(), patterns=[PATTERN]).operators


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, weight: F.rms_norm(x, (HIDDEN,), None, EPS), "no weight"),
        (lambda x, weight: F.rms_norm(x, (HIDDEN,), weight), "no eps"),
        (lambda x, weight: F.rms_norm(x, (5, HIDDEN), weight.expand(5, HIDDEN), EPS), "several axes"),
        (lambda x, weight: F.rms_norm(x, (HIDDEN,), weight + 1, EPS), "the weight is computed"),
    ],
)
def test_rejects_the_function(function: Function, reason: str) -> None:
    done = rewrite_and_compare(function, *_tensors(torch.float32), patterns=[PATTERN])
    assert not done.operators and reason in done.reasons[0]


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=str)
def test_rejects_other_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x, weight = _tensors(torch.float32)
    done = rewrite_and_compare(_llama, x.to(dtypes[0]), weight.to(dtypes[1]), patterns=[PATTERN])
    assert not done.operators and ("dtypes differ" in done.reasons[0] or "x is" in done.reasons[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, weight: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + EPS),  # an L2 norm
        lambda x, weight: x * torch.rsqrt(x.var(-1, keepdim=True) + EPS),  # LayerNorm's
        lambda x, weight: x.abs().rsqrt() * weight,
    ],
)
def test_other_reciprocal_roots_are_no_sites(function: Function) -> None:
    done = rewrite_and_compare(function, *_tensors(torch.float32), patterns=[PATTERN])
    assert not done.sites


def test_a_view_that_the_new_layout_forbids() -> None:
    """The operation's output is contiguous; that of the original keeps the order of x's axes."""

    def function(x, weight):
        return _llama(x.transpose(0, 1), weight).transpose(0, 1).view(-1)

    done = rewrite_and_compare(function, *_tensors(torch.float32), patterns=[PATTERN])
    assert not done.operators and "cannot view the new layout" in done.reasons[0]

    def function(x, weight):
        return _llama(x.transpose(0, 1), weight).transpose(0, 1).reshape(-1)

    assert rewrite_and_compare(function, *_tensors(torch.float32), patterns=[PATTERN]).operators
