"""Decisions per site: by the database and the model of Inductor's side, deterministic, and fast for 64 layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from paiton.compiler import gpu, selection
from paiton.compiler.compose import compose
from paiton.compiler.decide import decide, operator_calls
from paiton.compiler.graph_copy import copy_module
from paiton.compiler.ops.registry import problems_of
from paiton.compiler.passes import PATTERNS
from paiton.compiler.rewriter import Rewriter
from paiton.compiler.site import Site, Status
from paiton.search_spaces.arch import device_named
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.registry import space_of

from .rewriting import operators
from .stored import row, write
from .tiny_models import make_tiny, static_cache

CPU = torch.device("cpu")
MI300X = device_named("MI300X")
LENGTH = 64


pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def mi300x() -> Iterator[None]:
    """Decisions as on an MI300X; nothing is launched."""
    gpu.stand_in(CPU, MI300X)
    yield
    gpu.stand_in(CPU, None)


def graph_of(kind: str, batch: int = 2, **changes: Any) -> fx.GraphModule:
    """A decode step on a static cache, as Dynamo captures it."""
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append(module)
        return module.forward

    model = make_tiny(kind, **changes)
    cache = static_cache(model, batch, LENGTH)
    mask = (torch.arange(LENGTH) <= 5).expand(batch, 1, 1, LENGTH)
    with torch.no_grad():
        torch.compile(model, backend=keep, fullgraph=True)(
            torch.ones(batch, 1, dtype=torch.long), past_key_values=cache, attention_mask=mask,
            position_ids=torch.full((batch, 1), 5),
        )  # fmt: skip
    return found[0]


@pytest.fixture(scope="module")
def moe() -> fx.GraphModule:
    return graph_of("qwen3_moe", layers=1, dtype=torch.bfloat16, experts_implementation="batched_mm")


def decided(module: fx.GraphModule, sites: str = "faster") -> Rewriter:
    rewriter = Rewriter(copy_module(module))
    for pattern in PATTERNS:
        rewriter.run(pattern)
    compose(rewriter)
    decide(rewriter, sites)
    rewriter.graph.lint()
    return rewriter


def kept(rewriter: Rewriter) -> set[str]:
    return {site.pattern for site in rewriter.replaced()}


def site_of(rewriter: Rewriter, pattern: str) -> Site:
    return next(site for site in rewriter.sites if site.pattern == pattern)


def test_all_sites_on_request(moe: fx.GraphModule) -> None:
    rewriter = decided(moe, "all")
    assert {"router", "experts", "attention_cache", "add_rms_norm", "linear_qkv", "linear"} <= kept(rewriter)
    assert all(site.reason for site in rewriter.replaced())


def test_a_cpu_keeps_what_measurement_keeps(moe: fx.GraphModule) -> None:
    rewriter = decided(moe)
    assert kept(rewriter) <= {"experts", "attention"}
    assert all(site.reason.startswith("CPU: ") for site in rewriter.sites if site.status is Status.LEFT)


def test_an_unknown_gpu_leaves_everything(moe: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paiton.compiler.decide._torch_device", lambda site: torch.device("cuda:0"))
    rewriter = decided(moe)
    assert not kept(rewriter)
    assert "not in the catalogue" in site_of(rewriter, "router").reason


@pytest.mark.usefixtures("mi300x")
def test_without_rows_by_the_estimate(moe: fx.GraphModule) -> None:
    """Untuned projections would call the library all the same; what saves launches and copies stays."""
    rewriter = decided(moe)
    assert kept(rewriter) == {"router", "experts", "attention_cache"}
    reason = site_of(rewriter, "router").reason
    assert reason.startswith("MI300X, batch 2: router ") and reason.endswith("in 4 launches: kept")
    assert "estimated (default config) against Inductor ~" in reason
    assert "linear not tuned" in site_of(rewriter, "linear").reason
    assert site_of(rewriter, "rms_norm").reason.endswith("in 1 launch: left to Inductor")


def asked(module: fx.GraphModule, pattern: str) -> Problem:
    """The problem of the first kernel behind the first site of a pattern."""
    rewriter = Rewriter(copy_module(module))
    for each in PATTERNS:
        rewriter.run(each)
    compose(rewriter)
    (name, args), *_ = operator_calls(next(site for site in rewriter.sites if site.pattern == pattern))
    return problems_of(name, args)[0][0]


@pytest.mark.usefixtures("mi300x")
@pytest.mark.parametrize(("us", "is_kept"), [(0.5, True), (5000.0, False)])
@pytest.mark.parametrize("pattern", ["router", "linear", "add_rms_norm", "attention_cache"])
def test_a_measured_row_turns_the_decision(
    moe: fx.GraphModule, database: Path, pattern: str, us: float, is_kept: bool
) -> None:
    problem = asked(moe, pattern)
    default = space_of(problem.kernel).default_config(problem, MI300X)
    write(database, row(problem, config=default, us=us))
    selection.reload()
    rewriter = decided(moe)
    site = site_of(rewriter, pattern)
    assert (site.status is Status.REPLACED) == is_kept
    assert f"{us:.3g} µs measured (row: exact)" in site.reason
    if pattern == "attention_cache" and not is_kept:
        assert site.reason.endswith("left to its parts")
        assert {"attention", "qk_norm_rope"} <= kept(rewriter)


@pytest.mark.usefixtures("mi300x")
def test_a_measured_row_of_another_batch_counts_in_proportion(moe: fx.GraphModule, database: Path) -> None:
    write(database, row(asked(moe, "router").with_batch(4), us=4000.0))
    selection.reload()
    site = site_of(decided(moe), "router")
    assert site.status is Status.LEFT
    assert "measured (row: other batch)" in site.reason


@pytest.mark.usefixtures("mi300x")
def test_the_same_decisions_every_time(moe: fx.GraphModule) -> None:
    first, second = decided(moe), decided(moe)
    assert [(s.pattern, s.anchor, s.status, s.reason) for s in first.sites] == [
        (s.pattern, s.anchor, s.status, s.reason) for s in second.sites
    ]
    assert operators(first.graph) == operators(second.graph)


@pytest.mark.usefixtures("mi300x")
def test_64_layers_are_decided_in_time() -> None:
    """Distinct questions are few; 0.3 s of processor time is the limit, the clock would count our neighbours'."""
    decided(graph_of("qwen3", layers=1))  # imports and the digests of the kernels, once in a process
    torch._dynamo.reset()
    rewriter = Rewriter(copy_module(graph_of("qwen3", layers=64, hidden_size=64, intermediate_size=64)))
    for pattern in PATTERNS:
        rewriter.run(pattern)
    compose(rewriter)
    start = time.process_time()
    decide(rewriter)
    assert time.process_time() - start < 0.3
    assert len(rewriter.replaced("attention_cache")) == 64
