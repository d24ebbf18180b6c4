"""A stranger's file: refused with one line or read unharmed, and never changed."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paiton.cache.errors import StoreError
from paiton.cache.export import write_shipped
from paiton.cache.formats.peer_file import Peer, PeerFile, PeerName
from paiton.cache.formats.peer_rows import rows_of
from paiton.cache.lookup import Lookup
from paiton.cache.rows import OURS, Candidate, Label, Source, TunedRow
from paiton.cache.store import ConfigStore
from paiton.cache.untrusted import Limits, Refused, as_prior, attributed, check_rows, read_untrusted
from paiton.search_spaces.arch import device_named
from paiton.search_spaces.registry import space_of

SIZES = {"experts": 128, "hidden": 2048, "inter": 768, "top_k": 8}
SIGNATURE = "experts=128,hidden=2048,inter=768,top_k=8"


@pytest.fixture
def rows(build: Any) -> list[TunedRow]:
    space, device = space_of("moe_down"), device_named("MI300X")
    found = []
    for batch in (1, 2, 4):
        config = space.default_config(space.problem(dtype="bf16", batch=batch, **SIZES), device).json()
        short = (Candidate(config_json=config, score=1.0),)
        found.append(build.measured(build.cell(batch=batch), config_json=config, shortlist=short, ts_ms=5))
    return found


@pytest.fixture
def shipped(tmp_path: Path, rows: list[TunedRow]) -> Path:
    write_shipped(rows, tmp_path / "stranger.db")
    return tmp_path / "stranger.db"


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def by_batch(rows: list[TunedRow]) -> list[TunedRow]:
    return sorted(rows, key=lambda row: row.cell.batch)


def test_a_shipped_file_and_a_users_database_are_read(shipped: Path, rows: list[TunedRow], tmp_path: Path) -> None:
    before = shipped.read_bytes()
    assert by_batch(read_untrusted(shipped)) == rows
    with ConfigStore.open(tmp_path / "users.db") as store:
        store.put_all_tuned(rows)
        with pytest.raises(Refused, match="is in use, or was left in WAL mode"):
            read_untrusted(tmp_path / "users.db")
    assert by_batch(read_untrusted(tmp_path / "users.db")) == rows
    assert shipped.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["stranger.db", "users.db"]


FORGED = "UPDATE tuned SET {} WHERE batch = 2"


@pytest.mark.parametrize(
    ("statements", "why"),
    [
        (["CREATE VIEW extra AS SELECT 1"], "holds a view extra"),
        (["CREATE TRIGGER evil AFTER INSERT ON tuned BEGIN DELETE FROM tuned; END"], "holds a trigger evil"),
        (["CREATE TABLE more (a)"], "holds a table more"),
        (["CREATE INDEX slow ON tuned (batch)"], "holds a index slow"),
        (["ALTER TABLE tuned ADD COLUMN extra TEXT"], "holds a table tuned"),
        (["DROP TABLE meta"], "lacks the tables meta"),
        (
            ["ALTER TABLE tuned RENAME TO hidden", "CREATE VIEW tuned AS WITH RECURSIVE n(x) AS"
             " (SELECT 1 UNION ALL SELECT x FROM n) SELECT x FROM n"],
            "that Paiton does not make",
        ),
        (["PRAGMA user_version=2"], "has schema 2, this Paiton reads 1"),
        (["PRAGMA user_version=0"], "has schema 0"),
        (["PRAGMA application_id=7"], "application id 0x7"),
        (["PRAGMA journal_mode=WAL"], "WAL mode"),
        ([FORGED.format("us_median = 1.0")], "column row_digest is not what the row says"),
        ([FORGED.format("us_median = 9e999")], "expected a finite positive number"),
        ([FORGED.format("us_median = -4.0")], "expected a finite positive number"),
        ([FORGED.format("us_median = 'fast'")], "expected a finite positive number"),
        ([FORGED.format("us_median = NULL")], "us_median and samples > 0"),
        ([FORGED.format("samples = 'many'")], "samples='many'"),
        ([FORGED.format("label = 1")], "a score is required"),
        ([FORGED.format("batch = 99")], "column key is not what the row says"),
        ([FORGED.format("key = x'00'")], "column key"),
        ([FORGED.format("compiler = x'0000000000000000'")], "column compiler"),
        ([FORGED.format("kernel = CAST(x'6d00' AS TEXT)")], "expected printable text"),
        ([FORGED.format("kernel = CAST(x'ff' AS TEXT)")], "is damaged: Could not decode"),
        ([FORGED.format("kernel = 5")], "column kernel|column key|expected printable"),
        ([FORGED.format("config = '{\"a\":'")], "expected a JSON object"),
        ([FORGED.format("shortlist = printf('%.*c', 200000, '[')")], "is damaged|row"),
        ([FORGED.format("config = printf('%.*c', 200000, '{')")], "expected a JSON object"),
        ([FORGED.format("facts = zeroblob(20000000)")], "damaged"),
        ([FORGED.format("env = 77")], "env 77 or source 1 is not there"),
        (["UPDATE env SET triton = 'other'"], "row 1 of table env: column digest is not"),
        (["UPDATE env SET digest = x'00'"], "row 1 of table env: column digest is not"),
        (["UPDATE source SET licence = 'mine'"], "row 1 of table source: column digest is not"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused(shipped: Path, statements: list[str], why: str) -> None:
    change(shipped, *statements)
    before = shipped.read_bytes()
    with pytest.raises(Refused, match=why) as refusal:
        read_untrusted(shipped)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 700
    assert shipped.read_bytes() == before


def test_what_is_no_database_is_refused(tmp_path: Path, shipped: Path) -> None:
    (tmp_path / "text.db").write_text("SQLite format 3, or so" * 20)
    (tmp_path / "short.db").write_bytes(shipped.read_bytes()[:99])
    (tmp_path / "stranger.db-wal").write_bytes(b"left over")
    for name, why in {
        "text.db": "is not a SQLite", "short.db": "is not a SQLite", "none.db": "No such file", "stranger.db": "in use",
    }.items():  # fmt: skip
        with pytest.raises(Refused, match=why):
            read_untrusted(tmp_path / name)
    with pytest.raises(Refused, match="cannot be read: Is a directory"):
        read_untrusted(tmp_path)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(file_bytes=100), "bytes, at most 100 are accepted"),
        (Limits(rows=2), "3 rows in tuned, at most 2"),
        (Limits(seconds=0.0), "not read within 0 s|not checked within"),
    ],
)
def test_a_file_may_not_cost_more_than_the_limits(shipped: Path, limits: Limits, why: str) -> None:
    with pytest.raises(Refused, match=why):
        read_untrusted(shipped, limits=limits)


def test_an_endless_query_is_stopped(tmp_path: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema check comes first and refuses such a view; this is the second line of defence."""
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT count(*) FROM n"
    monkeypatch.setattr("paiton.cache.untrusted._ROWS", endless)
    with pytest.raises(Refused, match=r"not read within 0\.3 s"):
        read_untrusted(shipped, limits=Limits(seconds=0.3))


