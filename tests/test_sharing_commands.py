"""The commands that pass answers around, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from paiton.autotune.cli import status_of
from paiton.cache.formats.peer_file import Peer, parse_body, parse_name
from paiton.cache.key import Cell, Environment
from paiton.cache.rows import Label, TunedRow
from paiton.cache.store import ConfigStore
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import device_named

TILE = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 2}


def answer(batch: int, kernel: str = "moe_grouped", device: str = "MI300X", **values: Any) -> TunedRow:
    spec, target = spec_of(kernel), device_named(device)
    sizes = {"experts": 16, "top_k": 2, "hidden": 512, "inter": 256}
    problem = spec.space.problem(dtype="bf16", batch=batch, **sizes)
    cell = Cell(
        arch=target.arch.name, device=device, kernel=kernel, kernel_digest=spec.digest, signature=problem.signature,
        dtype="bf16", batch=batch,
    )  # fmt: skip
    fields = {
        "cell": cell, "label": Label.ESTIMATED, "env": Environment(triton="3.7.1", triton_key="k"), "score": 2.0,
        "config_json": spec.space.default_config(problem, target).json(), "ts_ms": 1_700_000_000_000, **values,
    }  # fmt: skip
    return TunedRow(**fields)


def fill(path: Path, *rows: TunedRow) -> Path:
    with ConfigStore.open(path) as store:
        store.put_all_tuned(rows)
    return path


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's database, named by PAITON_DB: two answers of moe_grouped, one of another kernel."""
    path = tmp_path / "mine.db"
    monkeypatch.setenv("PAITON_DB", str(path))
    return fill(path, answer(16), answer(32), answer(4, "moe_down"))


