"""Which device of the catalogue a torch device is."""

from __future__ import annotations

import torch

from ..kernels_triton.gpu import device_of_properties
from ..search_spaces.arch import Device
from .log import warn_once

_known: dict[torch.device, Device | None] = {}


def device_of(torch_device: torch.device) -> Device | None:
    """The device behind `cuda:N` (CUDA and ROCm), or the one that `selection.use_device` put behind the CPU.

    None for everything our kernels do not run on. Asked of the driver once per torch device.
    """
    try:
        return _known[torch_device]
    except KeyError:
        device = _known[torch_device] = _asked(torch_device)
        return device


def stand_in(torch_device: torch.device, device: Device | None) -> None:
    """Let `torch_device` count as `device` from now on; None: ask again."""
    if device is None:
        _known.pop(torch_device, None)
    else:
        _known[torch_device] = device


def _asked(torch_device: torch.device) -> Device | None:
    if torch_device.type != "cuda" or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch_device)
    device = device_of_properties(properties)
    if device is None:
        warn_once(f"{properties.name} is not in the catalogue: torch computes what our kernels would")
    return device
