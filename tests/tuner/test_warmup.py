"""Warm-up: real compiles into Triton's cache, found again by a second warm-up and by Triton's own JIT."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from paiton.autotune.cli import status_of
from paiton.autotune.run import cell_of
from paiton.cache.key import Cell, Environment
from paiton.cache.rows import Label, TunedRow
from paiton.cache.store import ConfigStore
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.space import EmptySpace

MODEL = "Qwen3-30B-A3B"
DEVICE = resolve("gfx942")
WARMUP = (
    "warmup", "--arch", "gfx942", "--model", MODEL, "--kernel", "rms_norm", "--kernel", "add_rms_norm", "--jobs", "1",
)  # fmt: skip

# A launch as a server makes it, up to the point where the binary would be loaded: only the GPU is made up.
LAUNCH = """
import json, sys
import triton
from triton import knobs
from paiton.autotune.aot import target_of
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.space import EmptySpace

class Driver:
    get_current_target = lambda self: target_of(device)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

device, found = resolve("gfx942"), []
knobs.compilation.listener = lambda *, cache_hit, **_: found.append(cache_hit)
triton.runtime.driver.set_active(Driver())
for kernel, batch, config in json.loads(sys.argv[1]):
    spec = spec_of(kernel)
    inputs = spec.make_inputs(spec.space.problem(dtype="bf16", batch=batch, hidden=2048), torch_device="cpu", seed=0)
    for launch in spec.plan(*inputs, config=Config(config), device=device).launches:
        launch.fn.warmup(**launch.args, **launch.constexprs, **launch.options, grid=launch.grid)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Said:
    """How a command line ended and what it wrote."""

    status: int
    out: str
    err: str


def say(*arguments: str) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = status_of(list(arguments))
    return Said(status, out.getvalue(), err.getvalue())


def cell(kernel: str, batch: int) -> Cell:
    spec = spec_of(kernel)
    return cell_of(spec.space.problem(dtype="bf16", batch=batch, hidden=2048), DEVICE, spec)


def fill(path: Path, *answers: tuple[str, int, Config]) -> Path:
    with ConfigStore.open(path) as store:
        for kernel, batch, config in answers:
            store.put_tuned(
                TunedRow(
                    cell=cell(kernel, batch), label=Label.ESTIMATED, config_json=config.json(), score=2.0,
                    env=Environment(triton="3.7.1", triton_key="k"),
                )
            )  # fmt: skip
    return path


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder and when it was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Warmed:
    """A database, the cache that its warm-up filled, and what the warm-up said."""

    database: Path
    cache: Path
    said: Said


ANSWERS = (
    ("rms_norm", 1, Config.of(BLOCK_H=1024, num_warps=2)),
    ("rms_norm", 4, Config.of(BLOCK_H=2048, num_warps=4)),
)


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Warmed:
    """Batches 1, 2 and 4 of the two norm kernels, of which rms_norm has answers at 1 and 4."""
    folder = tmp_path_factory.mktemp("warmed")
    database, cache = fill(folder / "tuned.db", *ANSWERS), folder / "triton"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        return Warmed(database, cache, say(*WARMUP, "--batch-sizes", "1,2,4", "--db", str(database)))


def test_what_the_database_says_is_compiled_into_the_cache(warmed: Warmed) -> None:
    said = warmed.said
    assert (said.status, said.err) == (0, "")
    first, second, *rest = said.out.splitlines()
    assert first == (
        f"{MODEL} on MI300X (gfx942): 6 problems, answered 2 exact (estimated), 1 other batch (estimated), 3 default."
    )
    assert second.startswith("3 binaries compiled, 0 were in the cache already; ")
    assert second.endswith(f" CPU-s). Cache: {warmed.cache}")
    assert rest == [
        "3 answers were found under another compiler than this one; retune to confirm them.",
        "3 problems have no answer and get the default of their kernel. To tune them:",
        f"  autotune run --arch gfx942 --device MI300X --model {MODEL} --kernel add_rms_norm --batch-sizes 1,2,4"
        f" --db {warmed.database}",
    ]
    binaries = sorted(Path(name).name for name in files(warmed.cache) if name.endswith(".hsaco"))
    assert len(binaries) == 3, "batch 2 takes a binary of its neighbour"
    with ConfigStore.open(warmed.database, read_only=True) as store:
        assert store.runs() == [] and len(store.tuned()) == 2, "nothing was tried"


