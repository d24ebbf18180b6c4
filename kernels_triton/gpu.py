"""Which device of the catalogue a GPU is, from torch's device properties; no torch is imported here."""

from __future__ import annotations

from typing import Any

from ..search_spaces.arch import Device, UnknownArch, UnknownDevice, resolve


def arch_text_of(properties: Any) -> str:
    """What the driver calls the architecture, from torch's device properties: `gfx942:sramecc+:xnack-` or `9.0`."""
    return getattr(properties, "gcnArchName", None) or f"{properties.major}.{properties.minor}"


def device_of_properties(properties: Any) -> Device | None:
    """The catalogue's device by its name, else the default product of its architecture; None for an unknown one."""
    for text in (properties.name, arch_text_of(properties)):
        try:
            return resolve(text)
        except (UnknownArch, UnknownDevice):
            continue
    return None
