"""Graphs of whole models with one random thing changed: whatever matches then, the result is that of the changed graph.

Dynamo captures a few small models once. An example changes one node of such a graph: a constant, an operand, the
function, the dtype in between, somebody else who reads or writes a value. The changed graph is run as it is and as the
backend rewrites it, with every site and every join; outputs and what is left in the inputs must be equal. Here no
matcher knows in advance what will be odd. test_never_wrong.py has the changes that somebody thought of.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from paiton.compiler.graph_copy import copy_module
from paiton.compiler.options import Options
from paiton.compiler.passes import rewrite
from paiton.compiler.site import Status

from .rewriting import Captured, capture
from .small_models import SMALL, SMALL_EXPERTS
from .tiny_models import make_tiny, static_cache, tokens

EXAMPLES = 200

BASES: dict[str, tuple[str, str | None, str]] = {
    # family, implementation of the experts, regime
    "moe prompt": ("qwen3_moe", "grouped_mm", "no cache"),
    "moe step": ("qwen3_moe", "batched_mm", "step"),
    "shared expert": ("qwen2_moe", "grouped_mm", "no cache"),
    "dense prompt": ("qwen3", None, "prompt"),
    "dense step": ("qwen2", None, "step"),
    "joined residual": ("cohere2", None, "no cache"),
}

_OTHER_FUNCTIONS: dict[Any, tuple[Any, ...]] = {
    operator.add: (operator.sub, operator.mul, torch.maximum),
    operator.mul: (operator.add, operator.sub, torch.minimum),
    operator.neg: (torch.abs, torch.sin),
    operator.truediv: (operator.mul,),
    F.silu: (F.gelu, torch.sigmoid, F.relu),
    torch.rsqrt: (torch.sqrt, torch.reciprocal),
    torch.nn.functional.softmax: (F.log_softmax,),
    torch.sort: (functools.partial(torch.sort, descending=True),),
}
_OTHER_METHODS = {"pow": "mul", "mean": "sum", "silu": "sigmoid", "contiguous": "clone", "rsqrt": "sqrt"}


@functools.cache
def base(name: str) -> Captured:
    """The graph of a model of one layer, and its inputs."""
    family, implementation, regime = BASES[name]
    sizes = SMALL | (SMALL_EXPERTS if family == "qwen3_moe" else {})
    if family == "qwen2_moe":
        sizes |= SMALL_EXPERTS | {"shared_expert_intermediate_size": 32}
    model = make_tiny(family, layers=1, experts_implementation=implementation, **sizes)
    if regime == "no cache":
        (found,) = capture(model, tokens(2, 4) % 64, use_cache=False)
        return found
    length = 1 if regime == "step" else 4
    mask = torch.ones(2, 1, length, 8, dtype=torch.bool).tril(2)
    (found,) = capture(
        model,
        tokens(2, length) % 64,
        past_key_values=static_cache(model, 2, 8),
        attention_mask=mask if "moe" in family else {"full_attention": mask},
        position_ids=torch.arange(2, 2 + length).expand(2, -1),
    )
    return found


# The changes. Each takes the graph, a node and a number, changes something in place and says what; None where it cannot


def _constants(node: fx.Node) -> list[tuple[Any, Callable[[Any], None]]]:
    """The numbers and slices among the arguments, each with a function that puts another in its place."""
    found: list[tuple[Any, Callable[[Any], None]]] = []

    def visit(held: Any, put: Callable[[Any], None]) -> None:
        if isinstance(held, (bool, int, float)):
            found.append((held, put))
        elif isinstance(held, slice):
            for index, part in enumerate((held.start, held.stop)):
                if isinstance(part, int):
                    found.append(
                        (
                            part,
                            lambda new, i=index: put(slice(*(new if i == 0 else held.start, new if i else held.stop))),
                        )
                    )
        elif isinstance(held, (tuple, list)):
            for index, each in enumerate(held):
                visit(each, lambda new, i=index: put(type(held)((*held[:i], new, *held[i + 1 :]))))

    for index in range(len(node.args)):
        visit(node.args[index], lambda new, i=index: node.update_arg(i, new))
    for name in list(node.kwargs):
        visit(node.kwargs[name], lambda new, n=name: node.update_kwarg(n, new))
    return found


def another_constant(graph: fx.Graph, node: fx.Node, number: int) -> str | None:
    constants = _constants(node)
    if not constants:
        return None
    held, put = constants[number % len(constants)]
    number //= len(constants)
    if isinstance(held, bool):
        new: Any = not held
    elif isinstance(held, int):
        new = (held + 1, held - 1, -held, held // 2, 0)[number % 5]
    else:
        new = (held * 1.5 + 0.1, -held, held + 1.0)[number % 3]
    if new == held:
        return None
    put(new)
    return f"{held} -> {new}"


def _is_float(node: fx.Node) -> bool:
    found = node.meta.get("example_value")
    return isinstance(found, torch.Tensor) and found.is_floating_point()


def another_operand(graph: fx.Graph, node: fx.Node, number: int) -> str | None:
    """Some value of equal shape and dtype in the place of one that is read."""
    inputs = [each for each in node.all_input_nodes if isinstance(each.meta.get("example_value"), torch.Tensor)]
    if not inputs or node.op == "output":
        return None
    old = inputs[number % len(inputs)]
    mine = old.meta["example_value"]
    others = [
        each
        for each in graph.nodes
        if each < node and each is not old and isinstance(each.meta.get("example_value"), torch.Tensor)
        and each.meta["example_value"].shape == mine.shape and each.meta["example_value"].dtype == mine.dtype
    ]  # fmt: skip
    if not others:
        return None
    new = others[(number // len(inputs)) % len(others)]
    node.replace_input_with(old, new)
    return f"{old} -> {new}"


def swapped_operands(graph: fx.Graph, node: fx.Node, number: int) -> str | None:
    if len(node.args) < 2 or not all(isinstance(each, fx.Node) for each in node.args[:2]):
        return None
    node.args = (node.args[1], node.args[0], *node.args[2:])
    return "swapped"


def another_function(graph: fx.Graph, node: fx.Node, number: int) -> str | None:
    old = node.target
    if node.op == "call_method" and old in _OTHER_METHODS:
        node.target = _OTHER_METHODS[str(old)]
    elif node.op == "call_function" and old in _OTHER_FUNCTIONS:
        choices = _OTHER_FUNCTIONS[old]
        node.target = choices[number % len(choices)]
    else:
        return None
    return f"{old} -> {node.target}"


def something_in_between(graph: fx.Graph, node: fx.Node, number: int) -> str | None:
    """Every reader gets another value: scaled, shifted, rounded through another dtype, cloned, or one reader only."""
    if not _is_float(node) or node.op == "output":
        return None
    users = list(node.users)
    what = ("scaled", "shifted", "rounded", "cloned", "flipped")[number % 5]
    with graph.inserting_after(node if node.op != "placeholder" else _last_placeholder(graph)):
        if what == "scaled":
            new = graph.call_function(operator.mul, (node, 1.25))
        elif what == "shifted":
            new = graph.call_function(operator.add, (node, 0.25))
        elif what == "rounded":
            new = graph.call_function(_through_half, (node,))
        elif what == "cloned":
            new = graph.call_method("clone", (node,))
        else:
            new = graph.call_function(torch.flip, (node, [-1]))
    chosen = users if (number // 5) % 2 else users[(number // 10) % len(users) :][:1] if users else []
    for user in chosen:
        user.replace_input_with(node, new)
    return f"{what} for {len(chosen)}"


def _through_half(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def _last_placeholder(graph: fx.Graph) -> fx.Node:
    return graph.find_nodes(op="placeholder")[-1]


def read_elsewhere(graph: fx.Graph, node: fx.Node, number: int) -> str | None:
    """One more output."""
    if not isinstance(node.meta.get("example_value"), torch.Tensor) or node.op != "call_function":
        return None
    output = graph.output_node()
    output.args = ((*output.args[0], node),)  # type: ignore[misc]
    return "is an output"


def written(graph: fx.Graph, node: fx.Node, number: int) -> str | None:
    """Written in place, somewhere behind it; through a view, or not."""
    if not _is_float(node):
        return None
    behind = [each for each in graph.nodes if node < each and each.op not in ("output", "placeholder")]
    if not behind:
        return None
    place = behind[(number // 4) % min(len(behind), 24)]
    with graph.inserting_before(place):
        held = node
        if number % 2:
            held = graph.call_method("transpose", (node, 0, -1))
        if number % 4 < 2:
            graph.call_method("mul_", (held, 1.5))
        else:
            graph.call_function(operator.iadd, (held, 0.5))
    return f"written before {place}"


CHANGES = {
    each.__name__: each
    for each in (
        another_constant, another_operand, swapped_operands, another_function, something_in_between, read_elsewhere,
        written,
    )
}  # fmt: skip


# Running


class _Unusable(Exception):
    """The changed graph cannot be run itself."""


def _propagate(module: fx.GraphModule) -> None:
    """Fake values of a changed graph, as Dynamo would have put them there."""
    fakes = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
    mode = next(each.fake_mode for each in fakes if isinstance(each, FakeTensor))

    class Noting(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            found = super().run_node(node)
            if node.op not in ("placeholder", "output"):
                node.meta["example_value"] = found
            return found

    with mode, torch.no_grad():
        Noting(module).run(*fakes)


def changed(name: str, change: str, index: int, number: int) -> tuple[fx.GraphModule, str] | None:
    """A copy of a captured graph with one thing changed, and what; None where it cannot be."""
    module = copy_module(base(name).module)
    nodes = [node for node in module.graph.nodes if node.op not in ("output", "get_attr")]
    node = nodes[index % len(nodes)]
    before = node.format_node()
    said = CHANGES[change](module.graph, node, number)
    if said is None:
        return None
    try:
        module.graph.lint()
        module.recompile()
        _propagate(module)
    except Exception as error:
        raise _Unusable from error
    return module, f"{name}, {change}: {before}: {said}"


def check(name: str, change: str, index: int, number: int) -> Counter[str] | None:
    """The sites of a changed graph, once its result was compared; None where the graph itself does not run."""
    try:
        made = changed(name, change, index, number)
        if made is None:
            return None
        module, said = made
        expected = base(name).run(module)
    except (_Unusable, RuntimeError, IndexError, ValueError, TypeError):
        return None
    done = rewrite(module, Options(sites="all"))
    found = base(name).run(done.module)
    faults = [site for site in done.sites if site.status is Status.ERROR]
    assert not faults, f"{said}: {faults}"
    torch.testing.assert_close(
        found, expected, rtol=2e-3, atol=2e-3, equal_nan=True, msg=lambda text: f"{said}\n{text}"
    )
    return Counter(site.pattern for site in done.sites if site.status is Status.REPLACED)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log every operation that fails on them, as some do after a change."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was


@pytest.mark.parametrize("name", BASES)
def test_unchanged(name: str) -> None:
    """Every base has what can go wrong."""
    captured = base(name)
    done = rewrite(captured.module, Options(sites="all"))
    torch.testing.assert_close(captured.run(done.module), captured.run(), rtol=1e-4, atol=1e-4)
    sites = {site.pattern for site in done.sites if site.status is Status.REPLACED}
    wanted = {
        "moe prompt": {"router", "experts", "qk_norm_rope", "attention", "add_rms_norm", "linear_qkv", "rms_norm"},
        "moe step": {"router", "experts", "attention_cache", "add_rms_norm", "linear_qkv", "linear"},
        "shared expert": {"experts_residual", "linear_silu_mul"},
        "dense prompt": {"qk_norm_rope", "attention", "linear_silu_mul", "linear_qkv"},
        "dense step": {"attention_cache", "linear_silu_mul"},
        "joined residual": {"linear_residual", "attention"},
    }
    assert wanted[name] <= sites


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(BASES)), st.sampled_from(sorted(CHANGES)), st.integers(0, 399), st.integers(0, 9999)
)  # fmt: skip
def test_one_thing_changed(name: str, change: str, index: int, number: int) -> None:
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        sites = check(name, change, index, number)
    assume(sites is not None)
    event(change)
