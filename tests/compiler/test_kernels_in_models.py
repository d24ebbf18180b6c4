"""Our Triton kernels inside a compiled model, run by Triton's interpreter, with configs from a database.

The CPU counts as an MI300X or an H100 meanwhile. The database holds a row for every problem that the model asks about,
with a config that is not the default, so that what runs is what the database says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from paiton.compiler import failures, selection
from paiton.compiler.registration import register
from paiton.compiler.report import history
from paiton.compiler.site import Status
from paiton.search_spaces.problem import Problem

from ..interpreter.conftest import _bf16_as_on_hardware  # noqa: F401  a fixture: the interpreter rounds as GPUs do
from .small_models import prompt_and_step, small
from .stored import other_config, row, write
from .test_models import sites_of

OPTIONS = {"paiton.lower": "aot_eager", "paiton.strict": True}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Dynamo warns of functools.lru_cache in transformers


@pytest.fixture(autouse=True)
def _registered(database: Path) -> Iterator[None]:
    register()
    with torch.no_grad():
        yield


def problems_asked(model: Any) -> list[Problem]:
    """Every problem that the operators of the model ask the database about, for the prompt and for the step."""
    history.clear()
    prompt_and_step(
        torch.compile(model, backend="paiton", options=OPTIONS | {"paiton.lower": "eager", "paiton.sites": "all"}),
        model,
    )
    sites = [site for report in history.reports() for site in report.sites if site.status is Status.REPLACED]
    asked = [problem for site in sites for _, ways in site.calls for way in ways for problem in way]
    torch._dynamo.reset()
    history.clear()
    return list(dict.fromkeys(asked))


def fill(path: Path, problems: list[Problem], device: str) -> None:
    """A measured row for each, so fast that every site is decided for ours."""
    write(path, *(row(problem, device=device, us=1e-3) for problem in problems))
    selection.reload()


@pytest.mark.parametrize(
    ("family", "device", "dtype"),
    [
        ("qwen3_moe", "MI300X", torch.float32),
        ("qwen3_moe", "H100", torch.float32),
        ("qwen3", "MI300X", torch.float32),
        ("qwen3", "H100", torch.bfloat16),
    ],
    ids=str,
)
def test_tuned_kernels_inside_a_model(family: str, device: str, dtype: torch.dtype, database: Path) -> None:
    model = small(family, dtype)
    expected = prompt_and_step(model, model)
    problems = problems_asked(model)
    fill(database, problems, device)
    with selection.use_device(device, untuned_too=False):
        found = prompt_and_step(torch.compile(model, backend="paiton", options=OPTIONS), model)
        ways = [known.way for known in selection._state.known.values()]  # type: ignore[union-attr]
    bound = 1e-4 if dtype == torch.float32 else 6e-2
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)

    prompt, step = history.reports()
    assert prompt.counts() == sites_of(family, 1)
    assert step.counts() == sites_of(family, 1, is_static_decode=True)
    assert failures.counts() == {} and selection.misses() == ()
    assert {name for name, count in selection.counts().items() if count} == {"exact"}
    chosen = [choice for way in ways for choice in way or ()]
    assert all(choice.config == other_config(choice.problem, device) for choice in chosen)
    assert {choice.problem for choice in chosen} <= set(problems)
    kernels = {choice.problem.kernel for choice in chosen}
    assert {"rms_norm", "add_rms_norm", "qk_norm_rope", "linear", "linear_qkv", "attention_prefill"} <= kernels
    assert "attention_decode_fused" in kernels
    assert ("router" in kernels) == (family == "qwen3_moe")


def test_without_a_database_defaults_run_and_are_missed() -> None:
    model = small("qwen3")
    expected = prompt_and_step(model, model)
    with selection.use_device("MI300X"):
        options = OPTIONS | {"paiton.sites": "all"}
        found = prompt_and_step(torch.compile(model, backend="paiton", options=options), model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert {name for name, count in selection.counts().items() if count} == {"default"}
    assert {miss.cell.kernel for miss in selection.misses()} >= {"rms_norm", "linear", "attention_decode_fused"}


SERVER = """
import json, sys
import torch
import paiton
import triton.testing
from paiton.compiler import selection
from paiton.compiler.report import history
from paiton.kernels_triton import launch
from paiton.tests.compiler.small_models import prompt_and_step, small

def no_benchmark(*args, **kwargs):
    raise AssertionError("a benchmark in a server")

triton.testing.do_bench = triton.testing.do_bench_cudagraph = no_benchmark
launches = []
run = launch.Launch.run
launch.Launch.run = lambda self: (launches.append(self.fn), run(self))[1]
torch.set_grad_enabled(False)
model = small(sys.argv[1])
with selection.use_device("MI300X", untuned_too=False):
    compiled = paiton.compile(model, options={"paiton.lower": "aot_eager", "paiton.strict": True})
    first = prompt_and_step(compiled, model)
    in_first, counts_in_first = len(launches), selection.counts()
    second = prompt_and_step(compiled, model)
torch.testing.assert_close(first, second)
print(json.dumps({
    "tuner": sorted(n for n in sys.modules if n.partition(".")[0] == "optuna" or n.startswith("paiton.autotune")),
    "sqlalchemy": "sqlalchemy" in sys.modules,
    "counts": selection.counts(), "counts_in_first": counts_in_first,
    "misses": [str(miss.cell) for miss in selection.misses()],
    "launches": [in_first, len(launches) - in_first], "graphs": history.total,
}))
"""


def test_a_servers_first_compile_makes_no_trial(tmp_path: Path, database: Path) -> None:
    """A process with a shipped database: nothing of the tuner is imported, nothing is launched but what computes, and
    no file changes."""
    model = small("qwen3_moe")
    shipped = tmp_path / "shipped" / "tiny.db"
    shipped.parent.mkdir()
    fill(shipped, problems_asked(model), "MI300X")
    before = {path.name: path.read_bytes() for path in shipped.parent.iterdir()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SERVER, "qwen3_moe"],
        env=os.environ | {"PAITON_DB": f"{database}{os.pathsep}{shipped}"},
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["tuner"] == [] and said["sqlalchemy"] is False
    assert said["misses"] == [] and said["graphs"] == 2
    assert {name for name, count in said["counts"].items() if count} == {"exact"}
    # The first calls, compilation included, launch what the second do: one launch for each thing that is computed.
    assert said["launches"][0] == said["launches"][1] > 0
    assert said["counts"]["exact"] == 2 * said["counts_in_first"]["exact"]
    assert {path.name: path.read_bytes() for path in shipped.parent.iterdir()} == before
    assert not database.exists()
