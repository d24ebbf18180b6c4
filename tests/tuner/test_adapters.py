"""`autotune run --kernel vllm.fused_moe`, from request to exported file, on a package that stands in for vLLM."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from paiton.autotune import measured_objective
from paiton.autotune.adapters.foreign import AdapterUnavailable
from paiton.autotune.adapters.registry import FOREIGN_KERNELS, adapter_of, modelled, spec_of
from paiton.autotune.cli import status_of
from paiton.autotune.gpu_job import GpuSession
from paiton.autotune.local_gpu import LocalGpu
from paiton.autotune.measure import Clock
from paiton.autotune.worker_pool import Answer
from paiton.cache.declared import config_faults
from paiton.cache.formats.peer_file import Peer, parse_body, parse_name
from paiton.cache.key import Environment
from paiton.cache.rows import Label, TrialState
from paiton.cache.store import ConfigStore
from paiton.search_spaces.arch import device_named
from paiton.search_spaces.config import Config
from paiton.search_spaces.fused_moe import VLLM_FUSED_MOE
from paiton.search_spaces.model.estimate import estimate_us

FAKE = Path(__file__).parent / "fake_vllm_package"
KERNEL = "vllm.fused_moe"
SIZES = {"experts": 8, "top_k": 2, "hidden": 64, "inter": 32}
MODEL = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64, "vocab_size": 128,
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "norm_topk_prob": True, "torch_dtype": "bfloat16",
}  # fmt: skip


class ClockOfTheFake(Clock):
    """Times a call by the config that was in force when the fake's kernel ran: it proves that ours reached it."""

    def capture(self, calls: Sequence[Callable[[], object]]) -> Callable[[], float]:
        calls[0]()
        config = sys.modules["vllm.model_executor.layers.fused_moe.fused_moe"].seen[-1]
        us = 10.0 + abs(config["BLOCK_SIZE_K"] - 128) / 64 + config["GROUP_SIZE_M"] / 8 + config["num_stages"] / 100
        return lambda: us


class InProcess:
    """The GPU worker without a process and without a GPU."""

    def __init__(self, device: Any) -> None:
        self._session = GpuSession(device.name, torch_device="cpu", clock=ClockOfTheFake())

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def ask(self, data: Mapping[str, Any]) -> Answer:
        return Answer(None, TrialState.OK, 0.0, self._session.answer(data))

    def environment(self) -> Environment:
        return Environment(gpu="NVIDIA H200", triton="3.7.1", triton_key="k", policy="recorded")


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The fake, importable; the file of its kernel."""
    site = shutil.copytree(FAKE, tmp_path / "site")
    monkeypatch.syspath_prepend(str(site))
    yield site / "vllm/model_executor/layers/fused_moe/fused_moe.py"
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has an H200, and a worker that measures on it."""
    gpu = LocalGpu(name="NVIDIA H200", arch_text="sm_90", device=device_named("H200"))
    monkeypatch.setattr("paiton.autotune.request.find_local_gpu", lambda: gpu)
    monkeypatch.setattr(measured_objective, "GpuWorker", InProcess)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MODEL))
    return path


def run_line(model: Path, database: Path, *more: str) -> list[str]:
    return ["run", "--model", str(model), "--kernel", KERNEL, "--db", str(database), *more]


