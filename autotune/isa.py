"""Facts read from compiled code: registers, spills, and the instruction mix of the hottest loop.

AMD: the code object metadata and the listing that LLVM prints (`asm["amdgcn"]`). NVIDIA: cuobjdump of Triton's own tool
chain for registers and stack; the loop mix from PTX, before ptxas, so it is a coarser view.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton

from ..search_spaces.arch import Device
from ..search_spaces.model.facts import CompileFacts

_METADATA = re.compile(
    r"\.(vgpr_count|agpr_count|sgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size):\s+(\d+)"
)
_CODE_BYTES = re.compile(r"codeLenInByte = (\d+)")
_LABEL = re.compile(r"^(\.LBB\d+_\d+|\$L__BB\d+_\d+):")
_BRANCH = re.compile(r"(?:s_cbranch_\w+|s_branch|bra(?:\.uni)?)\s+(\.LBB\d+_\d+|\$L__BB\d+_\d+)")
_RESOURCE = re.compile(r"\b(REG|STACK):(\d+)")
_BYTES = {
    "dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2, "ubyte": 1,
    "b128": 16, "b96": 12, "b64": 8, "b32": 4, "b16": 2, "u16": 2, "u8": 1,
}  # fmt: skip
_MATRIX = re.compile(r"v_s?mfma\w*|wgmma\.mma_async|mma\.sync|tcgen05\.mma")
_GLOBAL_LOAD = re.compile(r"(?:buffer|global|flat)_load|ld\.global|cp\.async\.cg|cp\.async\.ca|cp\.async\.bulk\.tensor")
_SHARED_READ = re.compile(r"ds_read|ds_load|ld\.shared|ldmatrix")
_BARRIER = re.compile(r"s_barrier|bar\.sync|barrier\.")
_WAIT = re.compile(r"s_waitcnt|cp\.async\.wait|wgmma\.wait|mbarrier\.try_wait")
_ASYNC_COPY = re.compile(r"cp\.async\.c[ag]\.[^;]*\], (0x[0-9a-f]+|\d+)")
_PREDICATE = re.compile(r"^@!?%p\d+\s+")
_PTX_VECTOR = re.compile(r"\.v(\d)\.")


def facts_of(kernel: Any, device: Device) -> CompileFacts:
    """The facts of one of Triton's compiled kernels."""
    if device.arch.triton_backend == "hip":
        return _amd_facts(kernel, device)
    return _nvidia_facts(kernel)


def _amd_facts(kernel: Any, device: Device) -> CompileFacts:
    listing = kernel.asm["amdgcn"]
    found = {name: int(value) for name, value in _METADATA.findall(listing)}
    code = _CODE_BYTES.search(listing)
    registers = found.get("vgpr_count", 0)
    waves = min(device.arch.max_waves_per_simd, device.arch.registers_per_lane // max(8, -(-registers // 8) * 8))
    return CompileFacts(
        shared_bytes=int(kernel.metadata.shared),
        registers=registers,
        agprs=found.get("agpr_count", 0),
        sgprs=found.get("sgpr_count", 0),
        spills=found.get("vgpr_spill_count", 0) + found.get("sgpr_spill_count", 0),
        scratch_bytes=found.get("private_segment_fixed_size", 0),
        code_bytes=int(code.group(1)) if code else 0,
        waves_per_simd=waves,
        **_mix(_hot_loop(listing.splitlines())),
    )


def _nvidia_facts(kernel: Any) -> CompileFacts:
    resources = _cubin_resources(kernel.asm["cubin"])
    registers = resources.get("REG", 0)
    stack = resources.get("STACK", 0)
    return CompileFacts(
        shared_bytes=int(kernel.metadata.shared),
        registers=registers,
        agprs=0,
        sgprs=0,
        spills=stack // 4,
        scratch_bytes=stack,
        code_bytes=len(kernel.asm["cubin"]),
        waves_per_simd=min(16, 512 // max(8, -(-registers // 8) * 8)),
        **_mix(_hot_loop(kernel.asm["ptx"].splitlines())),
    )


def _cubin_resources(cubin: bytes) -> dict[str, int]:
    """REG and STACK of a cubin by cuobjdump, which Triton's wheel carries; empty when it cannot be run."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            command = [str(tool), "--dump-resource-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return {}
    return {name: int(value) for name, value in _RESOURCE.findall(text)}


def _hot_loop(lines: Sequence[str]) -> Sequence[str]:
    """The loop with most matrix instructions, else with most global loads; the whole listing where nothing loops.

    Also the whole listing where the matrix instructions are in no loop: LLVM unrolls a short one altogether, and what
    loops are left (a search, a prologue) are not the work.
    """
    labels: dict[str, int] = {}
    loops = []
    for number, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label.group(1)] = number
        if (branch := _BRANCH.search(line)) and labels.get(branch.group(1), number) < number:
            loops.append(lines[labels[branch.group(1)] : number + 1])
    if not loops:
        return lines
    hottest = max(loops, key=lambda loop: (_count(_MATRIX, loop), _count(_GLOBAL_LOAD, loop)))
    return hottest if _count(_MATRIX, hottest) or not _count(_MATRIX, lines) else lines


def _count(pattern: re.Pattern[str], lines: Sequence[str]) -> int:
    return sum(1 for line in lines if pattern.search(line))


def _mix(lines: Sequence[str]) -> dict[str, Any]:
    counts = dict.fromkeys(
        (
            "valu",
            "salu",
            "global_loads",
            "global_load_bytes",
            "lds_reads",
            "lds_read_bytes",
            "barriers",
            "waits",
        ),
        0,
    )
    matrix: dict[str, int] = {}
    for line in lines:
        text = line.split(";")[0].split("//")[0].strip()
        if not text or text.startswith(".") or text.endswith(":"):
            continue
        if found := _MATRIX.search(text):
            name = text.split()[0] if text.startswith("v_") else found.group(0)
            matrix[name] = matrix.get(name, 0) + 1
        elif _GLOBAL_LOAD.search(text):
            counts["global_loads"] += 1
            counts["global_load_bytes"] += _access_bytes(text)
        elif _SHARED_READ.search(text):
            counts["lds_reads"] += 1
            counts["lds_read_bytes"] += _access_bytes(text) * (2 if "read2" in text else 1)
        elif _BARRIER.search(text):
            counts["barriers"] += 1
        elif _WAIT.search(text):
            counts["waits"] += 1
        else:
            counts["salu" if text.startswith("s_") else "valu"] += 1
    return {"mfma": tuple(sorted(matrix.items())), **counts}


def _access_bytes(text: str) -> int:
    """Bytes one lane moves: from the suffix of an AMD mnemonic, or width x vector of a PTX one."""
    if copied := _ASYNC_COPY.search(text):
        return int(copied.group(1), 0)
    mnemonic = _PREDICATE.sub("", text).split("%")[0]
    width = next((size for suffix, size in _BYTES.items() if suffix in mnemonic), 4)
    vector = _PTX_VECTOR.search(mnemonic)
    return width * (int(vector.group(1)) if vector else 1)
