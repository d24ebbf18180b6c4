"""The command line: what each command prints, and one line and an exit status for each mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from paiton.autotune.cli import status_of
from paiton.autotune.commands.doctor import KNOWN_VARIABLES
from paiton.cache.store import ConfigStore, TunedFilter
from paiton.search_spaces.arch import known_devices
from paiton.search_spaces.presets import PRESETS

MODEL = "Qwen3-30B-A3B"
NORMS = (
    "--arch",
    "gfx942",
    "--model",
    MODEL,
    "--kernel",
    "rms_norm",
    "--kernel",
    "add_rms_norm",
    "--batch-sizes",
    "1,2",
)


@dataclass(frozen=True)
class Said:
    """How a command line ended and what it wrote."""

    status: int
    out: str
    err: str


def say(*arguments: str) -> Said:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = status_of(list(arguments))
    return Said(status, out.getvalue(), err.getvalue())


def fresh(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The two norm kernels at two batch sizes for gfx942, really compiled; and what the run said."""
    path = tmp_path_factory.mktemp("tuned") / "tuned.db"
    return path, say("run", *NORMS, "--jobs", "1", "--db", str(path))


@pytest.fixture
def database(tuned: tuple[Path, Said], tmp_path: Path) -> Path:
    """A copy of the tuned database."""
    return Path(shutil.copy(tuned[0], tmp_path / "tuned.db"))


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--arch", "gfx943"),
            "Invalid value for --arch: unknown arch 'gfx943', nearest known is gfx942; "
            "known archs: gfx942, gfx950, gfx90a, sm_80, sm_90, sm_100",
        ),
        (
            ("--arch", "gfx942", "--device", "H100"),
            "Invalid value for --device: device H100 is sm_90, not gfx942; gfx942 devices: MI300X, MI300A, MI325X",
        ),
        (
            ("--model", "Qwen3-30B-A4B"),
            "Invalid value for --model: unknown model 'Qwen3-30B-A4B', nearest presets: Qwen3-30B-A3B, "
            "Qwen3-235B-A22B, Qwen3-4B; accepted are a preset, a path to a config.json or its folder, "
            "or a hub id such as Qwen/Qwen3-32B",
        ),
        (
            ("--batch-sizes", "-1"),
            "Invalid value for '--batch-sizes': '-1' in '-1' is not a positive integer; expected e.g. 1,2,4",
        ),
        (
            ("--batch-sizes", "1,x"),
            "Invalid value for '--batch-sizes': 'x' in '1,x' is not a positive integer; expected e.g. 1,2,4",
        ),
        (("--batch-sizes", "99999999"), "batch size 99999999 is outside 1..1048576"),
        (
            ("--prefill-lengths", "0"),
            "Invalid value for '--prefill-lengths': '0' in '0' is not a positive integer; expected e.g. 1,2,4",
        ),
        (("--dtype", "int4"), "dtype 'int4' is not one of bf16, fp16, fp32"),
        (("--tp", "3"), "Qwen3-30B-A3B: query heads 32 cannot be divided among 3 ranks"),
        (("--trials", "0"), "Invalid value for '--trials': 0 is not in the range x>=1."),
        (("--budget", "soon"), "Invalid value for '--budget': 'soon' is not a time; expected e.g. 90s, 10m or 1.5h"),
        (("--timeout", "0"), "Invalid value for '--timeout': '0' is not a time; expected e.g. 90s, 10m or 1.5h"),
        (
            ("--db", "/proc/nowhere/tuned.db"),
            "cannot use /proc/nowhere/tuned.db as a database: No such file or directory; name a file that is writable",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_mistakes_of_the_user_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    usual = ("run", "--arch", "gfx942", "--model", MODEL, "--kernel", "rms_norm", "--batch-sizes", "1")
    if "--tp" in arguments:
        usual = usual[:5]
    assert say(*usual, *arguments) == Said(2, "", f"Error: {message}\n")


def test_an_unknown_kernel_is_named(tmp_path: Path) -> None:
    said = say("run", "--arch", "gfx942", "--model", MODEL, "--kernel", "norm")
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("Error: unknown kernel 'norm'; known: rms_norm, add_rms_norm, linear,")
    assert say("run", "--arch", "gfx942", "--model", "Qwen3-32B", "--kernel", "router").err.startswith(
        "Error: Qwen3-32B uses none of router; it uses rms_norm,"
    )
    assert say("run", "--arch", "gfx942").err == "Error: Missing option '--model'.\n"
    assert say("tune").err.startswith("Error: No such command 'tune'.")


def test_without_a_gpu_an_arch_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paiton.autotune.local_gpu.find_local_gpu", lambda: None)
    assert say("run", "--model", MODEL) == Said(
        2,
        "",
        "Error: this machine has no GPU that torch can see: name the one to tune for, for example --arch gfx942 "
        "(`autotune archs` lists them)\n",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes"),
        ("[1]", "the configuration is a JSON array, expected an object"),
        (None, "no file"),
        (
            '{"model_type": "qwen3_moe"}',
            "missing num_hidden_layers, hidden_size, num_attention_heads, vocab_size, num_key_value_heads, "
            "num_experts, num_experts_per_tok, moe_intermediate_size",
        ),
    ],
    ids=["broken", "no object", "absent", "fields"],
)
def test_a_config_that_cannot_be_used_is_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    said = say("run", "--arch", "gfx942", "--model", str(path))
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("Error: Invalid value for --model: ") and message in said.err
    assert "config.json" in said.err or tmp_path.name in said.err, "the file is named"


