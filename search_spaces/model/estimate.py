"""The static model's answers: modelled times of whole columns, their parts, limits known before compiling.

An estimate is a relative score that orders configs of one problem on one device. It has never been compared
with a measured time of these kernels and must not be shown as one; docs/model.md says what it may be used
for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..chip import Device
from .attention import (
    attention_registers,
    decode_launches,
    least_attention_shared_bytes,
    prefill_launches,
    score_tile,
)
from .closed_form import (
    Array,
    Columns,
    dot_registers,
    stream_registers,
)
from .compiled import Candidates, candidates
from .constants import MODEL_VERSION
from .facts import CompileFacts
from .gemm import GemmConfig, GemmShape, least_gemm_shared_bytes
from .linear import linear_launches, linear_shape
from .moe import (
    down_launches,
    down_shape,
    gate_up_launches,
    gate_up_shape,
    grouped_launches,
    grouped_shapes,
    is_expert_form,
)
from .norm import norm_launches, qk_norm_rope_launches, router_launches
from .physics import Timing

__all__ = [
    "MODEL_VERSION", "CompileFacts", "UnmodelledKernel", "bound_of", "estimate_us", "explain_us",
    "likely_spills", "shared_bytes_estimate",
]  # fmt: skip

_Launches = Callable[[Any, Candidates], dict[str, Timing]]

_LAUNCHES: Mapping[str, _Launches] = {
    "rms_norm": norm_launches,
    "add_rms_norm": norm_launches,
    "linear": linear_launches,
    "linear_silu_mul": linear_launches,
    "linear_qkv": linear_launches,
    "router": router_launches,
    "moe_gate_up": gate_up_launches,
    "moe_down": down_launches,
    "moe_grouped": grouped_launches,
    "qk_norm_rope": qk_norm_rope_launches,
    "attention_decode": decode_launches,
    "attention_decode_fused": decode_launches,
    "attention_prefill": prefill_launches,
}
_BOUNDS = ("matrix", "issue", "shared_memory", "latency", "bandwidth_share", "traffic")


_HELD_LIMIT = 224 / 512
"""Part of the registers that accumulators and staged operands may take before a gfx942 grouped GEMM mostly spills."""


class UnmodelledKernel(ValueError):
    """A kernel the static model has no formulas for."""


def estimate_us(
    problem: Any, device: Device, columns: Columns, facts: Sequence[CompileFacts | None] | None = None
) -> npt.NDArray[np.float64]:
    """Modelled time of each config in microseconds, inf where it cannot launch.

    `columns` holds one array per config parameter, all of one length. `facts` has one entry per config, None
    where it was not compiled; a fact replaces the closed form it stands for. Raises UnmodelledKernel, or
    ValueError for a wrong number of facts.
    """
    launches = _timings(problem, device, columns, facts)
    return np.asarray(sum(timing.total_us for timing in launches.values()), np.float64)


def explain_us(
    problem: Any, device: Device, config: Mapping[str, Any], facts: CompileFacts | None = None
) -> dict[str, float]:
    """The parts of one config's estimate by name, "total" first.

    For every launch: its total, launch cost, `loop` (programs in waves) and `traffic` (all bytes at the
    bandwidth of each level), which combine to the rest; then the lower bounds of the loop, which overlap
    (`matrix`, `issue`, `shared_memory`, `latency`, `bandwidth_share`), all in microseconds; then counts:
    programs, programs per unit, waves.
    """
    columns = {name: np.array([value]) for name, value in config.items()}
    launches = _timings(problem, device, columns, [facts])
    parts = {"total": float(sum(timing.total_us[0] for timing in launches.values()))}
    for name, timing in launches.items():
        if timing.total_us[0] == 0.0:
            continue
        terms = {
            "total": timing.total_us, "launch": timing.launch_us, "loop": timing.loop_us,
            "traffic": timing.traffic_us, "matrix": timing.matrix_us, "issue": timing.issue_us,
            "shared_memory": timing.shared_memory_us, "latency": timing.latency_us,
            "bandwidth_share": timing.bandwidth_share_us, "programs": timing.programs,
            "programs_per_unit": timing.programs_per_unit, "waves": timing.waves,
        }  # fmt: skip
        parts |= {f"{name}.{term}": float(values[0]) for term, values in terms.items()}
    return parts


def bound_of(parts: Mapping[str, float], launch: str) -> str:
    """Which of the overlapping bounds of a launch is the largest: the name of a term of `explain_us`."""
    return max(_BOUNDS, key=lambda term: parts[f"{launch}.{term}"])


def shared_bytes_estimate(kernel: str, problem: Any, device: Device, columns: Columns) -> Array:
    """Shared memory that each config needs in any case, in bytes; 0 where nothing is sure.

    A config beyond `device.arch.shared_limit_bytes` can be rejected without compiling it; one below may still
    fail.
    """
    case = candidates(columns, device)
    sure = [
        np.where(is_dot > 0, least_gemm_shared_bytes(shape, GemmConfig.of(case), case), 0.0)
        for shape, is_dot in _dot_shapes(kernel, problem, case)
    ]
    if kernel.startswith("attention"):
        sure.append(least_attention_shared_bytes(score_tile(problem, case), case))
    return np.maximum.reduce(sure) if sure else np.zeros(case.rows)


def likely_spills(kernel: str, problem: Any, device: Device, columns: Columns) -> npt.NDArray[np.bool_]:
    """Configs whose registers will hardly fit, so they compile slowly and run badly.

    A rule to queue them last, never to reject: of 141 compiled configs of our kernels it named 6 of the 10 that spill
    and 3 that do not.
    """
    case = candidates(columns, device)
    warps = case.warps
    lanes = device.arch.wave_size * warps
    limit = case.register_limit()
    result = np.zeros(case.rows, np.bool_)
    if kernel.startswith("attention"):
        result |= attention_registers(score_tile(problem, case), device) > limit
    for shape, is_dot in _dot_shapes(kernel, problem, case):
        tile = GemmConfig.of(case).tile(shape)
        needed = dot_registers(tile, device.arch) + (shape.weights - 1) * tile.accumulators / lanes
        held = (
            shape.weights * tile.accumulators / lanes + (tile.left_bytes + tile.right_bytes * shape.weights) / 4 / lanes
        )
        result |= (is_dot > 0) & ((needed > limit) | (device.arch.is_amd & (held > _HELD_LIMIT * limit)))
        block = case.column("BLOCK_N", 8) * case.column("BLOCK_K", 512) * shape.weights
        streamed = stream_registers(block, shape.itemsize, block, warps, device.arch)
        result |= (is_dot == 0) & (streamed > limit)
    return result


def _timings(
    problem: Any, device: Device, columns: Columns, facts: Sequence[CompileFacts | None] | None
) -> dict[str, Timing]:
    launches = _LAUNCHES.get(problem.kernel)
    if launches is None:
        raise UnmodelledKernel(f"no static model of kernel {problem.kernel!r}; modelled: {', '.join(_LAUNCHES)}")
    return launches(problem, candidates(columns, device, facts))


def _dot_shapes(kernel: str, problem: Any, case: Candidates) -> list[tuple[GemmShape, Array]]:
    """The GEMMs of a kernel, and per config 1 where they run by tl.dot."""
    ones = np.ones(case.rows)
    if kernel.startswith("linear"):
        return [(linear_shape(problem), case.column("DOT", 1))]
    if kernel == "moe_grouped":
        return [(shape, ones) for shape in grouped_shapes(problem).values()]
    if kernel in ("moe_gate_up", "moe_down"):
        shape = gate_up_shape(problem) if kernel == "moe_gate_up" else down_shape(problem, 4)
        return [(shape, is_expert_form(case.columns))]
    return []
