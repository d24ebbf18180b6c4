"""The compile caches of torch: hit by a second process, missed after a change of ours, blind to the tuning database.

Every case is a process of its own, with Inductor and a cache folder that the cases share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Our operators alone: with anything else in the graph, each case would wait for the C++ compiler.
SCRIPT = """
import json, os, sys
import torch
from torch._dynamo.utils import counters
from paiton.compiler import lowering
from paiton.compiler.backend import paiton
from paiton.compiler.report import history
if os.environ.get("ANOTHER_SOURCE"):
    lowering.source_digest = lambda: os.environ["ANOTHER_SOURCE"]
generator = torch.Generator().manual_seed(0)
weight = torch.randn(16, generator=generator)
x = torch.randn(3, 16, generator=generator)
def block(x):
    h = torch.nn.functional.rms_norm(x, (16,), weight, 1e-6)
    return torch.nn.functional.rms_norm(h, (16,), weight, 1e-6)
options = {"paiton.strict": True, "paiton.sites": "all", "fx_graph_cache": True}
options["paiton.disable_patterns"] = json.loads(sys.argv[1])
with torch.no_grad():
    found = torch.compile(block, backend=paiton, options=options)(x)
    torch.testing.assert_close(found, block(x))
print(json.dumps({
    "hits": counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"],
    "misses": counters["aot_autograd"]["autograd_cache_miss"] + counters["inductor"]["fxgraph_cache_miss"],
    "bypassed": counters["aot_autograd"]["autograd_cache_bypass"] + counters["inductor"]["fxgraph_cache_bypass"],
    "sites": history.reports()[-1].counts()["rms_norm"],
}))
"""

Run = Callable[..., dict[str, int]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Compile once in a process; the first call fills the cache."""
    folder = tmp_path_factory.mktemp("inductor")

    def in_a_process(disable: tuple[str, ...] = (), **environ: str) -> dict[str, int]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(disable)],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        return found

    first = in_a_process()
    assert first["sites"] == 2 and first["hits"] == 0 and first["misses"] > 0 and first["bypassed"] == 0
    return in_a_process


def test_a_second_process_hits(run: Run) -> None:
    again = run()
    assert again["hits"] > 0 and again["misses"] == 0 and again["sites"] == 2


def test_another_database_still_hits(run: Run, tmp_path: Path) -> None:
    found = run(PAITON_DB=str(tmp_path / "another.db"))
    assert found["hits"] > 0 and found["misses"] == 0


def test_a_change_in_our_sources_misses(run: Run) -> None:
    found = run(ANOTHER_SOURCE="changed")
    assert found["hits"] == 0 and found["misses"] > 0
    assert run(ANOTHER_SOURCE="changed")["hits"] > 0


def test_a_disabled_pattern_misses(run: Run) -> None:
    # The graph has the same operators: nothing but the key tells the two apart.
    found = run(disable=("attention",))
    assert found["sites"] == 2 and found["hits"] == 0