def test_an_unreadable_config_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe{}")
    said = say("run", "--arch", "gfx942", "--model", str(path))
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1) and str(path) in said.err
    if os.geteuid() == 0:
        pytest.skip("the superuser can read any file: no permission to be refused")
    path.chmod(0)
    assert say("run", "--arch", "gfx942", "--model", str(path)).err == (
        f"Error: Invalid value for --model: cannot read '{path}': Permission denied\n"
    )


def test_files_that_are_no_database_are_left_alone(tmp_path: Path) -> None:
    other, foreign = tmp_path / "notes.txt", tmp_path / "foreign.db"
    other.write_text("these are notes, not a database\n" * 99)
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE mine(a)")
    connection.close()
    before = foreign.read_bytes()
    for command in (("run", *NORMS), ("show",)):
        assert say(*command, "--db", str(other)) == Said(
            2, "", f"Error: {other} is not a SQLite database; name a Paiton database or a new file\n"
        )
        said = say(*command, "--db", str(foreign))
        assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
        assert said.err.startswith(f"Error: {foreign} is a SQLite database but not Paiton's")
    assert other.read_text().count("notes") == 99 and foreign.read_bytes() == before
    missing = tmp_path / "none.db"
    assert say("show", "--db", str(missing)) == Said(
        2, "", f"Error: no database at {missing}; `autotune run` makes one\n"
    )


