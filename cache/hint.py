"""The command that would tune a cell. Standard library only: a server's lookup prints it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from .key import Cell

_PREFILL_ONLY = ("moe_grouped", "attention_prefill")


def run_line(
    cell: Cell, *, model: str = "MODEL", tp: int = 1, is_prefill: bool | None = None, batches: Sequence[int] = ()
) -> str:
    """`autotune run ...` for the kernel, device, dtype and batch of `cell`.

    A cell does not know its model: MODEL stands for it unless named. `is_prefill` says whether the batch is a prompt
    length; by default only where the kernel has no other. `batches` stand in for that of `cell`.
    """
    is_prompt = cell.kernel in _PREFILL_ONLY if is_prefill is None else is_prefill
    words = ["autotune", "run", "--arch", cell.arch, "--device", cell.device, "--model", model]
    words += ["--kernel", cell.kernel, "--prefill-lengths" if is_prompt else "--batch-sizes"]
    words += [",".join(map(str, batches or (cell.batch,)))]
    sizes = dict(part.partition("=")[::2] for part in cell.signature.split(","))
    if "context" in sizes:
        words += ["--context", sizes["context"]]
    if cell.dtype != "bf16":
        words += ["--dtype", cell.dtype]
    if tp != 1:
        words += ["--tp", str(tp)]
    return shlex.join(words)
