"""How long a merge takes: `python tests/cache/bench_merge.py [ROWS]` (default 100,000 rows, in a temporary folder).

Two databases of ROWS rows each, of which 30 % are for the same cells; of those most differ. Each part of
`autotune merge` is timed on its own, in CPU seconds of this process, beside what SQLite alone needs for one upsert of
the same bytes without a check (the floor that a merge without any property could reach).
"""

from __future__ import annotations

import gc
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from paiton.cache.digest import logical_digest
from paiton.cache.export import write_shipped
from paiton.cache.key import Cell, Environment
from paiton.cache.manifest import read_answers
from paiton.cache.merge import merge_into
from paiton.cache.rows import Candidate, Label, TunedRow
from paiton.cache.store import ConfigStore

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
T = TypeVar("T")


def rows(first: int, count: int, seed: int) -> list[TunedRow]:
    """Rows `first` to `first + count`, as a run leaves them; another seed means other evidence."""
    draw = random.Random(seed)
    envs = [Environment(triton="3.7.1", triton_key="k", paiton="0.1.0", policy=f"policy {n}") for n in range(4)]
    made = []
    for number in range(first, first + count):
        configs = [
            f'{{"BLOCK_K":{draw.choice([32, 64, 128])},"BLOCK_M":{draw.choice([16, 32, 64])},'
            f'"BLOCK_N":{draw.choice([32, 64, 128, 256])},"GROUP_M":{draw.choice([1, 4, 8])},'
            f'"num_stages":{draw.choice([1, 2, 3])},"num_warps":{draw.choice([2, 4, 8])},'
            f'"waves_per_eu":{draw.choice([0, 1, 2, 4])}}}'
            for _ in range(8)
        ]
        facts = f'{{"registers":{draw.randrange(32, 256)},"shared_bytes":{draw.randrange(64) * 1024},"spills":0}}'
        cell = Cell(
            arch="gfx942", device="MI300X", kernel="moe_grouped", kernel_digest="d" * 32, dtype="bf16",
            signature=f"experts=128,hidden=2048,inter={number // len(BATCHES)},top_k=8",
            batch=BATCHES[number % len(BATCHES)],
        )  # fmt: skip
        measured = draw.random() < 0.5
        made.append(
            TunedRow(
                cell=cell, label=Label.MEASURED if measured else Label.ESTIMATED, env=draw.choice(envs),
                config_json=configs[0], us_median=draw.uniform(10, 90) if measured else None,
                samples=draw.choice([30, 60]) if measured else 0, score=draw.uniform(1, 9), score_default=9.5,
                shortlist=tuple(Candidate(config_json=each, score=draw.uniform(1, 9)) for each in configs),
                facts_json=facts, model_version="1", ts_ms=1 + draw.randrange(10**6),
            )
        )  # fmt: skip
    return made


def timed(what: str, call: Callable[[], T]) -> T:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    print(f"{what:42s} {time.process_time() - cpu:8.2f} s CPU {time.perf_counter() - wall:8.2f} s")
    return result


def upsert_unchecked(path: Path, other: Path) -> None:
    """SQLite alone: the rows as they are, no check of any, ids of env and source taken as equal."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("ATTACH ? AS theirs", (str(other),))
    names = [name for (_, name, *_) in connection.execute("PRAGMA table_info(tuned)")]
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name not in ("key", "compiler"))
    connection.execute(
        f"INSERT INTO tuned SELECT {', '.join(names)} FROM theirs.tuned WHERE true ON CONFLICT DO UPDATE SET {changes}"
        " WHERE (excluded.label, excluded.samples, excluded.ts_ms) > (tuned.label, tuned.samples, tuned.ts_ms)"
    )
    connection.close()


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs, copy = Path(folder, "mine.db"), Path(folder, "theirs.db"), Path(folder, "copy.db")
        write_shipped(rows(0, count, seed=1), mine)
        write_shipped(rows(count * 7 // 10, count, seed=2), theirs)
        shutil.copy(mine, copy)
        print(f"two databases of {count} rows, {theirs.stat().st_size / 2**20:.1f} MiB each")
        gc.disable()  # as the command does
        with ConfigStore.open(mine) as store:
            incoming = timed("read and check the other file", lambda: read_answers(theirs))
            report = timed("merge into the database", lambda: merge_into(store, incoming))
            print(
                f"  {report.added} added, {report.replaced} replaced, {report.kept} kept, {report.same} the same,"
                f" {len(report.conflicts)} conflicts"
            )
            digest = timed("logical digest of the result", lambda: logical_digest(store.tuned()))
            again = timed("merge once more", lambda: merge_into(store, incoming))
        print(f"  {again.added + again.replaced} changed; logical digest {digest[:16]}")
        timed("for comparison: SQLite alone, unchecked", lambda: upsert_unchecked(copy, theirs))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
