"""One compile job inside a worker: plan on meta tensors, compile one unit, read its facts."""

from __future__ import annotations

from typing import Any

from ..kernels_triton.registry import spec_of
from ..search_spaces.arch import device_named
from ..search_spaces.config import Config
from .aot import compile_unit, units_of
from .isa import facts_of

MAX_ERROR_CHARS = 500


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """{"kernel", "dtype", "batch", "signature", "config", "device", "unit"} -> {"facts"} or {"error"}.

    The state `compile_error` covers whatever Triton, LLVM or ptxas raise for this config; a mistake of ours in a plan
    shows up the same way, with its type in the text.
    """
    device = device_named(job["device"])
    spec = spec_of(job["kernel"])
    problem = spec.space.problem_from(job["signature"], job["dtype"], job["batch"])
    config = Config.from_json(job["config"])
    try:
        unit = units_of(spec.meta_plan(problem, config, device), device)[job["unit"]]
        kernel = compile_unit(unit)
        facts = facts_of(kernel, device)
    except Exception as error:  # the compiler's errors have no common base class
        text = f"{type(error).__name__}: {error}".strip().splitlines()
        return {"error": " ".join(line.strip() for line in text)[:MAX_ERROR_CHARS]}
    return {"facts": facts.json()}