@pytest.mark.parametrize(
    ("change_row", "why"),
    [
        (lambda row: replace(row, ts_ms=10**15), "lies in the future"),
        (lambda row: replace(row, config_json='{"BLOCK_M":16}'), "is missing"),
        (lambda row: replace(row, config_json=row.config_json.replace("}", ',"rm":"-rf"}')), "rm is no parameter"),
        (lambda row: replace(row, config_json='{"a":[1]}'), "cannot be checked"),
        (lambda row: replace(row, shortlist=(Candidate(config_json="{}", score=1.0),)), "is missing"),
        (lambda row: replace(row, cell=replace(row.cell, kernel="rm_rf")), "unknown kernel 'rm_rf'"),
        (lambda row: replace(row, cell=replace(row.cell, device="MI999")), "unknown device"),
        (lambda row: replace(row, cell=replace(row.cell, arch="gfx950")), "not spelled as Paiton"),
        (lambda row: replace(row, cell=replace(row.cell, dtype="fp3")), "dtype 'fp3'"),
        (lambda row: replace(row, cell=replace(row.cell, signature="a=1")), "has not the sizes of"),
        (lambda row: replace(row, cell=replace(row.cell, signature=SIGNATURE.replace("experts=128,", ""))), "sizes"),
        (lambda row: replace(row, cell=replace(row.cell, signature=SIGNATURE.replace("128", "0128"))), "not spelled"),
        (lambda row: replace(row, cell=replace(row.cell, signature="drop table")), "expected name=integer"),
        (lambda row: replace(row, cell=replace(row.cell, signature=SIGNATURE.replace("2048", "0"))), "config|cannot"),
    ],
)  # fmt: skip
def test_well_formed_rows_with_a_fault_are_refused(
    tmp_path: Path, rows: list[TunedRow], change_row: Any, why: str
) -> None:
    write_shipped([change_row(rows[0]), *rows[1:]], tmp_path / "bad.db")
    with pytest.raises(Refused, match=why):
        read_untrusted(tmp_path / "bad.db")


