"""From what a tool prints to a device of the catalogue: `resolve("gfx942:sramecc+:xnack-")` is the MI300X.

Accepted are arch names (`gfx942`, `sm_90a`, `9.0`, `compute_90`), the output of `rocm_agent_enumerator`,
device names of the catalogue (`MI325X`) and of torch (`NVIDIA H100 80GB HBM3`). What is not known raises one
line that names the value, the nearest known and all known ones.
"""

from __future__ import annotations

import difflib
import re

from .chip import Arch, Device
from .devices import ARCHS, DEFAULT_DEVICE, DEVICES

__all__ = [
    "Arch", "Device", "UnknownArch", "UnknownDevice", "arch_named", "device_named", "known_archs",
    "known_devices", "parse_features", "resolve",
]  # fmt: skip


class UnknownArch(ValueError):
    """The text names no arch of the catalogue, or several different GPUs."""


class UnknownDevice(ValueError):
    """The text names a product that is not in the catalogue, or one that does not carry the arch."""


_GFX = re.compile(r"(?:amdgcn-amd-amdhsa--)?(gfx[0-9a-f]{3,4})((?::[a-z0-9]+[+-])*)", re.IGNORECASE)
_CAPABILITY = re.compile(
    r"(?:(?:sm|compute)[_-]?)?([0-9]{2,3})[af]?"  # sm90, sm_90a, compute_90, 90
    r"|(?:sm|compute)?[_-]?\(?([0-9]{1,2})(?:\.|, ?)([0-9])\)?",  # 9.0, (9, 0)
    re.IGNORECASE,
)
# Products that share a catalogue name but not its figures, and close relatives of a product of the catalogue.
_OTHER_VARIANT = re.compile(r"\b(PCIe|NVL|40GB|64GB|CNX|MIG|DGX Spark)\b", re.IGNORECASE)
_PRODUCT_LIKE = re.compile(r"nvidia|amd|instinct|tesla|geforce|radeon|^(?:mi|[a-z]{1,2})[0-9]{2,3}", re.IGNORECASE)


def known_archs() -> tuple[Arch, ...]:
    """Every arch of the catalogue."""
    return ARCHS


def known_devices(arch: Arch | None = None) -> tuple[Device, ...]:
    """Every device of the catalogue, or those that carry `arch`."""
    return tuple(device for device in DEVICES if arch is None or device.arch == arch)


def resolve(text: str, device: str | None = None) -> Device:
    """The device that `text` names; `device` chooses among the products of the same arch.

    An arch alone stands for its default product (`devices.DEFAULT_DEVICE`: gfx942 is the MI300X). Of several
    lines the first known GPU counts, the CPU agent `gfx000` is ignored, and two different GPUs are an error.
    Raises `UnknownArch` or `UnknownDevice`, each with a message of one line.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip().lower() != "gfx000"]
    if not lines:
        raise UnknownArch(f"{_shown(text)} names no GPU; known archs: {_names(ARCHS)}")
    found: list[Device] = []
    first_error: UnknownArch | UnknownDevice | None = None
    for line in lines:
        try:
            found.append(_resolve_line(line))
        except (UnknownArch, UnknownDevice) as error:
            first_error = first_error or error
    if not found:
        assert first_error is not None
        raise first_error
    if any(other != found[0] for other in found):
        names = ", ".join(dict.fromkeys(each.name for each in found))
        raise UnknownArch(f"{_shown(text)} names different GPUs ({names}): give one of them")
    if device is None:
        return found[0]
    chosen = device_named(device)
    if chosen.arch != found[0].arch:
        raise UnknownDevice(
            f"device {chosen.name} is {chosen.arch.name}, not {found[0].arch.name}; "
            f"{found[0].arch.name} devices: {_names(known_devices(found[0].arch))}"
        )
    return chosen


def arch_named(name: str) -> Arch:
    """The arch that `name` spells (any accepted spelling of an arch). Raises `UnknownArch`."""
    for arch in ARCHS:
        if arch.name == _canonical_arch(name.strip()):
            return arch
    raise UnknownArch(
        f"unknown arch {_shown(name)}, nearest known is {_nearest_arch(name)}; known archs: {_names(ARCHS)}"
    )


def device_named(name: str) -> Device:
    """The device of a catalogue name or a torch device name, in any case. Raises `UnknownDevice`."""
    matches = [each for each in DEVICES if re.search(rf"(?<![a-z0-9]){each.name}(?![a-z0-9])", name, re.IGNORECASE)]
    if len(matches) == 1 and not _OTHER_VARIANT.search(name):
        return matches[0]
    if len(matches) == 1:
        same = matches[0]
        raise UnknownDevice(
            f"unknown device {_shown(name)}: this variant has other figures than the {same.name} of the "
            f"catalogue; to use those all the same give arch {same.arch.name} and device {same.name}"
        )
    raise UnknownDevice(
        f"unknown device {_shown(name)}, nearest known is {_nearest_device(name)}; known devices: {_names(DEVICES)}"
    )


def parse_features(text: str) -> dict[str, bool]:
    """Target features in an AMD target id: "gfx942:sramecc+:xnack-" gives {"sramecc": True, "xnack": False}.

    They change the code that runs (xnack+ forbids some loads from being clustered) but not the figures of the
    device, so `resolve` leaves them out. Text without features gives {}.
    """
    for line in text.splitlines():
        target = _GFX.fullmatch(line.strip())
        if target and target[2]:
            return {feature[:-1].lower(): feature[-1] == "+" for feature in target[2][1:].split(":")}
    return {}


def _resolve_line(line: str) -> Device:
    if _canonical_arch(line) is not None:
        return device_named(DEFAULT_DEVICE[arch_named(line).name])
    try:
        return device_named(line)
    except UnknownDevice:
        if _PRODUCT_LIKE.search(line):
            raise
    return device_named(DEFAULT_DEVICE[arch_named(line).name])


def _canonical_arch(text: str) -> str | None:
    """`gfx942` or `sm_90` for any spelling of an arch, known or not; None for other text."""
    if gfx := _GFX.fullmatch(text):
        return gfx[1].lower()
    if capability := _CAPABILITY.fullmatch(text):
        return f"sm_{capability[1] or capability[2] + capability[3]}"
    return None


def _nearest_arch(text: str) -> str:
    """Nearest by number within the vendor (gfx numbers are hexadecimal), else by spelling."""
    name = _canonical_arch(text.strip())
    if name is None:
        close = difflib.get_close_matches(text.strip().lower(), [arch.name for arch in ARCHS], n=1, cutoff=0.0)
        return close[0] if close else ARCHS[0].name

    def number(arch: str) -> int:
        return int(arch[3:], 16) if arch.startswith("gfx") else int(arch[3:])

    return min(
        (arch.name for arch in ARCHS if arch.name[:3] == name[:3]),
        key=lambda each: abs(number(each) - number(name)),
    )


def _nearest_device(text: str) -> str:
    words = re.split(r"[\s/_-]+", text.upper())
    return max(
        (device.name for device in DEVICES),
        key=lambda name: max(difflib.SequenceMatcher(None, name, word).ratio() for word in words),
    )


def _names(items: tuple[Arch, ...] | tuple[Device, ...]) -> str:
    return ", ".join(item.name for item in items)


def _shown(text: str) -> str:
    """The text as one short printable line."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
