"""What Inductor relies on: schemas, exact fakes under dynamic shapes, functionalisation, no gradient by accident."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paiton.compiler.ops.define import NoGradient
from paiton.compiler.ops.registry import OPERATORS, asks_of, problems_of
from paiton.search_spaces.registry import KERNEL_NAMES

from .op_calls import Call, calls, copied

CALLS = list(calls())


def case_id(call: Call) -> str:
    return f"{call[0]}: {call[1]}"


def steps(tensor: torch.Tensor) -> list[int]:
    """The strides that matter: those of an axis of length 1 are anything, and Inductor does not look at them."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def test_every_operator_has_a_call() -> None:
    assert {name for name, _, _ in CALLS} == set(OPERATORS)


@pytest.mark.parametrize("call", CALLS, ids=case_id)
def test_schema_and_fake(call: Call) -> None:
    name, _, arguments = call
    with torch.no_grad():
        torch.library.opcheck(
            OPERATORS[name].overload, copied(arguments), test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("name", OPERATORS)
def test_through_aotautograd_with_dynamic_shapes(name: str) -> None:
    arguments = next(arguments for each, _, arguments in CALLS if each == name)
    with torch.no_grad():
        torch.library.opcheck(OPERATORS[name].overload, copied(arguments), test_utils=("test_aot_dispatch_dynamic",))


@pytest.mark.parametrize("call", [call for call in CALLS if call[0] in ("attention", "experts")], ids=case_id)
def test_meta_gives_the_same_sizes_strides_and_dtypes(call: Call) -> None:
    name, _, arguments = call
    on_meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    with torch.no_grad():
        real, meta = OPERATORS[name].overload(*arguments), OPERATORS[name].overload(*on_meta)
    assert (real.shape, real.dtype) == (meta.shape, meta.dtype)
    assert steps(real) == steps(meta)


def test_in_place_writes_survive_a_compiled_graph() -> None:
    *_, arguments = next(call for call in CALLS if call[0] == "attention_decode_fused")
    operator = OPERATORS["attention_decode_fused"].overload

    def step(*arguments: Any) -> torch.Tensor:
        result: torch.Tensor = operator(*arguments) * 2
        return result

    eager, compiled = copied(arguments), copied(arguments)
    with torch.no_grad():
        expected = step(*eager)
        got = torch.compile(step, backend="aot_eager", fullgraph=True)(*compiled)
    assert torch.equal(got, expected)
    assert torch.equal(compiled[7], eager[7]) and torch.equal(compiled[8], eager[8])
    assert not torch.equal(compiled[7], arguments[7])


@pytest.mark.parametrize("call", [call for call in CALLS if call[1] != "odd sizes"], ids=case_id)
def test_where_a_gradient_is_wanted_the_operator_refuses(call: Call) -> None:
    name, _, arguments = call
    wanting = [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
    ]
    with pytest.raises(NoGradient, match=f"paiton::{name} has no gradient.*torch.no_grad"):
        OPERATORS[name].overload(*wanting)
    with torch.inference_mode():
        OPERATORS[name].overload(*(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments))


def test_a_traced_gradient_is_refused_too() -> None:
    weight = torch.nn.Parameter(torch.ones(8))
    operator = OPERATORS["rms_norm"].overload
    compiled = torch.compile(lambda x: operator(x, weight * 2, 1e-6), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="paiton::rms_norm has no gradient"):
        compiled(torch.ones(2, 8))
    with torch.no_grad():
        assert compiled(torch.ones(2, 8)).shape == (2, 8)


@pytest.mark.parametrize("call", CALLS, ids=case_id)
def test_problems_name_kernels_that_exist_and_count_the_tokens(call: Call) -> None:
    name, _, arguments = call
    ways = problems_of(name, arguments)
    assert ways, "every call of the list has a kernel"
    for way in ways:
        for problem in way:
            assert problem.kernel in KERNEL_NAMES
            assert problem.dtype == "fp32"
    assert len(ways) == (2 if name == "experts" else 1)


def test_problems_of_symbolic_sizes_take_the_hint_and_install_no_guard() -> None:
    seen = []

    def backend(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        values = [
            [a.meta["example_value"] if isinstance(a, torch.fx.Node) else a for a in node.args]
            for node in module.graph.find_nodes(op="call_function", target=OPERATORS["rms_norm"].overload)
        ]
        environment = next(v for v in inputs if isinstance(v, torch.SymInt)).node.shape_env
        before = len(environment.guards)
        seen.append((problems_of("rms_norm", values[0]), len(environment.guards) - before))
        return module.forward

    def step(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = OPERATORS["rms_norm"].overload(x, weight, 1e-6)
        return result

    compiled = torch.compile(step, backend=backend, dynamic=True)
    with torch.no_grad():
        compiled(torch.ones(6, 4, 8), torch.ones(8))
    ((((problem,),), guards),) = seen
    assert (problem.batch, problem.dims(), guards) == (24, {"hidden": 8}, 0)


def test_what_no_kernel_computes_has_no_problem() -> None:
    q, mask = torch.ones(1, 4, 3, 16), torch.zeros(1, 1, 3, 3)
    assert asks_of("attention", (q, q, q, mask, 0.25, False, 0)) == ()
    assert asks_of("attention", (q, q, q[..., :8], None, 0.25, True, 0)) == ()
    assert problems_of("rms_norm", (torch.ones(2, 8, dtype=torch.float64), torch.ones(8), 1e-6)) == ()
    assert problems_of("rms_norm", (torch.ones(0, 8), torch.ones(8), 1e-6)) == ()