def test_a_second_warm_up_finds_everything(warmed: Warmed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(warmed.cache))
    before = files(warmed.cache)
    said = say(*WARMUP, "--batch-sizes", "1,2,4", "--db", str(warmed.database), "--json")
    report = json.loads(said.out)
    assert (said.status, report["compiled"], report["cached"], report["failures"]) == (0, 0, 3, [])
    assert files(warmed.cache) == before
    assert (report["model"], report["device"], report["arch"]) == (MODEL, "MI300X", "gfx942")
    assert (report["problems"], report["cache"]) == (6, str(warmed.cache))
    assert report["tiers"] == [
        {"tier": "exact", "label": "estimated", "problems": 2},
        {"tier": "other batch", "label": "estimated", "problems": 1},
        {"tier": "default", "label": None, "problems": 3},
    ]
    assert [each["cell"] for each in report["misses"]] == [str(cell("add_rms_norm", batch)) for batch in (1, 2, 4)]
    assert all(each["reason"].startswith("default: no row for") for each in report["misses"])
    assert report["misses"][0]["tune"].endswith(f"--kernel add_rms_norm --batch-sizes 1 --db {warmed.database}")
    assert report["seconds"] > 0 and report["cpu_seconds"] >= 0


def test_a_launch_finds_the_binaries(warmed: Warmed, tmp_path: Path) -> None:
    """The key of Triton's cache is over the launch as the JIT specialises it: ours has to be the same to the letter."""
    default = spec_of("add_rms_norm").space.default_config
    problem = spec_of("add_rms_norm").space.problem(dtype="bf16", batch=2, hidden=2048)
    launches = [
        *((kernel, batch, dict(config)) for kernel, batch, config in ANSWERS),
        ("rms_norm", 3, dict(ANSWERS[1][2])),
        ("add_rms_norm", 2, dict(default(problem, DEVICE))),
        ("rms_norm", 1, {"BLOCK_H": 512, "num_warps": 1, "waves_per_eu": 0}),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, json.dumps(launches)], capture_output=True, text=True, timeout=300, check=False,
        env={**environment, "TRITON_CACHE_DIR": str(warmed.cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The second and third share one binary in the process, so the JIT asks for it once. Nobody warmed up the last.
    assert json.loads(done.stdout) == [True, True, True, False]


def test_what_cannot_run_is_named_and_the_rest_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is no power of two, and a config without one, from a shipped file under a missing database."""
    shipped = fill(
        tmp_path / "shipped.db",
        ("rms_norm", 1, Config.of(BLOCK_H=1000, num_warps=1)),
        ("rms_norm", 2, Config.of(BLOCK_H=512, num_warps=1)),
        ("add_rms_norm", 1, Config.of(num_warps=1)),
        ("add_rms_norm", 2, Config.of(BLOCK_H=512, num_warps=1)),
    )
    monkeypatch.setenv("PAITON_DB", os.pathsep.join([str(tmp_path / "none.db"), str(shipped)]))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    said = say(*WARMUP, "--batch-sizes", "1,2")
    assert said.status == 1
    assert "4 problems, answered 4 exact (estimated).\n2 binaries compiled, 0 were in the cache already; " in said.out
    assert f"failed: {cell('rms_norm', 1)}: BLOCK_H=1000 num_warps=1: compile_error CompilationError" in said.out
    assert f"failed: {cell('add_rms_norm', 1)}: num_warps=1: KeyError: 'BLOCK_H'\n" in said.out
    assert "have no answer" not in said.out
    assert said.err.startswith("left out: ") and "none.db" in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "none.db").exists()


def test_mistakes_of_the_user_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, word in (
        (("--arch", "gfx943"), "Invalid value for --arch: unknown arch 'gfx943'"),
        (("--dtype", "int4"), "dtype 'int4' is not one of"),
        (("--db", str(tmp_path / "none.db")), "none.db"),
    ):
        said = say(*WARMUP, "--batch-sizes", "1", *arguments)
        assert (said.status, said.out, said.err.count("\n")) == (2, "", 1) and word in said.err
    monkeypatch.setattr("paiton.autotune.local_gpu.find_local_gpu", lambda: None)
    monkeypatch.setattr("paiton.autotune.request.find_local_gpu", lambda: None)
    assert "name the one to tune for" in say("warmup", "--model", MODEL).err


def test_a_problem_without_a_legal_config_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_legal(*_: object) -> Config:
        raise EmptySpace("no config of rms_norm is legal")

    monkeypatch.setattr("paiton.search_spaces.space.SearchSpace.default_config", none_legal)
    said = say(*WARMUP, "--batch-sizes", "1", "--db", str(fill(tmp_path / "empty.db")), "--json")
    report = json.loads(said.out)
    assert (said.status, report["compiled"], len(report["misses"])) == (1, 0, 2)
    assert [each["error"] for each in report["failures"]] == ["no config of it is legal on MI300X"] * 2
