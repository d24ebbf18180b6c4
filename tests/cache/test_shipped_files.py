"""The databases in the wheel: whole, honest about themselves, and enough for a server of the three models."""

from pathlib import Path

import pytest

from paiton.cache.answer import Tier
from paiton.cache.key import Cell
from paiton.cache.location import SHIPPED, shipped_databases
from paiton.cache.lookup import Lookup
from paiton.cache.manifest import read_answers
from paiton.cache.rows import Label
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.config import Config
from paiton.search_spaces.presets import preset_named
from paiton.search_spaces.registry import KERNEL_NAMES, space_of
from paiton.search_spaces.workload import problems

FILES = sorted(SHIPPED.glob("*.db"))
DEVICES = {"gfx942-MI300X": "MI300X", "gfx950-MI355X": "MI355X", "sm_90-H200": "H200"}
MODELS = ("Qwen3-30B-A3B", "Qwen3-32B", "QwQ-32B")
MAX_BYTES = 8 << 20

by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_there_is_one_for_each_device() -> None:
    assert {path.stem for path in FILES} == set(DEVICES)
    assert set(FILES) <= set(shipped_databases({}, installed=()))


@by_file
def test_a_stranger_would_accept_it(path: Path) -> None:
    rows = read_answers(path)
    assert path.stat().st_size <= MAX_BYTES
    device = resolve(DEVICES[path.stem])
    for row in rows:
        assert (row.cell.arch, row.cell.device, row.cell.dtype) == (device.arch.name, device.name, "bf16")
        assert row.label in (Label.ESTIMATED, Label.MEASURED)
        # A measurement names its GPU, an estimate must not look like one.
        assert (row.us_median is not None) == (row.label is Label.MEASURED) == bool(row.env.gpu), row.cell
        assert row.env.triton and row.env.policy, row.cell


@by_file
def test_every_config_is_legal(path: Path) -> None:
    for row in read_answers(path):
        if row.cell.kernel_digest != spec_of(row.cell.kernel).digest or row.config_json is None:
            continue
        space, device = space_of(row.cell.kernel), resolve(DEVICES[path.stem])
        problem = space.problem_from(row.cell.signature, row.cell.dtype, row.cell.batch)
        assert not space.faults(Config.from_json(row.config_json), problem, device), row.cell


@by_file
def test_a_server_of_the_three_models_finds_every_answer(path: Path) -> None:
    device = resolve(DEVICES[path.stem])
    stored = {(row.cell.kernel, row.cell.kernel_digest) for row in read_answers(path)}
    changed = [name for name in KERNEL_NAMES if (name, spec_of(name).digest) not in stored]
    asked = 0
    with Lookup.open(path.parent / "no.db", shipped=[path], report_misses=False) as lookup:
        for model in MODELS:
            for tp in (1, 2, 4, 8):
                for item in problems(preset_named(model), tp=tp):
                    problem = item.problem
                    if problem.kernel in changed:
                        continue
                    cell = Cell(
                        arch=device.arch.name, device=device.name, kernel=problem.kernel,
                        kernel_digest=spec_of(problem.kernel).digest, signature=problem.signature,
                        dtype=problem.dtype, batch=problem.batch,
                    )  # fmt: skip
                    assert lookup.find(cell).tier is Tier.EXACT, cell
                    asked += 1
    assert asked or changed
    if changed:
        pytest.skip(f"answers are of earlier versions of {', '.join(changed)}: make shipped makes them again")