LIMITED = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from paiton.autotune.cli import main
main(sys.argv[2:])
"""


def test_a_disk_that_fills_is_one_line_and_nothing_is_lost(database: Path) -> None:
    """A limit on file sizes stands for the full disk: the write-ahead log may not grow past 16 KiB."""
    before = json.loads(say("show", "--json", "--db", str(database)).out)
    arguments = ("run", *NORMS, "--batch-sizes", "4", "--jobs", "1", "--db", str(database))
    done = fresh(LIMITED, "16384", *arguments)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and str(database) in last and "committed rows are safe" in last
    assert "Traceback" not in done.stderr
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert json.loads(say("show", "--json", "--db", str(database)).out) == before
    later = say(*arguments, "--json")
    assert later.status == 0 and json.loads(later.out)["cells_tuned"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[1]", 'is not a JSON object such as {"linear": {"BLOCK_K": [2048]}}'),
        ('{"gemm": {}}', "names the kernel 'gemm'; known: rms_norm,"),
        ('{"rms_norm": [1]}', "rms_norm is not an object of parameters and lists of values"),
        (
            '{"rms_norm": {"BLOCK_H": 3}}',
            "rms_norm.BLOCK_H is '3', expected a list of 1 to 64 positive integers or words",
        ),
        ('{"rms_norm": {"BLOCK_H": []}}', "rms_norm.BLOCK_H is '[]', expected a list"),
        ('{"rms_norm": {"BLOCK_H": [0]}}', "rms_norm.BLOCK_H is '[0]', expected a list"),
        ('{"rms_norm": {"BLOCK_H": [true]}}', "rms_norm.BLOCK_H is '[True]', expected a list"),
        ('{"rms_norm": {"BLOCK_H": [1.5]}}', "rms_norm.BLOCK_H is '[1.5]', expected a list"),
        ('{"rms_norm": {"BLOCK_X": [1]}}', "BLOCK_X is no parameter of rms_norm on MI300X; known: BLOCK_H, num_warps"),
        ('{"rms_norm": {"BLOCK_H": ["wide"]}}', "rms_norm.BLOCK_H can be a positive integer, not 'wide'"),
        ('{"linear": {"DOT": [2]}}', "linear.DOT can be one of 0, 1, not 2"),
        ('{"moe_gate_up": {"FORM": ["both"]}}', "moe_gate_up.FORM can be one of pair, expert, not 'both'"),
        ('{"rms_norm": {"BLOCK_H": [' + "1," * 40000 + "1]}}", "bytes, at most 65536 are read"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_mistakes_in_a_space_file_are_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    if text is not None:
        path.write_text(text)
    said = say("run", "--arch", "gfx942", "--model", MODEL, "--batch-sizes", "1", "--space", str(path), "--dry-run")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("Error: Invalid value for --space: ") and message in said.err


def test_a_sound_space_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    path.write_text(
        '{"linear": {"BLOCK_K": [4096], "DOT": [1]}, "moe_gate_up": {"FORM": ["pair"]}, "attention_prefill": {}}'
    )
    said = say("run", "--arch", "gfx942", "--model", MODEL, "--batch-sizes", "1", "--space", str(path), "--dry-run")
    assert (said.status, said.err) == (0, "")


# What the commands print.


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "optuna", "sqlalchemy", "triton", "transformers", "rich")
    code = (
        "import sys\nfrom paiton.autotune.cli import status_of\n"
        "statuses = [status_of(each) for each in (['--help'], ['run', '--help'], ['--version'])]\n"
        f"print('heavy:', statuses, [name for name in {heavy!r} if name in sys.modules])"
    )
    done = fresh(code)
    assert done.stdout.splitlines()[-1] == "heavy: [0, 0, 0] []", done.stderr
    for words in ("run", "show", "explain", "archs", "models", "doctor", "Exit status: 0 done, 1 the work failed"):
        assert words in done.stdout
    module = subprocess.run(
        [sys.executable, "-m", "paiton.autotune", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert module.stdout.startswith("autotune, version ") and module.returncode == 0


def test_a_dry_run_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "never.db"
    arguments = ("run", *NORMS, "--db", str(path), "--dry-run")
    text = say(*arguments)
    assert text.status == 0 and text.err == ""
    flat = " ".join(text.out.split())
    assert "Nothing was tuned (dry run)" in flat and "4 cells, at most" in flat and "trials each" in flat
    plain = say(*arguments, "--json", "--trials", "7")
    found = json.loads(plain.out)
    assert (found["device"], found["trials_per_cell"], len(found["cells"])) == ("MI300X", 7, 4)
    assert found["cells"][0] == {"kernel": "rms_norm", "signature": "hidden=2048", "dtype": "bf16", "batch": 1}
    assert not path.exists()
    whole = json.loads(say("run", "--arch", "gfx942", "--model", MODEL, "--dry-run", "--json").out)
    batches = {cell["batch"] for cell in whole["cells"]}
    assert {1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 512, 8192} <= batches
    prefill = json.loads(
        say("run", "--arch", "gfx942", "--model", MODEL, "--prefill-lengths", "512", "--dry-run", "--json").out
    )
    assert {cell["batch"] for cell in prefill["cells"]} == {512}, "prompt lengths alone ask for prefill alone"


def test_a_run_says_what_it_did(tuned: tuple[Path, Said]) -> None:
    path, said = tuned
    assert said.status == 0, said.err
    assert said.err.startswith("No MI300X is measured: candidates are compiled for gfx942")
    assert "4 cells answered (4 tuned, 0 known before), 24 new trials (24 ok)" in said.out
    assert "estimated" in said.out and "not run" in said.out and "measured on" not in said.out
    assert str(path) in said.out.replace("\n", "")


def test_a_second_run_is_known(database: Path) -> None:
    said = say("run", *NORMS, "--db", str(database), "--json")
    found = json.loads(said.out)
    assert said.status == 0 and said.out.count("\n") == 1
    assert (found["cells"], found["cells_known"], found["cells_tuned"], found["trials"]) == (4, 4, 0, 0)
    assert (found["cells_left"], found["cells_failed"], found["was_interrupted"]) == (0, [], False)
    assert found["compiles"]["compiled"] == 0 and found["database"] == str(database)


def test_show(database: Path) -> None:
    text = say("show", "--db", str(database))
    assert text.status == 0 and text.out.count("rms_norm") == 4 and "estimated = compiled for the target" in text.out
    rows = json.loads(say("show", "--db", str(database), "--json").out)
    assert {(row["kernel"], row["batch"]) for row in rows} == {
        (kernel, batch) for kernel in ("rms_norm", "add_rms_norm") for batch in (1, 2)
    }
    for row in rows:
        assert row["label"] == "estimated" and row["us_median"] is None and row["score"] > 0 and row["gain"] >= 1
        assert row["config"]["num_warps"] >= 1 and row["facts"]["registers"] > 0
        assert len(row["shortlist"]) == 6 and row["shortlist"][0]["config"] == row["config"]
        assert row["triton"] and "not run" in row["policy"]
    one = json.loads(
        say("show", "--db", str(database), "--json", "--kernel", "rms_norm", "--batch", "2", "--arch", "gfx942").out
    )
    assert [(row["kernel"], row["batch"]) for row in one] == [("rms_norm", 2)]
    trials = json.loads(say("show", "--db", str(database), "--trials", "--json").out)
    assert [each["trials"] for each in trials] == [6] * 4
    assert "trials" in say("show", "--db", str(database), "--trials").out
    nothing = say("show", "--db", str(database), "--device", "H100")
    assert nothing.status == 0 and nothing.out.startswith(f"no answers match in {database}")


def test_explain(database: Path) -> None:
    usual = ("explain", "--arch", "gfx942", "--model", MODEL, "--kernel", "rms_norm", "--db", str(database), "--batch")
    rows = json.loads(say("show", "--db", str(database), "--json", "--kernel", "rms_norm").out)
    exact = json.loads(say(*usual, "2", "--json").out.splitlines()[0])
    assert exact["label"] == "estimated"
    assert exact["config"] in [row["config"] for row in rows if row["batch"] == 2]
    text = say(*usual, "2")
    assert text.status == 0 and text.err == ""
    for words in (
        "because",
        "evidence  estimated",
        "made by   Paiton",
        "shortlist",
        "configs are legal on MI300X",
        "static model",
    ):
        assert words in text.out
    assert not exact["other_compiler"] and "under another compiler" not in text.out
    near = json.loads(say(*usual, "3", "--json").out.splitlines()[0])
    assert near["tier"] != exact["tier"] and near["reason"]
    missing = say("explain", *usual[1:-3], "--db", str(database) + ".none", "--batch", "2")
    assert missing == Said(2, "", f"Error: no database at {database}.none; `autotune run` makes one\n")
    assert say(*usual[:6], "norm", *usual[7:], "2").err.startswith("Error: unknown kernel 'norm'")


def test_explain_says_when_another_triton_found_the_answer(database: Path, tmp_path: Path) -> None:
    usual = ("explain", "--arch", "gfx942", "--model", MODEL, "--kernel", "rms_norm", "--batch", "2")
    old = tmp_path / "old.db"
    with ConfigStore.open(database, read_only=True) as store:
        rows = [
            dataclasses.replace(row, env=dataclasses.replace(row.env, triton="3.5.0", triton_key="old"))
            for row in store.tuned(TunedFilter(kernel="rms_norm"))
        ]
    with ConfigStore.open(old) as store:
        store.put_all_tuned(rows)
    text = say(*usual, "--db", str(old))
    assert "exact; estimated; under another compiler (Triton 3.5.0), retune to confirm" in text.out
    assert json.loads(say(*usual, "--db", str(old), "--json").out.splitlines()[0])["other_compiler"]


def test_archs() -> None:
    text = say("archs")
    assert text.status == 0 and all(device.name in text.out for device in known_devices())
    assert "gfx942 = MI300X" in text.out
    assert len(json.loads(say("archs", "--json").out)) == len(known_devices())
    one = json.loads(say("archs", "gfx942:sramecc+:xnack-", "--json").out)
    assert (one["name"], one["arch"], one["compute_units"]) == ("MI300X", "gfx942", 304)
    assert "source" in say("archs", "MI325X").out
    assert (
        say("archs", "gfx9") == Said(2, "", say("archs", "gfx9").err)
        and "unknown arch 'gfx9'" in say("archs", "gfx9").err
    )


def test_models() -> None:
    text = say("models")
    assert text.status == 0 and all(model.name in text.out for model in PRESETS)
    assert {model["name"] for model in json.loads(say("models", "--json").out)} == {model.name for model in PRESETS}
    kernels = json.loads(say("models", MODEL, "--json").out)
    assert {"rms_norm", "moe_gate_up", "attention_decode"} <= {each["kernel"] for each in kernels}
    assert "moe_down" in say("models", MODEL).out
    assert say("models", MODEL, "--tp", "5").status == 2
    assert say("models", "nothing").err.startswith("Error: Invalid value for --model: unknown model 'nothing'")


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without what doctor complains of."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for name in [name for name in os.environ if name.startswith("PAITON_") and name not in KNOWN_VARIABLES]:
        monkeypatch.delenv(name)


def test_doctor_finds_a_sound_installation(sound: None, database: Path) -> None:
    said = say("doctor", "--db", str(database))
    assert said.status == 0, said.out
    assert f"database: {database}: 4 estimated" in said.out and "FAULT" not in said.out
    findings = json.loads(say("doctor", "--db", str(database), "--json").out)
    assert {"torch", "triton", "optuna", "sqlalchemy", "compilers", "gpu", "database"} <= {
        each["check"] for each in findings
    }
    assert all(each["is_sound"] for each in findings)
    assert "does not exist yet" in say("doctor", "--db", str(database) + ".none").out


def test_doctor_reports_what_means_nothing(sound: None, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAITON_BD", "x")
    said = say("doctor", "--db", str(database))
    assert (
        said.status == 1
        and "FAULT environment: PAITON_BD is set but means nothing; did you mean PAITON_DB?" in said.out
    )
    monkeypatch.delenv("PAITON_BD")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET is set" in say("doctor", "--db", str(database)).out
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert say("doctor", "--db", str(database)).status == 0


def test_doctor_reports_a_broken_database(sound: None, tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    path.write_text("no database at all " * 99)
    said = say("doctor", "--db", str(path))
    assert said.status == 1 and f"FAULT database: {path} is not a SQLite database" in said.out


def test_doctor_compiles_every_current_answer_again(sound: None, database: Path) -> None:
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("UPDATE tuned SET kernel_digest = 'other' WHERE batch = 1")
        connection.execute("UPDATE tuned SET kernel = 'gone' WHERE batch = 1 AND kernel = 'rms_norm'")
    connection.close()
    said = say("doctor", "--compile", "--jobs", "1", "--db", str(database))
    assert said.status == 0
    assert "ok    stored answers compile: 2 answers, 2 binaries, each compiled and within its chip's limits" in said.out
    assert "2 rows are of other kernel versions" in said.out


def test_a_closed_reader_ends_a_command_quietly() -> None:
    code = "import sys; from paiton.autotune.cli import main; main(['archs', '--json'])"
    done = subprocess.run(
        f"'{sys.executable}' -c \"{code}\" | true", shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr


def test_commands_do_not_share_state(database: Path) -> None:
    check: Callable[[], Said] = lambda: say("show", "--db", str(database), "--json")
    assert check() == check()
