"""The launcher of every operator, through Triton's interpreter, against its body: on both vendors, tuned and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paiton.compiler import failures, selection
from paiton.compiler.ops.registry import OPERATORS, problems_of

from .op_calls import Call, calls, copied
from .stored import row, write

CALLS = list(calls())


def case_id(call: Call) -> str:
    return f"{call[0]}: {call[1]}"


pytestmark = pytest.mark.usefixtures("database")


def run(name: str, arguments: tuple[Any, ...]) -> Any:
    with torch.no_grad():
        return OPERATORS[name].overload(*arguments)


@pytest.mark.parametrize("device", ["MI300X", "H100"])
@pytest.mark.parametrize("call", CALLS, ids=case_id)
def test_launcher_computes_what_the_body_does(call: Call, device: str) -> None:
    name, _, arguments = call
    mine, theirs = copied(arguments), copied(arguments)
    expected = run(name, theirs)
    with selection.use_device(device):
        got = run(name, mine)
    assert failures.counts() == {} and selection.counts()["default"] == 1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for left, right in zip(mine, theirs, strict=True):
        if isinstance(left, torch.Tensor):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    for each in (got,) if isinstance(got, torch.Tensor) else got:
        assert each.is_contiguous()


@pytest.mark.parametrize("name", OPERATORS)
def test_a_stored_config_is_launched(name: str, database: Path) -> None:
    arguments = next(arguments for each, _, arguments in CALLS if each == name)
    write(database, *(row(problem, us=5.0) for problem in problems_of(name, arguments)[0]))
    expected = run(name, copied(arguments))
    with selection.use_device("MI300X", untuned_too=False):
        got = run(name, copied(arguments))
        (way,) = [known.way for known in selection._state.known.values()]  # type: ignore[union-attr]
    assert way is not None and all(choice.is_tuned and choice.measured_us == 5.0 for choice in way)
    assert selection.counts()["failed"] == 0 and selection.counts()["default"] == 0
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [0, 1], ids=["decode", "grouped"])
def test_experts_take_the_way_that_is_tuned(form: int, database: Path) -> None:
    arguments = next(arguments for _, each, arguments in CALLS if each == "residual")
    problems = problems_of("experts", arguments)[form]
    write(database, *(row(problem) for problem in problems))
    expected = run("experts", arguments)
    with selection.use_device("MI300X"):
        got = run("experts", arguments)
        (known,) = selection._state.known.values()  # type: ignore[union-attr]
    assert known.way is not None
    assert [choice.problem.kernel for choice in known.way] == [problem.kernel for problem in problems]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_untuned_projections_and_prefill_are_torchs() -> None:
    with selection.use_device("H100", untuned_too=False):
        for name, form, arguments in CALLS:
            if name.startswith("linear") or form.startswith("prefill"):
                expected = run(name, arguments)
                torch.testing.assert_close(run(name, arguments), expected, rtol=0, atol=0)
        counts = selection.counts()
    assert counts["torch"] > 0 and counts["default"] == 0
    assert {miss.cell.kernel for miss in selection.misses()} >= {"linear", "linear_qkv", "attention_prefill"}


def test_after_the_context_the_cpu_runs_bodies_again() -> None:
    arguments = CALLS[0][2]
    with selection.use_device("MI300X"):
        run("rms_norm", arguments)
    run("rms_norm", arguments)
    assert sum(selection.counts().values()) == 1


def test_a_compiled_graph_reaches_the_launchers() -> None:
    x, weight = torch.randn(3, 48), torch.randn(48)
    step = torch.compile(lambda x, w: OPERATORS["rms_norm"].overload(x, w, 1e-6) * 2, backend="aot_eager")
    with torch.no_grad():
        expected = step(x, weight)
        with selection.use_device("MI300X"):
            got = step(x, weight)
    assert selection.counts()["default"] == 1
    torch.testing.assert_close(got, expected)


def test_an_empty_batch_needs_no_kernel() -> None:
    with selection.use_device("MI300X"):
        assert run("rms_norm", (torch.ones(0, 8), torch.ones(8), 1e-6)).shape == (0, 8)
    assert selection.counts()["torch"] == 1