def test_from_run_to_export(
    vllm: Path, here: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, out = tmp_path / "tuned.db", tmp_path / "moe-configs"
    line = run_line(model, database, "--batch-sizes", "1,8", "--prefill-lengths", "32", "--trials", "12")
    assert status_of(line) == 0, capsys.readouterr().err
    with ConfigStore.open(database, read_only=True) as store:
        rows = store.tuned()
        states = {trial.state for row in rows for trial in store.trials(row.cell)}
    digest = spec_of(KERNEL).digest
    assert [(row.cell.batch, row.cell.kernel, row.cell.kernel_digest, row.label) for row in rows] == [
        (batch, KERNEL, digest, Label.MEASURED) for batch in (1, 8, 32)
    ]
    assert states <= {TrialState.OK, TrialState.WRONG}
    for row in rows:
        assert row.us_default is not None and row.us_median is not None and row.us_median <= row.us_default
        assert row.config_json is not None and config_faults(row, row.config_json) is None
        assert "BLOCK_SIZE_M=7 is not one of" in str(config_faults(row, row.config_json.replace('M":16', 'M":7')))
    capsys.readouterr()
    assert status_of(["export", "--for", "vllm", "--kernel", KERNEL, "--out", str(out), "--db", str(database)]) == 0
    (path,) = out.glob("*.json")
    assert path.name == "E=8,N=32,device_name=NVIDIA_H200.json"
    name = parse_name(Peer.VLLM, path.name)
    ladder, triton = parse_body(Peer.VLLM, path.read_text())
    assert (name.experts, name.inter, name.device, triton) == (8, 32, "NVIDIA_H200", "3.7.1")
    served = {row.cell.batch: dict(Config.from_json(row.config_json or "")) for row in rows}
    assert {batch: config for batch, config in ladder if batch in served} == served
    assert "Measured with vLLM's own kernel" in (out / "paiton-notes.txt").read_text()
    # Taken up again, all is known; nothing is measured twice.
    seen = len(sys.modules["vllm.model_executor.layers.fused_moe.fused_moe"].seen)
    assert status_of(line) == 0
    assert len(sys.modules["vllm.model_executor.layers.fused_moe.fused_moe"].seen) == seen


def test_a_wrong_result_is_no_answer(vllm: Path) -> None:
    session = GpuSession("H200", torch_device="cpu", clock=ClockOfTheFake())
    problem = VLLM_FUSED_MOE.problem(dtype="bf16", batch=3, **SIZES)
    config = Config.of(BLOCK_SIZE_M=16, BLOCK_SIZE_N=64, BLOCK_SIZE_K=64, GROUP_SIZE_M=1, num_warps=4, num_stages=2)
    job = {"op": "measure", "kernel": KERNEL, "dtype": "bf16", "batch": 3, "signature": problem.signature, "samples": 2}
    assert "samples" in session.answer({**job, "config": config.json()})
    wrong = session.answer({**job, "config": config.replace(BLOCK_SIZE_N=256).json()})
    assert wrong["state"] == "wrong"


def test_another_release_is_another_kernel(vllm: Path) -> None:
    before = spec_of(KERNEL).digest
    assert spec_of(KERNEL).digest == before and len(before) == 16
    vllm.write_text(vllm.read_text() + "\n# changed\n")
    assert spec_of(KERNEL).digest != before


def test_its_default_is_the_default(vllm: Path) -> None:
    space = spec_of(KERNEL).space
    for device, knobs in (("H200", {"num_stages": 3}), ("MI300X", {"num_stages": 2, "waves_per_eu": 0})):
        problem = space.problem(dtype="bf16", batch=64, **SIZES)
        default = space.default_config(problem, device_named(device))
        theirs = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "num_warps": 4}
        assert theirs.items() | knobs.items() <= dict(default).items()


@pytest.mark.parametrize("device", ["MI300X", "MI355X", "H200"])
def test_the_space_is_legal_and_modelled(device: str) -> None:
    target = device_named(device)
    problem = VLLM_FUSED_MOE.problem(dtype="bf16", batch=512, experts=128, top_k=8, hidden=2048, inter=768)
    feasible = VLLM_FUSED_MOE.enumerate(problem, target)
    assert len(feasible) > 500 and ("kpack" in feasible.names) == (device == "MI300X")
    scores = estimate_us(*_in_model_order(modelled(problem, feasible.columns(), target), target))
    assert (scores > 0).all() and len(set(scores.tolist())) > 50
    assert not VLLM_FUSED_MOE.faults(VLLM_FUSED_MOE.default_config(problem, target), problem, target)


def _in_model_order(known: tuple[Any, Any], device: Any) -> tuple[Any, Any, Any]:
    return known[0], device, known[1]


# What is said where it cannot be done.


def test_without_vllm_one_line_says_what_to_do(
    here: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(run_line(model, tmp_path / "x.db")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs vLLM in this environment" in line and "(pip install vllm)" in line
    assert "tune --kernel moe_grouped" in line and "autotune export --for vllm" in line
    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize("more", [["--arch", "gfx942"], ["--arch", "sm_90", "--device", "H200", "--estimate"]])
def test_without_the_gpu_nothing_is_estimated(
    vllm: Path, model: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(run_line(model, tmp_path / "x.db", *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "can only be measured" in line and "--kernel moe_grouped" in line


def test_a_release_without_the_file_is_named(vllm: Path) -> None:
    vllm.unlink()
    with pytest.raises(AdapterUnavailable, match=r"vllm has no model_executor/layers/fused_moe/fused_moe\.py"):
        adapter_of(KERNEL).digest()
    assert list(FOREIGN_KERNELS) == [KERNEL]