class Run:
    """`run("verify", path)` gives the exit status and keeps what was printed."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        status = status_of([str(each) for each in arguments])
        self.out, self.err = self._capture.readouterr()
        return status

    def json(self, *arguments: object) -> Any:
        assert self(*arguments, "--json") in (0, 1), self.err
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.mark.parametrize("form", ["sqlite", "jsonl"])
def test_export_and_import(run: Run, database: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / ("out.jsonl" if form == "jsonl" else "out.db")
    written = run.json("export", "--for", form, "--out", out, "--kernel", "moe_grouped")
    assert written["answers"] == 2 and written["written"] == [str(out)]
    assert run.json("verify", out)["logical_digest"] == written["logical_digest"]
    theirs = tmp_path / "theirs.db"
    assert run.json("import", out, "--db", theirs)["labels"] == ["prior"]
    assert run("import", out, "--db", theirs, "--trust", "--origin", "a friend") == 0
    assert run.out == "2 answers read as estimated: 0 added, 2 replaced, 0 kept, 0 same\n"
    with ConfigStore.open(theirs) as store:
        assert {row.source.name for row in store.tuned()} == {"a friend"}
    assert run.json("import", out, "--db", theirs)["kept"] == 2


def test_the_folder_for_vllm_and_back(run: Run, database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    assert run("export", "--for", "vllm", "--out", folder) == 0, run.err
    assert f"VLLM_TUNED_CONFIG_FOLDER={folder}" in run.out and "not a measurement of it" in run.out
    name = "E=16,N=256,device_name=AMD_Instinct_MI300X.json"
    assert sorted(path.name for path in folder.iterdir()) == [name, "paiton-notes.txt"]
    parse_name(Peer.VLLM, name)
    ladder, triton = parse_body(Peer.VLLM, (folder / name).read_text())
    assert triton == "3.7.1" and {16, 32} <= {tokens for tokens, _ in ladder}
    other = tmp_path / "other.db"
    assert run.json("import", "--from", "vllm", folder, "--db", other)["labels"] == ["prior"]
    again = tmp_path / "again"
    assert run("export", "--for", "vllm", "--kernel", "vllm.fused_moe", "--out", again, "--db", other) == 0
    assert (again / name).read_text() == (folder / name).read_text()
    assert run("lint", "--from", "vllm", folder) == 1
    assert "every M below" not in run.out and "sparse" in run.out


def test_the_folder_for_sglang(run: Run, database: Path, tmp_path: Path) -> None:
    assert run.json("export", "--for", "sglang", "--out", tmp_path / "s")["written"] == [
        str(tmp_path / "s/configs/triton_3_7_1/E=16,N=256,device_name=AMD_Instinct_MI300X.json")
    ]
    assert run.json("import", tmp_path / "s", "--db", tmp_path / "x.db")["labels"] == ["prior"]


def test_rows_of_an_older_kernel_do_not_go_out(run: Run, database: Path, tmp_path: Path) -> None:
    old = answer(64)
    fill(database, TunedRow(**{**vars(old), "cell": Cell(**{**_fields(old.cell), "kernel_digest": "old"})}))
    run.json("export", "--for", "vllm", "--out", tmp_path / "v")
    (file,) = (tmp_path / "v").glob("E=*")
    assert "64" not in json.loads(file.read_text())


def _fields(cell: Cell) -> dict[str, Any]:
    names = ("arch", "device", "kernel", "kernel_digest", "signature", "dtype", "batch")
    return {name: getattr(cell, name) for name in names}


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_a_signed_file_keeps_its_labels(run: Run, database: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    signers = tmp_path / "signers"
    signers.write_text("maker@example.org " + key.with_suffix(".pub").read_text())
    out, theirs = tmp_path / "out.db", tmp_path / "theirs.db"
    listed = run.json("export", "--out", out, "--sign", key)["written"]
    manifest = Path(listed[1])
    assert [Path(each).name for each in listed] == ["out.db", "out.db.manifest.json", "out.db.manifest.json.sig"]
    assert run.json("verify", manifest, "--signers", signers)["signer"] == "maker@example.org"
    assert run("verify", manifest) == 0 and "signature not checked" in run.out
    signed = ("import", out, "--db", theirs, "--manifest", manifest, "--signers", signers)
    assert run.json(*signed)["labels"] == ["estimated"]
    with ConfigStore.open(theirs) as store:
        assert {row.source.signer for row in store.tuned()} == {"maker@example.org"}
    before = theirs.read_bytes()
    out.write_bytes(out.read_bytes()[:-1] + b"x")
    assert run(*signed) == 1 and "is not the file that" in run.err
    assert run("verify", manifest, "--signers", signers) == 1 and "sha256" in run.err
    manifest.write_text(manifest.read_text().replace("out.db", "other"))
    assert run(*signed) == 1 and "does not hold" in run.err
    assert theirs.read_bytes() == before


def test_merge_and_diff(run: Run, database: Path, tmp_path: Path) -> None:
    node = fill(tmp_path / "node.db", answer(16, config_json=None, ts_ms=1_700_000_000_001), answer(64))
    report = tmp_path / "conflicts.jsonl"
    done = run.json("merge", node, "--report", report)
    assert (done["added"], done["replaced"], done["conflicts"]) == (1, 1, 1)
    assert json.loads(report.read_text())["kept"]["config"] is None
    assert run("merge", node) == 0 and "0 added, 0 replaced, 0 kept, 2 same" in run.out
    assert run("diff", database, database) == 0 and run.out.startswith("4 equal, 0 with another config")
    assert run("diff", node, database) == 1 and "2 only in mine.db" in run.out
    assert run.json("diff", node, database)["mean_speedup"] == {"measured": None, "estimated": 1.0}


def test_lint_and_verify_of_databases(run: Run, database: Path, tmp_path: Path) -> None:
    assert run("lint") == 0 and run.out == "0 findings\n"
    fill(database, answer(8, config_json='{"BLOCK_M":3}'))
    (finding,) = run.json("lint")["findings"]
    assert finding["kind"] == "config" and "declared space" in finding["explanation"]
    assert run("verify", database) == 1 and "is missing" in run.err
    (tmp_path / "text.db").write_text("no database")
    for command in ("verify", "import"):
        assert run(command, tmp_path / "text.db") == 1
        assert run.err == f"Error: {tmp_path / 'text.db'} is not a SQLite database\n"
    assert run.json("lint", tmp_path / "text.db")["findings"][0]["kind"] == "file"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("export", "--for", "vllm", "--out", "x", "--kernel", "moe_down"), "means something else there"),
        (("export", "--for", "vllm", "--out", "x", "--sign", "key"), "a peer's loader reads neither"),
        (("export", "--for", "vllm", "--out", "x", "--device-name", "MI300X"), "expected DEVICE=NAME"),
        (("export", "--out", "x", "--device-name", "MI300X=y"), "goes with --for vllm"),
        (("export",), "Missing option '--out'"),
        (("import", "folder.json"), "say --from vllm or --from sglang"),
        (("import", "x.db", "--manifest", "m"), "--manifest and --signers go together"),
        (("verify", "x.db", "--signers", "s"), "--signers goes with a manifest"),
        (("lint", "--from", "vllm"), "needs the folder"),
        (("merge",), "Missing argument 'PATHS...'"),
    ],
)
def test_wrong_usage(run: Run, database: Path, arguments: tuple[str, ...], why: str) -> None:
    assert run(*arguments) == 2
    assert why in run.err


def test_what_is_not_there(run: Run, tmp_path: Path, database: Path) -> None:
    none = tmp_path / "none.db"
    for arguments in (("verify", none), ("import", none), ("merge", none), ("diff", none, none)):
        assert run(*arguments) == 1
        assert run.err == f"Error: {none} cannot be read: No such file or directory\n"
    assert run("export", "--out", tmp_path / "x.db", "--db", none) == 2
    assert run("export", "--out", tmp_path / "x.db", "--label", "measured") == 1 and "no answers match" in run.err
    assert run("export", "--out", tmp_path) == 2 and "is a folder" in run.err
    assert os.listdir(tmp_path) == ["mine.db"]


def test_explain_over_shipped_files(run: Run, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped.db"
    sizes = {"experts": 128, "top_k": 8, "hidden": 2048, "inter": 768}
    spec, target = spec_of("moe_down"), device_named("MI300X")
    problem = spec.space.problem(dtype="bf16", batch=8, **sizes)
    config = spec.space.default_config(problem, target).json()
    theirs = answer(8, "moe_down", config_json=config)
    cell = Cell(**{**_fields(theirs.cell), "signature": problem.signature})
    with ConfigStore.open(tmp_path / "made.db") as store:
        store.put_tuned(TunedRow(**{**vars(theirs), "cell": cell}))
    assert run("export", "--db", tmp_path / "made.db", "--out", shipped) == 0
    monkeypatch.setenv("PAITON_DB", os.pathsep.join(map(str, (database, shipped, tmp_path / "none.db"))))
    usual = ("explain", "--arch", "gfx942", "--model", "Qwen3-30B-A3B", "--kernel", "moe_down", "--batch")
    found = run.json(*usual, 8)
    assert (found["tier"], found["database"]) == ("exact", str(shipped))
    assert run.err == f"left out: no database at {tmp_path / 'none.db'}; `autotune run` makes one\n"
    assert run(*usual, 1024) == 0
    line = "autotune run --arch gfx942 --device MI300X --model Qwen3-30B-A3B --kernel moe_down --batch-sizes 1024"
    assert f"  tune it   {line}\n" in run.out
    assert run(*line.split()[1:], "--dry-run") == 0, run.err


def test_a_licence_for_rows_without_one(run: Run, database: Path, tmp_path: Path) -> None:
    out = tmp_path / "licensed.jsonl"
    assert run("export", "--for", "jsonl", "--out", out, "--licence", "CC0-1.0") == 0
    first = tmp_path / "again.db"
    assert run("import", out, "--db", first) == 0
    assert run("export", "--for", "jsonl", "--out", tmp_path / "b.jsonl", "--db", first, "--licence", "MIT") == 0
    again = (tmp_path / "b.jsonl").read_text()
    assert '"CC0-1.0"' in again and "MIT" not in again
    assert out.name in again  # and whose word it is
    assert run("export", "--for", "vllm", "--out", tmp_path / "x", "--licence", "MIT") == 2
    assert "no place for it" in run.err


def test_doctor_checks_shipped_files(run: Run, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, broken = tmp_path / "shipped.db", tmp_path / "broken.db"
    assert run("export", "--out", shipped) == 0
    broken.write_bytes(shipped.read_bytes()[:5000])
    monkeypatch.setenv("PAITON_DB", os.pathsep.join(map(str, (database, shipped, broken))))
    found = {each["text"]: each["is_sound"] for each in run.json("doctor") if each["check"] == "shipped database"}
    assert found.pop(f"{shipped}: 3 answers") is True
    ((text, is_sound),) = found.items()
    assert text.startswith(f"{broken} is damaged") and not is_sound
