"""Which device of the catalogue a torch device is."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paiton.compiler import gpu
from paiton.kernels_triton.gpu import arch_text_of, device_of_properties

H200 = SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
MI300X = SimpleNamespace(name="AMD Instinct MI300X", major=9, minor=4, gcnArchName="gfx942:sramecc+:xnack-")
NAMELESS = SimpleNamespace(name="AMD Radeon Graphics", major=9, minor=4, gcnArchName="gfx942:sramecc+:xnack-")
UNKNOWN = SimpleNamespace(name="NVIDIA GeForce GTX 1080", major=6, minor=1)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_known", {})
    return


@pytest.mark.parametrize(
    ("properties", "name"), [(H200, "H200"), (MI300X, "MI300X"), (NAMELESS, "MI300X"), (UNKNOWN, None)]
)
def test_by_name_else_by_architecture(properties: Any, name: str | None) -> None:
    device = device_of_properties(properties)
    assert (device and device.name) == name


def test_arch_as_the_driver_prints_it() -> None:
    assert (arch_text_of(H200), arch_text_of(MI300X)) == ("9.0", "gfx942:sramecc+:xnack-")


def test_the_driver_is_asked_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[torch.device] = []

    def properties(device: torch.device) -> Any:
        asked.append(device)
        return H200 if device.index == 0 else UNKNOWN

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    with caplog.at_level(logging.WARNING, "paiton"):
        names = [found.name if (found := gpu.device_of(each)) else None for each in (first, second, first, second)]
    assert names == ["H200", None, "H200", None] and asked == [first, second]
    assert [record.getMessage() for record in caplog.records] == [
        "NVIDIA GeForce GTX 1080 is not in the catalogue: torch computes what our kernels would"
    ]


def test_the_cpu_is_no_gpu_until_one_stands_in() -> None:
    cpu = torch.device("cpu")
    assert gpu.device_of(cpu) is None
    device = device_of_properties(H200)
    gpu.stand_in(cpu, device)
    assert gpu.device_of(cpu) is device
    gpu.stand_in(cpu, None)
    assert gpu.device_of(cpu) is None
