"""`paiton.tune` from Python: the same run as the command line, its faults as exceptions of one line."""

from __future__ import annotations

from pathlib import Path

import pytest

import paiton
from paiton.autotune.request import NoGpu, make_request
from paiton.search_spaces.arch import UnknownArch
from paiton.search_spaces.model_spec import ModelError
from paiton.search_spaces.workload import WorkloadError


def test_tune_answers_every_cell_and_knows_them_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "api.db"
    arguments = {"arch": "gfx942", "kernels": ["rms_norm"], "batch_sizes": [1, 4], "trials": 2, "database": database}
    outcome = paiton.tune("Qwen3-30B-A3B", **arguments)
    assert [row.cell.batch for row in outcome.summary.rows] == [1, 4]
    assert all(row.label.name == "ESTIMATED" and row.config_json for row in outcome.summary.rows)
    assert outcome.summary.trials == 4
    again = paiton.tune("Qwen3-30B-A3B", **arguments)
    assert again.summary.trials == 0 and again.summary.cells_known == 2
    assert [row.config_json for row in again.summary.rows] == [row.config_json for row in outcome.summary.rows]
    with paiton.ConfigStore.open(database, read_only=True) as store:
        assert len(store.tuned()) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "fault", "text"),
    [
        ({"model": "Qwen3-31B", "arch": "gfx942"}, ModelError, "Qwen3-31B"),
        ({"model": "Qwen3-32B", "arch": "gfx941"}, UnknownArch, "nearest known is gfx942"),
        ({"model": "Qwen3-32B", "arch": "gfx942", "tp": 7}, WorkloadError, "cannot be divided among 7"),
        ({"model": "Qwen3-32B", "arch": "gfx942", "batch_sizes": [0]}, WorkloadError, "batch size 0"),
    ],
)
def test_faults_are_typed(arguments: dict[str, object], fault: type[Exception], text: str) -> None:
    with pytest.raises(fault, match=text) as caught:
        make_request(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_without_a_gpu_an_arch_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paiton.autotune.request.find_local_gpu", lambda: None)
    with pytest.raises(NoGpu, match="name the one to tune for"):
        make_request("Qwen3-32B")


def test_a_device_alone_names_its_arch() -> None:
    request = make_request("Qwen3-32B", device="MI325X", kernels=["rms_norm"], batch_sizes=[1])
    assert (request.device.name, request.device.arch.name) == ("MI325X", "gfx942")
    assert request.trials == 16 and not request.measures
