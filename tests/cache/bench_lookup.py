"""How long an answer takes: `python tests/cache/bench_lookup.py [ROWS]` (default 100,000 rows, in a temporary folder).

Beside it a plain dict, and the rule of vLLM and SGLang on one parsed JSON ladder. Times are medians over single calls,
with the cost of the clock left in; run it on an idle machine.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from paiton.cache.export import write_shipped
from paiton.cache.key import Cell, Environment
from paiton.cache.lookup import Lookup
from paiton.cache.rows import Label, TunedRow

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
CALLS = 2000
FRESH = """
import sys, time
from pathlib import Path
from paiton.cache.key import Cell
from paiton.cache.lookup import Lookup
cell = Cell(arch="gfx942", device="MI300X", kernel="k", kernel_digest="d", signature="n=3", dtype="bf16", batch=64)
start = time.perf_counter()
answer = Lookup.open(sys.argv[1], shipped=[sys.argv[2]]).find(cell)
print((time.perf_counter() - start) * 1e3)
assert answer.row is not None
"""


def cell(number: int, batch: int) -> Cell:
    return Cell(
        arch="gfx942",
        device="MI300X",
        kernel="k",
        kernel_digest="d",
        signature=f"n={number}",
        dtype="bf16",
        batch=batch,
    )


def rows(count: int) -> list[TunedRow]:
    env = Environment(triton="3.7.1", triton_key="k")
    return [
        TunedRow(
            cell=cell(number // len(BATCHES), BATCHES[number % len(BATCHES)]), label=Label.ESTIMATED, env=env,
            config_json='{"BLOCK_K":64,"BLOCK_M":16,"BLOCK_N":64,"num_warps":4}', score=1.0 + number, ts_ms=1,
        )
        for number in range(count)
    ]  # fmt: skip


def median_us(call: Callable[[Cell], object], cells: list[Cell]) -> float:
    times = []
    for each in cells:
        start = time.perf_counter_ns()
        call(each)
        times.append((time.perf_counter_ns() - start) / 1e3)
    return median(times)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, none = Path(folder, "shipped.db"), Path(folder, "none.db")
        write_shipped(rows(count), path)
        print(f"{count} rows, {path.stat().st_size / 2**20:.1f} MiB")
        fresh = [
            float(subprocess.run([sys.executable, "-c", FRESH, none, path], capture_output=True, text=True).stdout)
            for _ in range(5)
        ]
        print(f"open and first answer, new process      {median(fresh):9.2f} ms")
        # New objects each time, as a caller would make them: equal cells, not the same.
        sites = count // len(BATCHES)
        asked = [cell((7919 * i) % sites, BATCHES[i % len(BATCHES)]) for i in range(CALLS)]
        again = [cell((7919 * i) % sites, BATCHES[i % len(BATCHES)]) for i in range(CALLS)]
        near = [cell((7919 * i) % sites, 20) for i in range(500)]
        plain = dict.fromkeys(asked)
        ladder = {str(batch): {"BLOCK_SIZE_M": 16} for batch in BATCHES}
        parsed = {int(key): value for key, value in ladder.items()}
        with Lookup.open(none, shipped=[path]) as lookup:
            print(f"exact cell, first time                  {median_us(lookup.find, asked):9.2f} us")
            print(f"exact cell, known                       {median_us(lookup.find, again):9.2f} us")
            print(f"other batch, first time                 {median_us(lookup.find, near):9.2f} us")
        print(f"dict by cell                            {median_us(plain.get, again):9.2f} us")
        nearest = median_us(lambda each: parsed[min(parsed, key=lambda key: abs(key - each.batch))], again)
        print(f"nearest of {len(parsed)} keys (vLLM's rule)      {nearest:9.2f} us")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
