"""The GPU of this machine, if torch can see one."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from ..kernels_triton.gpu import arch_text_of, device_of_properties
from ..search_spaces.arch import Device


@dataclass(frozen=True)
class LocalGpu:
    """The catalogue's device and what the driver calls it."""

    device: Device
    name: str
    arch_text: str


def find_local_gpu() -> LocalGpu | None:
    """The first GPU that torch sees and the catalogue knows; None otherwise.

    torch is imported only where a driver's device file exists, since importing it takes seconds.
    """
    if not any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")):
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    device = device_of_properties(properties)
    return None if device is None else LocalGpu(device, properties.name, arch_text_of(properties))
