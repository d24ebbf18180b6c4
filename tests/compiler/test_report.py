"""Reports: counts, the text, JSON, a bounded history, and the log that TORCH_LOGS switches on."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading

import pytest

from paiton.compiler import log
from paiton.compiler.report import HISTORY, CompileReport, History, SiteRow
from paiton.compiler.site import Status
from paiton.search_spaces.registry import space_of

PROBLEM = space_of("rms_norm").problem(dtype="bf16", batch=2, hidden=64)
REPORT = CompileReport(
    sites=(
        SiteRow(
            "rms_norm",
            "model.norm",
            "rsqrt",
            Status.REPLACED,
            "",
            "3 µs against 4: kept",
            calls=(("rms_norm", ((PROBLEM,),)),),
        ),
        SiteRow("rms_norm", "layers.0.norm", "rsqrt_1", Status.JOINED),
        SiteRow("attention", "layers.0.attn", "sdpa", Status.REJECTED, "dropout"),
        SiteRow("attention", "layers.1.attn", "sdpa_1", Status.REJECTED, "dropout"),
        SiteRow("linear", "lm_head", "linear", Status.LEFT, "n=8", "Inductor is as fast"),
        SiteRow("router", "", "topk", Status.ERROR, "KeyError: 'bug'"),
    ),
    nodes_before=155,
    nodes_after=74,
    rewrite_s=0.0387,
    lowering_s=0.19,
)


def test_counts_are_by_status() -> None:
    assert REPORT.counts() == {"rms_norm": 1}
    assert REPORT.counts(Status.REJECTED) == {"attention": 2}
    assert REPORT.has_operators


def test_the_table() -> None:
    assert REPORT.table().splitlines() == [
        "graph 155 -> 74 nodes, rewrite 38.7 ms, inductor 0.19 s",
        "  pattern                 replaced      left    joined  rejected     error",
        "  rms_norm                       1         ·         1         ·         ·",
        "  attention                      ·         ·         ·         2         ·",
        "  linear                         ·         1         ·         ·         ·",
        "  router                         ·         ·         ·         ·         1",
        "  replaced: rms_norm at model.norm: 3 µs against 4: kept",
        "  rejected: attention at layers.0.attn and 1 more: dropout",
        "  left: linear at lm_head: Inductor is as fast",
        "  error: router at topk: KeyError: 'bug'",
    ]


def test_reasons_are_in_the_table() -> None:
    table = CompileReport(reason="autocast is on", fallback="rewriting failed: bug").table()
    assert "left alone: autocast is on" in table
    assert "fallback: rewriting failed: bug" in table


def test_json() -> None:
    plain = json.loads(json.dumps(REPORT.to_json()))
    assert plain["nodes_after"] == 74
    assert plain["sites"][0]["status"] == "replaced"
    assert plain["sites"][0]["calls"] == [{"operator": "rms_norm", "ways": [["rms_norm[hidden=64] bf16 batch 2"]]}]
    assert plain["sites"][2]["detail"] == "dropout"


def test_a_fallback_counts_nothing_as_replaced() -> None:
    fallen = REPORT.without_operators("lowering failed: bug")
    assert not fallen.has_operators
    assert fallen.counts(Status.LEFT) == {"rms_norm": 2, "linear": 1}
    assert fallen.nodes_after == fallen.nodes_before == 155
    assert fallen.counts(Status.REJECTED) == REPORT.counts(Status.REJECTED)


def test_the_history_is_bounded_and_counts_on() -> None:
    history = History(limit=3)
    for number in range(5):
        history.add(CompileReport(nodes_before=number))
    assert [report.nodes_before for report in history.reports()] == [2, 3, 4]
    assert history.total == 5
    history.clear()
    assert history.reports() == () and history.total == 5
    assert HISTORY >= 64


def test_threads_lose_no_report() -> None:
    history = History()
    threads = [threading.Thread(target=lambda: [history.add(REPORT) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert history.total == 200


def test_a_warning_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="paiton"):
        assert log.warn_once("50 % of it") is True
        assert log.warn_once("50 % of it") is False
        assert log.warn_once("something else") is True
    assert [record.message for record in caplog.records] == ["50 % of it", "something else"]
    log.forget()
    assert log.warn_once("50 % of it") is True


SCRIPT = """
import torch
from paiton.compiler.backend import paiton
weight = torch.ones(8)
def norm(x):
    return torch.nn.functional.rms_norm(x, (8,), weight, 1e-6)
torch.compile(norm, backend=paiton, options={"paiton.lower": "eager", "paiton.sites": "all"})(torch.ones(2, 8))
"""


@pytest.mark.parametrize("setting", ["paiton", "+paiton", None])
def test_torch_logs_names_this_package(setting: str | None) -> None:
    environ = {name: held for name, held in os.environ.items() if name != "TORCH_LOGS"}
    environ |= {"TORCH_LOGS": setting} if setting else {}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if setting:
        assert "[0/0] graph" in done.stderr  # with torch's own prefix: which frame, which compile
        assert "rms_norm " in done.stderr
    else:
        assert done.stderr == ""


NEVER_RUN = """
import torch
from paiton.compiler.registration import register
register()
class Model(torch.nn.Module):
    def forward(self, x):
        return x + 1
    def generate(self, x):
        return self(x)
compiled = torch.compile(Model(), backend="paiton", options={"paiton.lower": "eager"})
CALL
"""


@pytest.mark.parametrize(
    ("call", "is_said"), [("compiled.generate(torch.ones(2))", True), ("compiled(torch.ones(2))", False)]
)
def test_a_backend_that_was_named_and_never_ran_is_said_at_the_end(call: str, is_said: bool) -> None:
    """What torch.compile(model, backend="paiton").generate() comes to."""
    done = subprocess.run(
        [sys.executable, "-c", NEVER_RUN.replace("CALL", call)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("was asked for and never ran" in done.stderr) is is_said, done.stderr
    assert ("use paiton.compile(model)" in done.stderr) is is_said
