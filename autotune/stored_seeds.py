"""Where a search may start besides its own winners: answers that hold for another version of the kernel, and the tuned
files of other projects. Seeds are tried and judged like any config; they are never served."""

from __future__ import annotations

import math

from ..cache.formats.grouped_moe import KERNEL, seeds_of
from ..cache.formats.peer_file import Peer
from ..cache.key import Cell
from ..cache.store import ConfigStore, TunedFilter
from ..search_spaces.config import Config, InvalidConfig
from ..search_spaces.fused_moe import FIELD_OF
from ..search_spaces.moe import MoeProblem
from ..search_spaces.problem import Problem
from .adapters.registry import FOREIGN_KERNELS

LIMIT = 3
"""Of each kind: a seed costs a trial."""


def stored_seeds(store: ConfigStore, cell: Cell, problem: Problem) -> tuple[Config, ...]:
    """Configs worth a first look for `cell`, nearest batch first: rows of other kernel versions, then peers' files.

    Rows of the present version are left out: a run writes them, and the seeds of a search that is taken up again must
    be those it began with.
    """
    where = TunedFilter(kernel=cell.kernel, signature=cell.signature, dtype=cell.dtype)
    older = [row for row in store.tuned(where) if row.cell.kernel_digest != cell.kernel_digest and row.config_json]
    older.sort(
        key=lambda row: (
            row.cell.arch != cell.arch,
            row.cell.device != cell.device,
            abs(math.log2(row.cell.batch / cell.batch)),
            -row.label,
            row.cell.key,
        )
    )
    found = [config for row in older if (config := _config(row.config_json)) is not None]
    return (*dict.fromkeys(found[:LIMIT]), *_of_peers(store, cell, problem))


def _of_peers(store: ConfigStore, cell: Cell, problem: Problem) -> list[Config]:
    if cell.kernel not in (KERNEL, *FOREIGN_KERNELS) or not isinstance(problem, MoeProblem):
        return []
    rows = [row for peer in Peer for row in store.tuned(TunedFilter(kernel=peer.kernel, arch=cell.arch))]
    seeds = seeds_of(
        rows, experts=problem.experts, inter=problem.inter, dtype=problem.dtype, batch=problem.batch, limit=LIMIT
    )
    if cell.kernel == KERNEL:
        return seeds
    return [Config({FIELD_OF.get(name, name): value for name, value in seed.items()}) for seed in seeds]


def _config(text: str | None) -> Config | None:
    try:
        return Config.from_json(text) if text else None
    except InvalidConfig:  # an older program may have stored what today's does not know
        return None
