"""Seeds from the database: other versions of the kernel and peers' files, never the run's own answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from paiton.autotune.run import RunSettings, cell_of
from paiton.autotune.stored_seeds import LIMIT, stored_seeds
from paiton.cache.formats.peer_file import Peer, PeerFile, PeerName
from paiton.cache.formats.peer_rows import rows_of
from paiton.cache.key import Environment
from paiton.cache.rows import Label, TunedRow
from paiton.cache.store import ConfigStore
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import device_named
from paiton.search_spaces.config import Config

TILE = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 2}


def _old(cell: Any, number: int, **changes: Any) -> TunedRow:
    return TunedRow(
        cell=replace(cell, kernel_digest="old", **changes), label=Label.ESTIMATED, env=Environment(),
        config_json=f'{{"BLOCK_M":{number}}}', score=1.0, ts_ms=1,
    )  # fmt: skip


def test_older_versions_nearest_first_and_peers(tmp_path: Path) -> None:
    spec, device = spec_of("moe_grouped"), device_named("MI300X")
    problem = spec.space.problem(dtype="bf16", batch=64, experts=16, top_k=2, hidden=512, inter=256)
    cell = cell_of(problem, device, spec)
    name = PeerName(experts=16, inter=256, device="AMD_Instinct_MI308X")
    theirs = rows_of(PeerFile(peer=Peer.VLLM, name=name, ladder=((64, TILE), (4, {**TILE, "num_warps": 8}))))
    elsewhere = rows_of(PeerFile(peer=Peer.VLLM, name=replace(name, device="NVIDIA_H200"), ladder=((64, TILE),)))
    with ConfigStore.open(tmp_path / "p.db") as store:
        assert stored_seeds(store, cell, problem) == ()
        store.put_all_tuned([*elsewhere, replace(_old(cell, 1), cell=cell)])
        assert stored_seeds(store, cell, problem) == ()
        store.put_all_tuned(
            [_old(cell, 128, batch=256), _old(cell, 32, batch=32), _old(cell, 16, device="MI325X"), *theirs]
        )
        seeds = stored_seeds(store, cell, problem)
        assert seeds == (
            Config.of(BLOCK_M=32),
            Config.of(BLOCK_M=128),
            Config.of(BLOCK_M=16),
            Config.of(BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, GROUP_M=1, num_warps=4, num_stages=2),
            Config.of(BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, GROUP_M=1, num_warps=8, num_stages=2),
        )
        store.put_all_tuned(_old(cell, number, batch=number) for number in (1, 2, 8))
        assert stored_seeds(store, cell, problem)[:LIMIT] == (seeds[0], Config.of(BLOCK_M=128), Config.of(BLOCK_M=8))


def test_a_run_tries_them(bench: Any, recorded: Any, router: Any) -> None:
    problem = router(8)
    spec = spec_of("router")
    feasible = spec.space.enumerate(problem, bench.device)
    unlikely = feasible.config(len(feasible) - 1)
    row = _old(cell_of(problem, bench.device, spec), 1)
    bench.store.put_tuned(replace(row, config_json=unlikely.json()))
    objective = recorded()
    bench.run(objective, [problem], settings=RunSettings(trials=2))
    assert [config for _, config in objective.asked] == [spec.space.default_config(problem, bench.device), unlikely]
