"""Graphs that are left alone, and how the user learns of it: once, or by an error under paiton.strict."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from paiton.compiler.backend import paiton
from paiton.compiler.gate import why_not
from paiton.compiler.report import history

OPTIONS = {"paiton.lower": "eager", "paiton.sites": "all"}


class Norm(nn.Module):
    """A site in its smallest form."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 16, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (16,), self.weight, 1e-6)


def compiled(model: nn.Module, **options: Any) -> Callable[..., torch.Tensor]:
    return torch.compile(model, backend=paiton, options=OPTIONS | options)


def x(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_under_no_grad_and_inference_mode_a_graph_is_rewritten() -> None:
    model = Norm()
    wanted = model(x()).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        torch._dynamo.reset()
        with mode():
            torch.testing.assert_close(compiled(model)(x()), wanted)
        report = history.reports()[-1]
        assert report.reason == ""
        assert report.counts()["rms_norm"] == 1


def test_parameters_without_gradients_are_rewritten_with_gradients_enabled() -> None:
    model = Norm().requires_grad_(False)
    compiled(model)(x())
    assert history.reports()[-1].counts()["rms_norm"] == 1


def test_training_is_left_alone_and_its_gradients_are_identical(caplog: pytest.LogCaptureFixture) -> None:
    plain, ours = Norm(), Norm()
    given = x().requires_grad_()
    plain(given).square().sum().backward()
    wanted = given.grad
    assert wanted is not None
    given.grad = None
    with caplog.at_level(logging.WARNING, logger="paiton"):
        torch.compile(ours, backend=paiton, options={"paiton.lower": "aot_eager"})(given).square().sum().backward()
    torch.testing.assert_close(given.grad, wanted, rtol=0, atol=0)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, rtol=0, atol=0)
    assert history.reports()[-1].sites == ()
    assert "gradients are wanted" in history.reports()[-1].reason
    assert sum("gradients are wanted" in record.message for record in caplog.records) == 1


def test_gradients_off_on_off_are_two_graphs() -> None:
    function = torch.compile(Norm(), backend=paiton, options={"paiton.lower": "aot_eager"})
    before = history.total
    for _ in range(2):
        with torch.no_grad():
            function(x())
        function(x()).sum().backward()
    assert history.total - before == 2
    assert [bool(report.reason) for report in history.reports()[-2:]] == [False, True]


def test_autocast_is_left_alone() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        compiled(Norm())(x())
    assert history.reports()[-1].reason.startswith("autocast is on")


def test_a_dtype_without_kernels_is_left_alone() -> None:
    with torch.no_grad():
        compiled(Norm(torch.float64))(x(torch.float64))
    assert history.reports()[-1].reason == "dtype float64 has no kernels of ours (only bfloat16, float16, float32)"


def _captured(function: Callable[..., Any], *inputs: Any) -> str | None:
    """What the gate says of the graph of a function."""
    said: list[str | None] = []

    def backend(module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        said.append(why_not(module, example_inputs))
        return module.forward

    with torch.no_grad():
        torch.compile(function, backend=backend)(*inputs)
    return said[-1]


def test_a_tensor_subclass_is_left_alone() -> None:
    reason = _captured(lambda a: a + 1, TwoTensor(x(), x()))
    assert reason == "tensor subclass TwoTensor: our operators take plain tensors"


def test_integers_alone_are_no_reason() -> None:
    assert _captured(lambda a: a + 1, torch.arange(3)) is None


def test_the_meta_device_passes() -> None:
    assert _captured(lambda a: a + 1, x().to("meta")) is None


def test_another_device_is_left_alone() -> None:
    class Elsewhere:
        device = torch.device("xpu")
        ndim = 2

    from paiton.compiler import gate

    assert gate._devices([Elsewhere()]) == "device xpu has no kernels of ours (only cpu, cuda, meta)"  # type: ignore[list-item]


def test_one_graph_on_two_gpus_is_left_alone() -> None:
    from paiton.compiler import gate

    class OnGpu:
        ndim = 2

        def __init__(self, index: int) -> None:
            self.device = torch.device("cuda", index)

    assert gate._devices([OnGpu(0), OnGpu(0)]) is None  # type: ignore[list-item]
    assert gate._devices([OnGpu(0), OnGpu(1)]) == "one graph on several GPUs (cuda:0, cuda:1)"  # type: ignore[list-item]


def test_strict_raises_instead() -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="NotUsed: gradients are wanted"):
        compiled(Norm(), **{"paiton.strict": True})(x())


def test_a_reason_is_said_once_in_a_process(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="paiton"):
        for _ in range(3):
            torch._dynamo.reset()
            compiled(Norm())(x())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
