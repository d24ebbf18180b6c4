"""Which config a call gets: states of the database, buckets, contexts, refused configs, misses, threads, reload."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

import pytest
import torch

from paiton.cache.answer import Tier
from paiton.compiler import selection
from paiton.compiler.ask import Ask
from paiton.compiler.choice import Choice
from paiton.compiler.ops.registry import OPERATORS
from paiton.kernels_triton import digest
from paiton.search_spaces.arch import device_named
from paiton.search_spaces.config import Config
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.registry import space_of

from .stored import other_config, row, write

MI300X = device_named("MI300X")


pytestmark = pytest.mark.usefixtures("database")


def norm(batch: int = 8, hidden: int = 64) -> Problem:
    return space_of("rms_norm").problem(dtype="fp32", batch=batch, hidden=hidden)


def decode(context: int, batch: int = 2, heads: int = 8) -> Problem:
    return space_of("attention_decode").problem(
        dtype="fp32", batch=batch, q_heads=heads, kv_heads=2, head_dim=64, window=0, context=context
    )


def chosen(problem: Problem, device: str = "MI300X") -> Choice:
    way = selection.choose_way(((problem,),), device_named(device))
    assert way is not None
    return way[0]


def call(rows: int = 3) -> torch.Tensor:
    """A call of an operator on the launcher's path, its value checked."""
    x, weight = torch.randn(rows, 64), torch.randn(64)
    with torch.no_grad():
        expected = OPERATORS["rms_norm"].overload(x, weight, 1e-6)
        with selection.use_device("MI300X"):
            got = OPERATORS["rms_norm"].overload(x, weight, 1e-6)
    torch.testing.assert_close(got, expected)
    assert isinstance(got, torch.Tensor)
    return got


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def broken(path: Path, state: str) -> object:
    """Bring the database into a state; returns what has to live as long as it."""
    if state == "missing":
        return None
    if state == "empty":
        path.touch()
        return None
    if state == "text":
        path.write_text("not a database, but long enough to look at" * 99)
        return None
    write(path, *(row(norm(batch)) for batch in range(1, 60)))
    if state == "corrupt":
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 8 :] = b"\xa5" * (len(damaged) - len(damaged) // 8)
        path.write_bytes(damaged)
        return None
    connection = sqlite3.connect(path, isolation_level=None)
    if state == "newer":
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        return None
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    return connection


@pytest.mark.parametrize("state", ["missing", "empty", "text", "corrupt", "newer", "locked"])
def test_whatever_the_state_of_the_database_the_values_are_right_and_one_warning_is_given(
    state: str, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = broken(database, state)
    with caplog.at_level(logging.INFO, "paiton"):
        for rows in (3, 5, 3):
            call(rows)
        chosen(decode(4096))
    assert len(warnings_in(caplog)) == 1, warnings_in(caplog)
    assert "paiton.reload()" in warnings_in(caplog)[0]
    assert selection.counts()["default"] == 3 and selection.counts()["failed"] == 0
    assert selection.database_note()
    if isinstance(held, sqlite3.Connection):
        held.close()


def test_a_database_that_is_repaired_is_seen_after_a_reload(database: Path) -> None:
    database.write_text("nonsense" * 99)
    assert chosen(norm()).tier is Tier.DEFAULT
    database.unlink()
    write(database, row(norm()))
    assert chosen(norm()).tier is Tier.DEFAULT
    selection.reload()
    assert chosen(norm()).tier is Tier.EXACT
    assert selection.database_note() == ""


def test_the_exact_row_answers(database: Path) -> None:
    write(database, row(norm(), us=7.5))
    choice = chosen(norm())
    assert (choice.tier, choice.config, choice.measured_us) == (Tier.EXACT, other_config(norm()), 7.5)
    assert choice.reason == "exact; measured" and choice.is_tuned


@pytest.mark.parametrize(
    ("asked", "served"), [(8, 8), (9, 8), (12, 16), (15, 16), (20, 16), (32, 16), (4, 8), (33, None), (3, None)]
)
def test_the_nearest_batch_serves(asked: int, served: int | None, database: Path) -> None:
    write(database, row(norm(8)), row(norm(16)))
    choice = chosen(norm(asked))
    assert (choice.row.cell.batch if choice.row else None) == served
    assert choice.tier is (Tier.DEFAULT if served is None else Tier.EXACT if asked == served else Tier.OTHER_BATCH)


def test_the_same_chip_on_another_card_serves(database: Path) -> None:
    write(database, row(norm(), device="MI300X"))
    choice = chosen(norm(), "MI325X")
    assert choice.tier is Tier.OTHER_DEVICE and "tuned on MI300X, not MI325X" in choice.reason


@pytest.mark.parametrize(
    ("asked", "served"),
    [(4096, 4096), (2048, 1024), (3000, 4096), (512, 1024), (256, 1024), (128, None), (16384, 4096), (32768, None)],
)
def test_the_nearest_context_serves(asked: int, served: int | None, database: Path) -> None:
    write(database, row(decode(1024)), row(decode(4096)), row(decode(asked, heads=16)))
    choice = chosen(decode(asked))
    assert (dict(choice.problem.dims())["context"], choice.is_tuned) == (asked, served is not None)
    if served is not None and choice.row is not None:
        assert f"context={served}," in choice.row.cell.signature
        assert ("serves context" in choice.reason) == (asked != served)


def test_a_row_of_another_kernel_version_is_not_served(database: Path) -> None:
    write(database, row(norm(), digest="0123456789abcdef"))
    choice = chosen(norm())
    assert choice.tier is Tier.DEFAULT and "another kernel version" in choice.reason


@pytest.mark.parametrize(
    "config",
    [
        '{"BLOCK_H":3,"num_warps":4}', '{"BLOCK_H":0,"num_warps":0}', '{"BLOCK_H":512}',
        '{"BLOCK_H":512,"num_warps":4,"x":1}', '{"BLOCK_H":16384,"num_warps":1}', '{"BLOCK_H":"a","num_warps":4}',
        '{"BLOCK_H":[1],"num_warps":4}', '{"BLOCK_H":1e300,"num_warps":4}', "{}",
    ],
)  # fmt: skip
def test_a_config_that_is_not_legal_here_is_refused(
    config: str, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(database, row(norm(3), config=config))
    with caplog.at_level(logging.WARNING, "paiton"):
        call(3)
        choice = chosen(norm(3))
    assert choice.tier is Tier.DEFAULT and "is refused" in choice.reason
    assert choice.config == space_of("rms_norm").default_config(norm(3), MI300X)
    assert any("is refused" in each for each in warnings_in(caplog))


def test_a_row_may_say_that_the_default_is_best(database: Path) -> None:
    problem = norm()
    default = space_of("rms_norm").default_config(problem, MI300X)
    write(database, row(problem, config=default))
    choice = chosen(problem)
    assert choice.is_tuned and choice.config == default


def test_misses_are_listed_with_the_line_that_fills_them(caplog: pytest.LogCaptureFixture, database: Path) -> None:
    write(database, row(norm(hidden=128)))
    with caplog.at_level(logging.WARNING, "paiton"):
        for rows in (5, 3, 5):
            call(rows)
    (miss,) = selection.misses()
    assert miss.batches == (3, 5)
    assert miss.command("Qwen/Qwen3-30B-A3B") == (
        "autotune run --arch gfx942 --device MI300X --model Qwen/Qwen3-30B-A3B --kernel rms_norm"
        " --batch-sizes 3,5 --dtype fp32"
    )
    assert len(warnings_in(caplog)) == 1 and "autotune run --arch gfx942" in warnings_in(caplog)[0]


def test_explaining_counts_nothing_and_misses_nothing() -> None:
    chosen(norm())
    assert not any(selection.counts().values()) and selection.misses() == ()


def test_a_known_question_asks_neither_the_database_nor_the_sources(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(database, row(norm(3)))
    asks = ((Ask("rms_norm", (64,), 3, torch.float32),),)
    with selection.use_device("MI300X"):
        first = selection.choose(asks, torch.device("cpu"))
        state = selection._state
        assert state is not None
        monkeypatch.setattr(state.snapshot, "choose", None)
        monkeypatch.setattr(digest, "source_digest", None)
        assert selection.choose(((Ask("rms_norm", (64,), 3, torch.float32),),), torch.device("cpu")) is first
    assert selection.counts()["exact"] == 2


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MAX_MEMORY", 10)
    with selection.use_device("MI300X"):
        for tokens in range(1, 36):
            selection.choose(((Ask("rms_norm", (64,), tokens, torch.float32),),), torch.device("cpu"))
            assert selection._state is not None and len(selection._state.known) <= 10
    assert selection.counts()["default"] == 35


def test_threads_get_one_answer_while_another_reloads(database: Path) -> None:
    write(database, row(norm(3)), row(norm(4)))
    asks = [((Ask("rms_norm", (64,), tokens, torch.float32),),) for tokens in (3, 4, 6)]
    wrong: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            for question in asks:
                way = selection.choose(question, torch.device("cpu"))
                if way is None or (way[0].is_tuned and way[0].config != other_config(norm(3))):
                    wrong.append(way)

    with selection.use_device("MI300X"):
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for each in threads:
            each.start()
        for _ in range(20):
            selection.reload()
        stop.set()
        for each in threads:
            each.join()
    assert wrong == []


def test_use_device_is_over_when_the_context_is_even_after_an_error() -> None:
    with pytest.raises(KeyError), selection.use_device("H100"):
        raise KeyError
    assert selection.choose(((Ask("rms_norm", (64,), 3, torch.float32),),), torch.device("cpu")) is None


def test_a_config_of_words_is_checked_too(database: Path) -> None:
    problem = space_of("moe_gate_up").problem(dtype="fp32", batch=2, experts=8, top_k=2, hidden=64, inter=32)
    good = space_of("moe_gate_up").default_config(problem, MI300X)
    write(database, row(problem, config=Config({**good, "FORM": "evil"})))
    assert "FORM=evil is not one of" in chosen(problem).reason
