"""`paiton.explain(model, ...)`: what the backend would do with a model, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..search_spaces.arch import Device, resolve
from . import gpu, selection
from .capture import capture
from .choice import Miss
from .enable import is_compiled
from .expected import Absent, absent_sites
from .launches import Launches, count_launches
from .options import read_options
from .passes import names
from .report import CompileReport
from .tuning_rows import TuningRow, misses, tuning_rows

GENERATE_NOTE = (
    "generate() of this object runs the model inside, uncompiled: use paiton.compile(model) and model.generate()"
)


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `str()` of it is the text to read, `to_json()` the same for machines."""

    model: str
    device: Device | None
    """The GPU that is meant; None for the CPU, where no kernel of ours runs."""
    reports: tuple[CompileReport, ...]
    """One for each graph of the model."""
    graph_breaks: tuple[str, ...]
    absent: tuple[Absent, ...]
    tuning: tuple[TuningRow, ...]
    misses: tuple[Miss, ...]
    launches: Launches | None
    notes: tuple[str, ...]
    model_name: str = "MODEL"
    """How `autotune run --model` would know the model."""

    def counts(self) -> Mapping[str, int]:
        """Sites with our operator, by pattern, over all graphs."""
        found: dict[str, int] = {}
        for report in self.reports:
            for pattern, count in report.counts().items():
                found[pattern] = found.get(pattern, 0) + count
        return found

    def __str__(self) -> str:
        where = f"{self.device.name} ({self.device.arch.name})" if self.device is not None else "the CPU"
        graphs = f"{len(self.reports)} graph{'s' if len(self.reports) != 1 else ''}"
        lines = [f"paiton: {self.model} on {where}, {graphs}"]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"graph break: {reason.strip().splitlines()[0]}" for reason in self.graph_breaks if reason.strip()]
        for number, report in enumerate(self.reports, 1):
            lines += ["", f"[{number}] {report.table()}"]
        if self.absent:
            lines += ["", "expected, but not in the graph:", *(f"  {each}" for each in self.absent)]
        if self.tuning:
            lines += ["", "configurations:"]
        for row in self.tuning:
            lines += [f"  {row.title}", *(f"    {served}" for served in row.served)]
        if self.launches is not None:
            lines += ["", str(self.launches)]
        if self.misses:
            lines += ["", "not tuned; these commands fill the gaps:"]
            lines += [f"  {command}" for command in self.commands]
        return "\n".join(lines)

    @property
    def commands(self) -> tuple[str, ...]:
        """The `autotune run` lines that tune what is not."""
        return tuple(miss.command(self.model_name) for miss in self.misses)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON's types."""
        return {
            "model": self.model,
            "device": self.device.name if self.device is not None else None,
            "graphs": [report.to_json() for report in self.reports],
            "graph_breaks": list(self.graph_breaks),
            "absent": [asdict(each) for each in self.absent],
            "tuning": [
                {
                    "problem": str(row.problem),
                    "used": row.used,
                    "left": row.left,
                    "served": [asdict(s) for s in row.served],
                }
                for row in self.tuning
            ],
            "launches": asdict(self.launches) if self.launches is not None else None,
            "commands": list(self.commands),
            "notes": list(self.notes),
        }


def explain(
    model: Any,
    *args: Any,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
    batches: Sequence[int] = (),
    **kwargs: Any,
) -> Explanation:
    """What the backend would do with `model(*args, **kwargs)`: sites, decisions, configurations, what is not tuned.

    `device` names a GPU of the catalogue ("MI300X", "gfx942", "sm_90") that need not be here; without it the model is
    explained where it is. Nothing is lowered or tuned, and no input is changed: for a GPU the call is traced on the
    `meta` device, on the CPU the model runs once on copies of its inputs. `options` are the backend's, `batches` the
    batch sizes to look up beside that of the call. What was compiled is compiled anew afterwards (torch._dynamo.reset).
    Raises UnknownArch or UnknownDevice for a name that is not known, BadOption for a wrong option.
    """
    notes: list[str] = []
    if isinstance(model, torch._dynamo.OptimizedModule):
        notes.append(GENERATE_NOTE)
        model = model._orig_mod
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"paiton.explain takes a torch.nn.Module, not {type(model).__name__}")
    target, note = _target(model, device)
    notes += [note] if note else []
    if hasattr(model, "generate") and not is_compiled(model):
        notes.append("generate() runs this backend after paiton.compile(model) only")
    database = selection.database_note()
    notes += [database] if database else []
    chosen = replace(read_options(options, patterns=names()), lower="eager")
    captured = capture(model, args, kwargs, chosen, target)
    sites = [site for report in captured.reports for site in report.sites]
    rows = tuning_rows(sites, target, batches) if target is not None else ()
    is_looked_at = any(not report.reason for report in captured.reports)
    return Explanation(
        model=type(model).__name__,
        device=target,
        reports=captured.reports,
        graph_breaks=captured.graph_breaks,
        absent=absent_sites(model, sites, captured.graph_breaks) if is_looked_at else (),
        tuning=rows,
        misses=misses(sites, target) if target is not None else (),
        launches=count_launches(sites, target) if target is not None else None,
        notes=tuple(notes),
        model_name=str(getattr(getattr(model, "config", None), "_name_or_path", "") or "MODEL"),
    )


def _target(model: torch.nn.Module, device: str | None) -> tuple[Device | None, str]:
    """The device to explain for, and what is to be said of it."""
    if device is not None:
        return resolve(device), ""
    tensor = next(iter(model.parameters()), None)
    where = tensor.device if tensor is not None else torch.device("cpu")
    found = gpu.device_of(where)
    if found is None and where.type != "cpu":
        return None, f"this {where.type} device is not in the catalogue: no kernel of ours runs on it"
    if found is None:
        return None, "on the CPU no kernel of ours runs; device='MI300X' explains for a GPU that is not here"
    return found, ""
