"""What the compiler says about one config: facts, true whatever a ranking made from them is worth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CompileFacts:
    """Resources and loop contents of one compiled config; 0 where the compiler does not tell.

    The loop counts describe the innermost loop with most matrix instructions (without any: most load bytes),
    as one wave or warp executes it; the `_bytes` of the loop are per lane. `mfma` holds (mnemonic, count)
    pairs sorted by mnemonic. A config of several launches is described by `merged`.
    """

    shared_bytes: int
    registers: int
    """Per thread: architectural and accumulation VGPRs on AMD (`.vgpr_count`), registers on NVIDIA."""
    agprs: int = 0
    sgprs: int = 0
    spills: int = 0
    """Registers spilled, vector and scalar together; scalar ones go to lanes of vector registers first."""
    scratch_bytes: int = 0
    """Private memory per thread: what the model counts as spilled."""
    code_bytes: int = 0
    waves_per_simd: int = 0
    mfma: tuple[tuple[str, int], ...] = ()
    valu: int = 0
    salu: int = 0
    global_loads: int = 0
    global_load_bytes: int = 0
    lds_reads: int = 0
    lds_read_bytes: int = 0
    barriers: int = 0
    waits: int = 0
    launches: int = 1
    """Kernels started for one call of this config."""

    def json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> CompileFacts:
        """The facts that `json` wrote; names it does not know are ignored, so newer rows stay readable."""
        fields: dict[str, Any] = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in fields.items() if name in known}
        fields["mfma"] = tuple((str(name), int(count)) for name, count in fields.get("mfma", ()))
        return cls(**fields)

    @property
    def mfma_count(self) -> int:
        """Matrix instructions in the loop."""
        return sum(count for _, count in self.mfma)


_SUMMED = ("launches", "code_bytes")
_LOOP = (
    "mfma", "valu", "salu", "global_loads", "global_load_bytes", "lds_reads", "lds_read_bytes", "barriers", "waits",
)  # fmt: skip


def merged(facts: Sequence[CompileFacts]) -> CompileFacts:
    """One record for the launches of a call: the largest demand of the main launches, the loop with most matrix work.

    Main are the launches with matrix instructions, all where there are none: what a helper kernel needs says nothing
    about how many programs of the main ones fit. Waves per SIMD is the smallest, launches and code size are summed.
    Raises ValueError for no launch at all.
    """
    if not facts:
        raise ValueError("a call without a launch has no facts")
    main = [each for each in facts if each.mfma] or list(facts)
    busiest = max(main, key=lambda each: (each.mfma_count, each.global_load_bytes))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(CompileFacts):
        column = [getattr(each, field.name) for each in main]
        if field.name in _SUMMED:
            values[field.name] = sum(getattr(each, field.name) for each in facts)
        elif field.name == "waves_per_simd":
            values[field.name] = min(column)
        elif field.name in _LOOP:
            values[field.name] = getattr(busiest, field.name)
        else:
            values[field.name] = max(column)
    return CompileFacts(**values)
