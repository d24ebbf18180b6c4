"""Which neighbour gets a residual sum, and what else the joins leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from paiton.compiler import gpu, selection
from paiton.compiler.compose import JOINS, compose
from paiton.compiler.decide import decide
from paiton.compiler.graph_copy import copy_module
from paiton.compiler.patterns import add_rms_norm, linear, rms_norm
from paiton.compiler.rewriter import Rewriter
from paiton.compiler.site import Status
from paiton.search_spaces.arch import device_named
from paiton.search_spaces.registry import space_of

from .rewriting import Captured, capture, operators
from .stored import row, write

CPU = torch.device("cpu")
MI300X = device_named("MI300X")
ROWS, WIDTH, HIDDEN = 4, 64, 32


@pytest.fixture(autouse=True)
def _mi300x(database: Path) -> Iterator[None]:
    gpu.stand_in(CPU, MI300X)
    yield
    gpu.stand_in(CPU, None)


WEIGHT, SCALE = torch.nn.Parameter(torch.randn(HIDDEN, WIDTH)), torch.nn.Parameter(torch.randn(HIDDEN))


def block(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A projection, its residual sum and the norm of it: the sum goes on as well."""
    total = residual + functional.linear(x, WEIGHT)
    wide = total.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return SCALE * wide.to(x.dtype), total


def store(path: Path, residual: int, us: float) -> None:
    problem = space_of("linear").problem(dtype="fp32", batch=ROWS, n=HIDDEN, k=WIDTH, bias=0, residual=residual)
    write(path, row(problem, config=space_of("linear").default_config(problem, MI300X), us=us))


@pytest.fixture(scope="module")
def captured() -> Captured:
    return capture(block, torch.randn(ROWS, WIDTH), torch.randn(ROWS, HIDDEN))[0]


def composed(captured: Captured, disabled: Any = (), decides: bool = False) -> Rewriter:
    """The rewritten graph, whose values are checked."""
    rewriter = Rewriter(copy_module(captured.module))
    for pattern in (rms_norm.PATTERN, add_rms_norm.PATTERN, linear.PATTERN):
        rewriter.run(pattern)
    selection.reload()
    compose(rewriter, disabled)
    if decides:
        decide(rewriter)
    rewriter.sweep()
    rewriter.graph.lint()
    rewriter.module.recompile()
    torch.testing.assert_close(captured.run(rewriter.module), captured.run())
    return rewriter


def test_without_rows_the_norm_keeps_the_sum(captured: Captured) -> None:
    assert operators(composed(captured).graph) == ["linear", "add_rms_norm"]


def test_a_faster_linear_with_residual_gets_the_sum(captured: Captured, database: Path) -> None:
    store(database, 0, us=9.0)
    store(database, 1, us=5.0)
    rewriter = composed(captured)
    assert operators(rewriter.graph) == ["linear", "rms_norm"]
    (lost,) = (site for site in rewriter.sites if site.pattern == "add_rms_norm")
    assert lost.status is Status.LEFT
    assert "cheaper as the last step of linear" in lost.reason


def test_a_slower_linear_with_residual_does_not(captured: Captured, database: Path) -> None:
    store(database, 0, us=3.0)
    store(database, 1, us=12.0)
    assert operators(composed(captured).graph) == ["linear", "add_rms_norm"]


def test_the_norm_behind_a_join_is_decided_by_itself(captured: Captured, database: Path) -> None:
    """linear takes the sum, and Inductor the norm, which it makes in one kernel as we do."""
    store(database, 0, us=9.0)
    store(database, 1, us=1.0)
    rewriter = composed(captured, decides=True)
    assert operators(rewriter.graph) == ["linear"]
    (site,) = rewriter.replaced()
    assert site.pattern == "linear_residual" and site.reason.endswith("kept")


def test_a_disabled_join_is_not_run(captured: Captured, database: Path) -> None:
    store(database, 0, us=9.0)
    store(database, 1, us=5.0)
    names = [join.name for join in JOINS]
    assert operators(composed(captured, names).graph) == ["linear", "add_rms_norm"]


def test_on_a_cpu_the_norm_keeps_the_sum(captured: Captured, database: Path) -> None:
    store(database, 1, us=1.0)
    gpu.stand_in(CPU, None)
    assert operators(composed(captured).graph) == ["linear", "add_rms_norm"]
