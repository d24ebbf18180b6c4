"""The user's database over shipped ones: which row answers, and what a broken or foreign file may not do."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from paiton.cache.answer import Counts, Tier
from paiton.cache.errors import CorruptDatabase, DatabaseMissing
from paiton.cache.export import write_shipped
from paiton.cache.hint import run_line
from paiton.cache.location import database_path, shipped_databases
from paiton.cache.lookup import Lookup
from paiton.cache.rows import Label
from paiton.cache.store import ConfigStore


@pytest.fixture
def shipped(tmp_path: Path, build: Any) -> Path:
    """Batches 8 estimated and 16 measured, in a path that a careless URI would cut short."""
    path = tmp_path / "lib 100% #1?" / "shipped.db"
    rows = [build.estimated(build.cell(batch=8), score=3.0), build.measured(build.cell(batch=16))]
    write_shipped(rows, path)
    return path


@pytest.fixture
def user(path: Path, build: Any) -> Path:
    """Batches 8 and 16 estimated, 4 measured."""
    with ConfigStore.open(path) as store:
        store.put_all_tuned([build.estimated(build.cell(batch=b), config_json='{"MINE":1}') for b in (8, 16)])
        store.put_tuned(build.measured(build.cell(batch=4), config_json='{"MINE":1}'))
    return path


def test_the_better_label_wins_and_of_equal_labels_the_users(user: Path, shipped: Path, build: Any) -> None:
    with Lookup.open(user, shipped=[shipped]) as lookup:
        assert lookup.paths == (user, shipped) and lookup.skipped == ()
        mine, theirs, only = (lookup.find(build.cell(batch=b)) for b in (8, 16, 4))
        near = lookup.find(build.cell(batch=12))
    assert (mine.config_json, mine.database, mine.reason) == ('{"MINE":1}', user, "exact; estimated")
    assert (theirs.label, theirs.database) == (Label.MEASURED, shipped)
    assert theirs.reason == "exact; measured; from shipped.db"
    assert only.database == user
    assert near.reason == "batch 16 serves batch 12; measured; from shipped.db"


def test_of_two_shipped_files_the_earlier_wins(path: Path, tmp_path: Path, build: Any) -> None:
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.db")
        write_shipped([build.estimated(config_json=f'{{"{name}":1}}')], files[-1])
    for order in (files, files[::-1]):
        with Lookup.open(path, shipped=order) as lookup:
            assert lookup.find(build.cell()).database == order[0]
            assert lookup.skipped == (f"no database at {path}; `autotune run` makes one",)


def test_an_explanation_names_the_file_of_every_row(user: Path, shipped: Path, build: Any) -> None:
    with Lookup.open(user, shipped=[shipped]) as lookup:
        explained = lookup.explain(build.cell(batch=16))
        assert len(lookup.explain(build.cell(batch=16), limit=2).considered) == 2
    verdicts = [(each.row.cell.batch, each.database, each.verdict) for each in explained.considered]
    assert verdicts[:2] == [(16, shipped, "served"), (16, user, "same cell, weaker evidence")]
    assert len(verdicts) == 5 and explained.answer.database == shipped


def test_counts_by_tier(user: Path, build: Any) -> None:
    with Lookup.open(user) as lookup:
        for batch in (8, 8, 16, 12, 99):
            lookup.find(build.cell(batch=batch))
        lookup.find(build.cell(batch=8, device="MI325X"))
        counts = lookup.counts()
    assert counts == Counts(exact=3, other_batch=1, other_device=1, default=1)
    assert (counts.hits, counts.misses) == (5, 1)


def test_a_miss_is_logged_once_with_the_command(user: Path, build: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="paiton"), Lookup.open(user) as lookup:
        for batch in (1000, 2000, 1000):
            assert lookup.find(build.cell(batch=batch)).tier is Tier.DEFAULT
    (record,) = caplog.records
    line = "autotune run --arch gfx942 --device MI300X --model MODEL --kernel moe_down --batch-sizes 1000"
    assert record.getMessage().endswith(f"tune it with: {line}")


def test_a_miss_can_be_silent_and_still_counts(user: Path, build: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="paiton"), Lookup.open(user, report_misses=False) as lookup:
        assert lookup.find(build.cell(batch=1000)).tier is Tier.DEFAULT
        assert lookup.counts().misses == 1
    assert caplog.records == []


def test_the_problems_of_a_kernel_over_all_files(user: Path, tmp_path: Path, build: Any) -> None:
    def context(number: int, **values: Any) -> Any:
        return build.estimated(build.cell(kernel="attention_decode", signature=f"context={number}", **values))

    shipped = tmp_path / "shipped.db"
    theirs = [context(512), context(512, batch=64), context(4096, device="MI325X"), context(1, kernel_digest="old")]
    write_shipped([*theirs, context(2, dtype="fp16"), context(3, arch="gfx950", device="MI355X")], shipped)
    with ConfigStore.open(user) as store:
        store.put_all_tuned([context(512), context(8192), context(4, kernel_digest="old")])
    asked = ("attention_decode", "bf16", "gfx942")
    with Lookup.open(user, shipped=[shipped]) as lookup:
        found = lookup.signatures(*asked, kernel_digest="d1")
        assert found == ("context=4096", "context=512", "context=8192")
        assert lookup.signatures(*asked, kernel_digest="old") == ("context=1", "context=4")
        assert lookup.signatures(*asked, kernel_digest="other") == ()
        assert lookup.signatures("none", "bf16", "gfx942", kernel_digest="d1") == ()
        assert lookup.counts().misses == 0
    assert lookup.signatures(*asked, kernel_digest="d1") is found  # remembered: the files are closed


def test_a_file_that_breaks_is_left_out_of_the_problems_too(user: Path, shipped: Path, build: Any) -> None:
    asked = ("moe_down", "bf16", "gfx942")
    with Lookup.open(user, shipped=[shipped]) as lookup:
        connection = sqlite3.connect(user)
        connection.execute("DROP TABLE tuned")
        connection.close()
        assert lookup.signatures(*asked, kernel_digest="d1") == (build.cell().signature,)
        assert lookup.paths == (shipped,)


def test_the_command_for_a_cell(build: Any) -> None:
    prefill = run_line(build.cell(kernel="moe_grouped", dtype="fp16"), model="my model", tp=2)
    assert prefill.endswith("--model 'my model' --kernel moe_grouped --prefill-lengths 8 --dtype fp16 --tp 2")
    decode = build.cell(kernel="attention_decode", signature="context=512,head_dim=128")
    assert run_line(decode).endswith("--batch-sizes 8 --context 512")
    assert run_line(build.cell(), is_prefill=True).endswith("--kernel moe_down --prefill-lengths 8")


@pytest.mark.parametrize("kind", ["missing", "text", "foreign", "folder"])
def test_a_users_file_that_cannot_be_read_is_left_out(
    tmp_path: Path, shipped: Path, build: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    user = tmp_path / "user.db"
    if kind == "text":
        user.write_text("not a database" * 100)
    elif kind == "foreign":
        sqlite3.connect(user).executescript("CREATE TABLE theirs (a); PRAGMA user_version=1").close()
    elif kind == "folder":
        user.mkdir()
    with caplog.at_level(logging.INFO, logger="paiton"), Lookup.open(user, shipped=[shipped]) as lookup:
        assert lookup.find(build.cell(batch=16)).database == shipped
        assert len(lookup.skipped) == 1
    assert [record.levelname for record in caplog.records] == ["INFO" if kind == "missing" else "WARNING"]


@pytest.mark.parametrize("is_user", [True, False])
def test_a_file_that_breaks_while_serving_is_left_out(
    user: Path, shipped: Path, build: Any, is_user: bool, caplog: pytest.LogCaptureFixture
) -> None:
    broken = user if is_user else shipped
    connection = sqlite3.connect(broken)
    connection.execute("UPDATE tuned SET config = '{' WHERE batch = 8")
    connection.commit()
    connection.close()
    with Lookup.open(user, shipped=[shipped]) as lookup:
        answers = [lookup.find(build.cell(batch=b)) for b in (8, 16)]
        assert lookup.paths == ((shipped,) if is_user else (user,))
    assert {answer.database for answer in answers} == {shipped if is_user else user}
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{broken} is left out from now on: row ")


def test_a_file_whose_rows_may_lie_beside_it_is_no_shipped_file(user: Path, tmp_path: Path, build: Any) -> None:
    live = tmp_path / "live.db"
    with ConfigStore.open(live) as store:
        store.put_tuned(build.estimated())
        with Lookup.open(user, shipped=[live]) as lookup:
            assert "is no shipped database" in lookup.skipped[0]
    with Lookup.open(user, shipped=[live]) as lookup:  # closed, it is one plain file
        assert lookup.skipped == ()
    Path(f"{live}-wal").write_bytes(b"left over")
    with Lookup.open(user, shipped=[live]) as lookup:
        assert "is no shipped database" in lookup.skipped[0]


def test_alone_the_file_must_open(tmp_path: Path) -> None:
    with pytest.raises(DatabaseMissing):
        Lookup.open(tmp_path / "none.db")


def test_nothing_is_created_beside_a_shipped_file_and_a_rename_does_not_disturb(
    user: Path, shipped: Path, build: Any
) -> None:
    before = shipped.read_bytes()
    with Lookup.open(user, shipped=[shipped]) as lookup:
        write_shipped([build.estimated(build.cell(batch=16), score=1.0)], shipped)
        assert lookup.find(build.cell(batch=16)).label is Label.MEASURED
        assert os.listdir(shipped.parent) == ["shipped.db"]
    assert shipped.read_bytes() != before
    with Lookup.open(user, shipped=[shipped]) as lookup:
        assert lookup.find(build.cell(batch=16)).label is Label.ESTIMATED


FORKING = """
import os, sys
from pathlib import Path
from paiton.cache.key import Cell
from paiton.cache.lookup import Lookup
cell = Cell(arch="gfx942", device="MI300X", kernel="moe_down", kernel_digest="d1", dtype="bf16", batch=16,
            signature="experts=128,hidden=2048,inter=768,top_k=8")
