"""Every kernel compiled and run on this machine's GPU, at real models' shapes, against its reference."""

import pytest
import torch

from paiton.autotune.local_gpu import find_local_gpu
from paiton.kernels_triton.registry import spec_of
from paiton.kernels_triton.tolerance import TOLERANCES
from paiton.search_spaces.load_model import load_model
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.registry import KERNEL_NAMES
from paiton.search_spaces.workload import problems


def _smallest_problems(model: str) -> dict[str, Problem]:
    """One problem per kernel: an odd decode batch, a prompt with a ragged last block."""
    items = problems(load_model(model), batch_sizes=[5], prefill_lengths=[257], context=301)
    return {item.problem.kernel: item.problem for item in reversed(items)}


PROBLEMS = {**_smallest_problems("Qwen3-32B"), **_smallest_problems("Qwen3-30B-A3B")}


def test_every_kernel_has_a_problem() -> None:
    assert set(PROBLEMS) == set(KERNEL_NAMES)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_matches_reference(kernel: str, dtype: str) -> None:
    gpu = find_local_gpu()
    if gpu is None:
        pytest.skip("the GPU of this machine is not in the catalogue")
    spec = spec_of(kernel)
    problem = spec.space.problem_from(PROBLEMS[kernel].signature, dtype, PROBLEMS[kernel].batch)
    inputs = spec.make_inputs(problem, torch_device="cuda", seed=1)
    expected = spec.reference(*inputs)
    config = spec.space.default_config(problem, gpu.device)
    actual = spec.launch(*inputs, config=config, device=gpu.device)
    tolerance = TOLERANCES[dtype]
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(
            one.float(), other.float(), rtol=tolerance.relative, atol=tolerance.absolute,
            msg=lambda text, index=index: f"output {index} of {problem} with {config}: {text}",
        )  # fmt: skip
