"""The store under many processes: `python tests/cache/stress_store.py [--seconds 60] [--kills 100]`.

64 processes start together on a missing file; 16 writers and 16 readers work for a minute; a writer is killed at a
random moment, 100 times. No error, no acknowledged row lost, `integrity_check` ok; the first fault ends the script with
status 1. Not part of the test run: it takes minutes of two cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from paiton.cache.key import Cell, Environment
from paiton.cache.lookup import Lookup
from paiton.cache.rows import Label, TunedRow
from paiton.cache.store import ConfigStore

ENV = Environment(triton_key="k")


def cell(writer: int, batch: int) -> Cell:
    return Cell(
        arch="gfx942",
        device="MI300X",
        kernel="k",
        kernel_digest="d",
        signature=f"n={writer}",
        dtype="bf16",
        batch=batch,
    )


def row(writer: int, batch: int) -> TunedRow:
    return TunedRow(cell=cell(writer, batch), label=Label.ESTIMATED, env=ENV, config_json='{"A":1}', score=1.0)


def fork(work: Callable[[], object]) -> int:
    """A child that runs `work` and ends with status 0, or prints the error and ends with 1."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def all_end_well(children: list[int]) -> None:
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), f"{sum(map(bool, statuses))} of {len(statuses)} processes failed"


def check_integrity(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def start_together(path: Path, count: int) -> None:
    reading, writing = os.pipe()

    def work(number: int) -> None:
        os.close(writing)
        os.read(reading, 1)  # returns when the parent closes its end: all at once
        with ConfigStore.open(path) as store:
            store.put_tuned(row(number, 1))

    children = [fork(lambda number=number: work(number)) for number in range(count)]  # type: ignore[misc]
    os.close(reading)
    os.close(writing)
    all_end_well(children)
    with ConfigStore.open(path, read_only=True) as store:
        assert len(store.tuned()) == count


def write_and_read(path: Path, writers: int, readers: int, seconds: float) -> tuple[int, int]:
    end = time.monotonic() + seconds
    ConfigStore.open(path).close()

    def write(number: int) -> None:
        batch = 0
        with ConfigStore.open(path) as store:
            while time.monotonic() < end:
                batch += 1
                assert store.put_tuned(row(number, batch))
        Path(f"{path}.writer{number}").write_text(str(batch))

    def read(number: int) -> None:
        reads = 0
        while time.monotonic() < end:
            with Lookup.open(path) as lookup:
                for batch in range(1, 20):
                    lookup.find(cell(number % writers, batch))
                    reads += 1
        Path(f"{path}.reader{number}").write_text(str(reads))

    children = [fork(lambda number=number: write(number)) for number in range(writers)]  # type: ignore[misc]
    children += [fork(lambda number=number: read(number)) for number in range(readers)]  # type: ignore[misc]
    all_end_well(children)
    written = sum(int(file.read_text()) for file in path.parent.glob(f"{path.name}.writer*"))
    with ConfigStore.open(path, read_only=True) as store:
        assert len(store.tuned()) == written
    check_integrity(path)
    return written, sum(int(file.read_text()) for file in path.parent.glob(f"{path.name}.reader*"))


def kill_writers(path: Path, kills: int, source: random.Random) -> int:
    acknowledged = 0
    for number in range(kills):
        reading, writing = os.pipe()

        def work(number: int = number, writing: int = writing) -> None:
            with ConfigStore.open(path) as store:
                for batch in range(1, 100_000):
                    store.put_all_tuned(row(number, 5 * batch + part) for part in range(5))
                    os.write(writing, b"x")

        child = fork(work)
        os.close(writing)
        time.sleep(source.uniform(0.0, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        batches = 0
        while got := os.read(reading, 1 << 16):
            batches += len(got)
        os.close(reading)
        check_integrity(path)
        with ConfigStore.open(path) as store:
            kept = sum(each.cell.signature == f"n={number}" for each in store.tuned())
        assert kept in (5 * batches, 5 * batches + 5), f"{batches} batches acknowledged, {kept} rows kept"
        acknowledged += batches
    return acknowledged


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    logging.getLogger("paiton").addHandler(logging.NullHandler())  # readers miss what is not yet written
    with tempfile.TemporaryDirectory() as folder:
        for count in (8, 24, 64):
            start_together(Path(folder, f"start{count}.db"), count)
            print(f"{count} processes started together on a missing file", flush=True)
        written, read = write_and_read(Path(folder, "mixed.db"), 16, 16, options.seconds)
        print(f"16 writers wrote {written} rows, 16 readers asked {read} times in {options.seconds:g} s", flush=True)
        batches = kill_writers(Path(folder, "killed.db"), options.kills, random.Random(7))
        print(f"{options.kills} writers killed, {batches} acknowledged batches all there, none torn")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as fault:
        sys.exit(f"fault: {fault}")
