"""What only a GPU can show of the tuner: our compile is the JIT's, workers measure, a run ends with measured rows."""

from pathlib import Path

import pytest

from paiton.autotune.local_gpu import LocalGpu, find_local_gpu
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.load_model import load_model
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.registry import KERNEL_NAMES
from paiton.search_spaces.workload import problems

pytestmark = pytest.mark.gpu


def _gpu() -> LocalGpu:
    gpu = find_local_gpu()
    if gpu is None:
        pytest.skip("the GPU of this machine is not in the catalogue")
    return gpu


def _problem(kernel: str) -> Problem:
    for model in ("Qwen3-30B-A3B", "Qwen3-32B"):
        items = problems(load_model(model), batch_sizes=[8], prefill_lengths=[512], context=512)
        for item in items:
            if item.problem.kernel == kernel:
                return item.problem
    raise AssertionError(kernel)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_ahead_of_time_compiles_what_the_jit_compiles(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After our compile the launch finds every binary in Triton's cache: same specialisation, same options."""
    from paiton.autotune.aot import compile_unit, units_of

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    gpu, spec, problem = _gpu(), spec_of(kernel), _problem(kernel)
    inputs = spec.make_inputs(problem, torch_device="cuda", seed=0)
    plan = spec.plan(*inputs, config=spec.space.default_config(problem, gpu.device), device=gpu.device)
    for unit in units_of(plan, gpu.device):
        compile_unit(unit)
    before = {path.name for path in tmp_path.iterdir()}
    plan.run()
    assert before, "nothing was compiled ahead of time"
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_worker_measures_and_the_clock_is_sane(tmp_path: Path) -> None:
    """A bandwidth-bound kernel is neither faster than the memory nor ten times slower."""
    from paiton.autotune.measured_objective import GpuWorker, MeasuredObjective

    gpu, problem = _gpu(), _problem("linear_silu_mul")
    spec = spec_of(problem.kernel)
    with GpuWorker(gpu.device) as worker:
        env = worker.environment()
        config = spec.space.default_config(problem, gpu.device)
        (evaluation,) = MeasuredObjective(worker).evaluate(spec, problem, [config])
    assert env.gpu == gpu.name
    assert env.driver
    assert evaluation.value is not None, evaluation.error
    floor_us = spec.space.work(problem).bytes / (gpu.device.hbm_gbps * 1e3)
    assert floor_us < evaluation.value < 10 * floor_us
    assert len(evaluation.samples_us) == 20


def test_a_measured_run_fills_the_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from paiton.autotune.cli import status_of
    from paiton.cache.rows import Label
    from paiton.cache.store import ConfigStore

    gpu = _gpu()
    database = tmp_path / "measured.db"
    arguments = [
        "run",
        "--model",
        "Qwen3-30B-A3B",
        "--kernel",
        "rms_norm",
        "--kernel",
        "router",
        "--batch-sizes",
        "1,8",
    ]
    assert status_of([*arguments, "--trials", "6", "--db", str(database)]) == 0
    assert "measured" in capsys.readouterr().out
    with ConfigStore.open(database, read_only=True) as store:
        rows = store.tuned()
    assert len(rows) == 4
    assert all(row.label is Label.MEASURED and row.cell.device == gpu.device.name for row in rows)
    assert all(row.us_median and row.us_default for row in rows)
