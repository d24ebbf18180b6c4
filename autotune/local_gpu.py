"""The GPU of this machine, if torch can see one."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..search_spaces.arch import Device, UnknownArch, UnknownDevice, resolve


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
    arch_text = arch_text_of(properties)
    for text in (properties.name, arch_text):
        try:
            device = resolve(text)
        except (UnknownArch, UnknownDevice):
            continue
        return LocalGpu(device, properties.name, arch_text)
    return None


def arch_text_of(properties: Any) -> str:
    """What the driver calls the architecture, from torch's device properties: `gfx942:sramecc+:xnack-` or `9.0`."""
    return getattr(properties, "gcnArchName", None) or f"{properties.major}.{properties.minor}"
