"""One compile job inside a worker: plan on meta tensors, compile one unit, read its facts."""

from __future__ import annotations

from typing import Any

from ..kernels_triton.registry import spec_of
from ..search_spaces.arch import device_named
from ..search_spaces.config import Config
from ..search_spaces.model.facts import CompileFacts
from .aot import compile_unit, units_of
from .isa import facts_of

MAX_ERROR_CHARS = 500


def run_job(job: dict[str, Any], *, keeps_binary: bool = False) -> dict[str, Any]:
    """{"kernel", "dtype", "batch", "signature", "config", "device", "unit"} -> {"facts"} or {"error"}.

    With `keeps_binary` the cache is the one that launches use: the answer also has "was_cached", and the facts are only
    the shared memory, because that cache may hold no listing to read more from (TRITON_STORE_BINARY_ONLY).

    The state `compile_error` covers whatever Triton, LLVM or ptxas raise for this config; a mistake of ours in a plan
    shows up the same way, with its type in the text.
    """
    device = device_named(job["device"])
    spec = spec_of(job["kernel"])
    problem = spec.space.problem_from(job["signature"], job["dtype"], job["batch"])
    config = Config.from_json(job["config"])
    try:
        unit = units_of(spec.meta_plan(problem, config, device), device)[job["unit"]]
        hits = _cache_hits()
        kernel = compile_unit(unit)
        if keeps_binary:
            facts = CompileFacts(shared_bytes=int(kernel.metadata.shared), registers=0)
            return {"facts": facts.json(), "was_cached": hits == [True]}
        facts = facts_of(kernel, device)
    except Exception as error:  # the compiler's errors have no common base class
        text = f"{type(error).__name__}: {error}".strip().splitlines()
        return {"error": " ".join(line.strip() for line in text)[:MAX_ERROR_CHARS]}
    return {"facts": facts.json()}


def _cache_hits() -> list[bool]:
    """A list that grows by one entry a compile: whether Triton found the binary in its cache."""
    from triton import knobs

    hits: list[bool] = []
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    return hits