children = []
for _ in range(64):
    child = os.fork()
    if child == 0:
        with Lookup.open(sys.argv[1], shipped=[sys.argv[2]]) as lookup:
            os._exit(0 if lookup.find(cell).reason == "exact; measured; from shipped.db" else 1)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_64_processes_read_at_once(user: Path, shipped: Path) -> None:
    shipped.chmod(0o444)
    shipped.parent.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", FORKING, user, shipped], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert os.listdir(shipped.parent) == ["shipped.db"]
    finally:
        shipped.parent.chmod(0o755)


# Where they are.


def test_the_environment_lists_the_users_and_shipped_files(tmp_path: Path) -> None:
    environ = {"PAITON_DB": os.pathsep.join(("~/mine.db", "/opt/a b.db", "", "~/c.db", "/opt/a b.db")), "HOME": "/h"}
    assert database_path(None, environ) == Path("/h/mine.db")
    assert database_path("x:y.db", environ) == Path("x:y.db")
    assert shipped_databases(environ, installed=(), own=tmp_path) == (Path("/opt/a b.db"), Path("/h/c.db"))
    usual = {"PAITON_DB": f"{os.pathsep}/opt/a.db", "HOME": "/h"}
    assert database_path(None, usual) == Path("/h/.local/share/paiton/paiton.db")
    assert shipped_databases(usual, installed=(), own=tmp_path) == (Path("/opt/a.db"),)
    assert shipped_databases({}, installed=(), own=tmp_path / "none") == ()
    (tmp_path / "ours.db").touch()
    assert shipped_databases(usual, installed=(), own=tmp_path) == (Path("/opt/a.db"), tmp_path / "ours.db")
    off = {**usual, "PAITON_SHIPPED": "0"}
    assert shipped_databases(off, installed=(), own=tmp_path) == (Path("/opt/a.db"),)


def test_packages_ship_databases_and_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("paiton_db_two", "paiton_db_one/inner"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "configs.db").touch()
    for package in ("paiton_db_one", "paiton_db_two"):
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = tmp_path / "own"
    own.mkdir()
    (own / "gfx942.db").touch()
    points = [
        EntryPoint(name=name, value=value, group="paiton.databases")
        for name, value in (("b", "paiton_db_two"), ("a", "paiton_db_one.inner"), ("c", "not_installed"), ("d", "..x"))
    ]
    assert shipped_databases({}, installed=points, own=own) == (
        tmp_path / "paiton_db_one/inner/configs.db",
        tmp_path / "paiton_db_two/configs.db",
        own / "gfx942.db",
    )


def test_the_broken_only_file_is_an_error(user: Path, build: Any) -> None:
    connection = sqlite3.connect(user)
    connection.execute("UPDATE tuned SET config = '{' WHERE batch = 8")
    connection.commit()
    connection.close()
    with Lookup.open(user) as lookup, pytest.raises(CorruptDatabase):
        lookup.find(build.cell(batch=8))
