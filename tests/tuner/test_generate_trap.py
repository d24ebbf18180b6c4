"""`autotune doctor`: a script whose generate() runs uncompiled, and whether the backend can be found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paiton.autotune.cli import status_of
from paiton.autotune.generate_trap import find_traps


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('m = torch.compile(model, backend="paiton")\nm.generate(ids)\n', [2]),
        ("model = torch.compile(model)\nout = model.generate(ids)\n", [2]),
        ("torch.compile(model).generate(ids)\n", [1]),
        ("self.model: Any = torch.compile(self.model)\ndef f():\n    return self.model.generate(ids)\n", [3]),
        ("m = torch.compile(model)\nm(ids)\n", []),
        ("model.compile(backend='paiton')\nmodel.generate(ids)\n", []),
        ("paiton.compile(model)\nmodel.generate(ids)\n", []),
        ("m = torch.compile(model)\nm = model\nm.generate(ids)\n", []),
        ("m.generate(ids)\nm = torch.compile(model)\n", []),
        ("model.forward = torch.compile(model.forward)\nmodel.generate(ids)\n", []),
        ("m = torch.compile(model)\nm = m.generate(ids)\n", [2]),
    ],
)
def test_what_runs_uncompiled_is_found(tmp_path: Path, source: str, lines: list[int]) -> None:
    path = tmp_path / "serve.py"
    path.write_text(source)
    assert [trap.line for trap in find_traps(path)] == lines


Doctor = Callable[..., tuple[int, dict[str, tuple[bool, str]]]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run the command: its status, and by check whether it is sound and what was found."""

    def run(*arguments: str) -> tuple[int, dict[str, tuple[bool, str]]]:
        status = status_of(["doctor", "--json", *arguments])
        found = json.loads(capsys.readouterr().out)
        return status, {each["check"]: (each["is_sound"], each["text"]) for each in found}

    return run


def test_doctor_reads_a_script(doctor: Doctor, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("paiton.compile(model).generate(ids)\n")
    bad.write_text("m = torch.compile(model)\nm.generate(ids)\n")
    assert doctor("--script", str(good))[1]["script"] == (True, f"{good}: no generate() that runs uncompiled")
    code, found = doctor("--script", str(bad))
    assert code == 1
    assert found["script"][1].startswith(f"{bad}:2: m.generate(...) runs uncompiled: paiton.compile(model)")


def test_doctor_names_a_script_that_is_no_python(doctor: Doctor, tmp_path: Path) -> None:
    path = tmp_path / "serve.py"
    path.write_text("def f(:\n")
    assert "cannot be read" in doctor("--script", str(path))[1]["script"][1]


def test_doctor_says_whether_the_backend_can_be_found(doctor: Doctor) -> None:
    found = doctor()[1]
    is_sound, text = found["backend"]
    assert is_sound and ("paiton.register()" in text or "is found" in text)
    assert found["transformers"][0]
