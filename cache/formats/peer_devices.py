"""The names vLLM and SGLang give to devices, and the instruction set behind each.

A name is what the driver prints with blanks replaced, or, for vLLM on ROCm, a fixed name by PCI id
(vllm/platforms/rocm.py). Instruction sets: NVIDIA's table of compute capabilities, ROCm's table of GPU targets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

UNKNOWN_ARCH = "unknown"

# Of our catalogue. vLLM names every H200 variant NVIDIA_H200; the map of ROCm names has no entry for gfx950, there the
# name is the driver's.
PEER_DEVICE: Mapping[str, str] = {
    "MI300X": "AMD_Instinct_MI300X",
    "MI300A": "AMD_Instinct_MI300A",
    "MI325X": "AMD_Instinct_MI325X",
    "MI350X": "AMD_Instinct_MI350X",
    "MI355X": "AMD_Instinct_MI355X",
    "MI250X": "AMD_Instinct_MI250X",
    "A100": "NVIDIA_A100-SXM4-80GB",
    "H100": "NVIDIA_H100_80GB_HBM3",
    "H200": "NVIDIA_H200",
    "B200": "NVIDIA_B200",
}
UNCERTAIN_NAMES = frozenset({"MI300A", "MI350X", "MI355X", "MI250X"})
"""Names that no loader's table confirms: compare them with what the loader logs when it finds no file."""

_ARCH_OF = (
    (r"RTX_PRO_\d+_Blackwell|RTX_50\d\d", "sm_120"),
    (r"GB10", "sm_121"),
    (r"G?B300", "sm_103"),
    (r"G?B200", "sm_100"),
    (r"(GH|H)(100|200|800)|H20(-3e)?", "sm_90"),
    (r"L4|L20|L40S?|RTX_\d+_Ada|RTX_40\d\d", "sm_89"),
    (r"A100|A800", "sm_80"),
    (r"MI3(00|08|25)[AX]?(HF)?", "gfx942"),
    (r"MI35[05]X?", "gfx950"),
    (r"MI2[15]0X?", "gfx90a"),
    (r"R9700", "gfx1201"),
    (r"8060S", "gfx1151"),
)


def arch_of_peer_device(name: str) -> str:
    """The arch of a peer's device name (`NVIDIA_H20-3e` is sm_90), or UNKNOWN_ARCH."""
    for pattern, arch in _ARCH_OF:
        if re.search(rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])", name):
            return arch
    return UNKNOWN_ARCH