def test_files_of_ones_own_may_hold_what_older_kernels_made(tmp_path: Path, rows: list[TunedRow]) -> None:
    old = replace(rows[0], config_json='{"OLD":1}')
    write_shipped([old], tmp_path / "old.db")
    assert read_untrusted(tmp_path / "old.db", are_configs_checked=False) == [old]


def test_rows_for_peers_must_be_what_an_import_makes(build: Any) -> None:
    tile = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "USE_TMA": True}
    name = PeerName(experts=8, inter=64, device="NVIDIA_H200", down=True)
    (row,) = rows_of(PeerFile(peer=Peer.SGLANG, name=name, ladder=((4, tile),), triton="3.6.0"), version="1")
    check_rows([row], where="x")
    cell = row.cell
    for bad in (
        replace(row, label=Label.MEASURED, us_median=1.0, samples=3),
        replace(row, config_json='{"BLOCK_SIZE_M":16}'),
        replace(row, config_json=str(row.config_json).replace('"USE_TMA":1', '"USE_TMA":7')),
        replace(row, config_json=str(row.config_json).replace("USE_TMA", "RM_RF")),
        replace(row, cell=replace(cell, signature="E=8")),
        replace(row, cell=replace(cell, signature="E=8,N=x")),
        replace(row, cell=replace(cell, signature="N=64,E=8")),
        replace(row, cell=replace(cell, device="a,dtype=x")),
        replace(row, cell=replace(cell, arch="gfx942")),
        replace(row, cell=replace(cell, kernel_digest="other")),
    ):
        with pytest.raises(Refused):
            check_rows([bad], where="x")


def _outcomes(original: bytes, path: Path, corrupted: Any, rows: list[TunedRow]) -> tuple[int, int]:
    refused = harmless = 0
    for data in corrupted:
        if data == original:
            continue
        path.write_bytes(data)
        try:
            found = read_untrusted(path)
        except Refused as error:
            line, refused = str(error), refused + 1
        else:
            line, harmless = "", harmless + 1
            assert by_batch(found) == rows
        assert line == "" or line.isprintable()
    return refused, harmless


def _random_damage(data: bytes, count: int) -> Any:
    source = random.Random(4)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(source.choice((1, 1, 4, 64))):
            damaged[source.randrange(len(data))] ^= 1 << source.randrange(8)
        if source.random() < 0.1:
            damaged = damaged[: source.randrange(len(data))]
        yield bytes(damaged)


def _guided_damage(data: bytes, count: int) -> Any:
    """Where it hurts: the file header, the page headers, cell pointers, and inside the cells that are in use."""
    source = random.Random(5)
    pages = range(0, len(data), int.from_bytes(data[16:18], "big"))
    used = [at for at in range(len(data)) if data[at]]
    for number in range(count):
        damaged = bytearray(data)
        at = (source.randrange(100), source.choice(pages) + source.randrange(24), source.choice(used))[number % 3]
        damaged[min(at, len(data) - 1)] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
        yield bytes(damaged)


@pytest.mark.parametrize("damage", [_random_damage, _guided_damage])
def test_damaged_files_are_refused_or_harmless(
    shipped: Path, rows: list[TunedRow], tmp_path: Path, damage: Any
) -> None:
    original = shipped.read_bytes()
    refused, harmless = _outcomes(original, tmp_path / "damaged.db", damage(original, 1000), rows)
    assert refused > 200 and refused + harmless > 500


@pytest.mark.parametrize("damage", [_random_damage, _guided_damage])
def test_a_damaged_file_is_never_served(shipped: Path, rows: list[TunedRow], tmp_path: Path, damage: Any) -> None:
    """Also where nobody verified it: as a layer under the user's file, what answers is a row that was written."""
    original, path = shipped.read_bytes(), tmp_path / "layer.db"
    answered = 0
    for data in damage(original, 300):
        path.write_bytes(data)
        with Lookup.open(tmp_path / "none.db", shipped=[path]) as lookup:
            try:
                found = [lookup.find(row.cell).row for row in rows]
            except StoreError:
                continue
        assert all(got in (None, row) for got, row in zip(found, rows, strict=True))
        answered += all(found)
    assert answered > 30


def test_a_strangers_word_is_a_prior_with_its_origin(rows: list[TunedRow]) -> None:
    (row, other, *_) = attributed([rows[0], replace(rows[1], source=Source(name="vLLM", licence="MIT"))],
                                  origin="friend.db", signer="a@b")  # fmt: skip
    assert rows[0].source == OURS and row.source == Source(name="friend.db", version="0.1.0", signer="a@b")
    assert other.source == Source(name="vLLM", licence="MIT", signer="a@b")
    (prior,) = as_prior([row])
    assert (prior.label, prior.us_median, prior.config_json) == (Label.PRIOR, row.us_median, row.config_json)
