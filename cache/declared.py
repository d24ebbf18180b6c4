"""Whether a stored config lies in the space its kernel declares, for the device that its row names."""

from __future__ import annotations

import numpy as np

from ..search_spaces.arch import UnknownDevice, device_named
from ..search_spaces.config import Config, InvalidConfig
from ..search_spaces.fused_moe import VLLM_FUSED_MOE
from ..search_spaces.problem import InvalidProblem
from ..search_spaces.registry import UnknownKernel, space_of
from .formats.peer_file import FormatRefused, Peer, check_config, format_name, parse_name
from .formats.peer_rows import FORMAT_DIGEST, files_of, rows_of
from .rows import Label, TunedRow


def config_faults(row: TunedRow, config_json: str | None) -> str | None:
    """Why a launch must not get this config for the row's cell, in one line; None when it may.

    A config of None is the kernel's default; the rest of the cell is checked all the same. Rows of peers' kernels must
    be what an import of their files makes.
    """
    cell = row.cell
    is_tuned = cell.kernel == VLLM_FUSED_MOE.kernel and cell.kernel_digest != FORMAT_DIGEST  # by a run, with vLLM
    for peer in Peer:
        if cell.kernel == peer.kernel and not is_tuned:
            return _peer_fault(peer, row)
    try:
        space = VLLM_FUSED_MOE if is_tuned else space_of(cell.kernel)
        problem = space.problem_from(cell.signature, cell.dtype, cell.batch)
        device = device_named(cell.device)
    except (UnknownKernel, InvalidProblem, UnknownDevice) as error:
        return str(error)
    except TypeError:
        return f"signature {cell.signature[:120]!r} has not the sizes of {cell.kernel}"
    if (device.name, device.arch.name, problem.signature) != (cell.device, cell.arch, cell.signature):
        return f"{cell.device}, {cell.arch} and {cell.signature[:120]!r} are not spelled as Paiton spells them"
    if config_json is None:
        return None
    try:
        # Sizes nobody has seen (0, a billion) may end in a division by zero or an overflow inside a rule.
        with np.errstate(all="ignore"):
            faults = space.faults(Config.from_json(config_json), problem, device)
    except (InvalidConfig, ArithmeticError) as error:
        return f"config {config_json[:120]} cannot be checked: {error}"
    return f"config {config_json[:200]}: {'; '.join(faults)}" if faults else None


def _peer_fault(peer: Peer, row: TunedRow) -> str | None:
    if row.label is not Label.PRIOR or row.shortlist:
        return f"a row of {peer.kernel} can only be a prior, without a shortlist"
    try:
        files = files_of(peer, [row])
        for file in files:
            for tokens, config in file.ladder:
                check_config(str(tokens), dict(config))
            if parse_name(peer, format_name(peer, file.name)) != file.name:
                return f"device {row.cell.device[:80]!r} cannot be part of a file name"
        same = [each for file in files for each in rows_of(file, version=row.source.version)]
    except FormatRefused as error:
        return str(error)
    if [(each.cell, each.config_json) for each in same] != [(row.cell, row.config_json)]:
        return f"a row that no file of {peer.project} gives"
    return None
