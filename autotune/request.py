"""From what a person says (a model's name, an architecture, numbers) to a complete request."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from ..cache.location import database_path
from ..search_spaces.arch import Device, resolve
from ..search_spaces.load_model import load_model
from ..search_spaces.model_spec import ModelError
from ..search_spaces.workload import DECODE_BATCH_SIZES, PREFILL_LENGTHS, WorkloadError, problems
from .adapters.registry import FOREIGN_KERNELS, STAND_INS, adapter_of, foreign_items
from .hub import resolve_hub
from .local_gpu import find_local_gpu
from .space_file import check_parameters, read_space_file
from .tune import TuneRequest

ESTIMATED_TRIALS = 16
MEASURED_TRIALS = 80


class NoGpu(ValueError):
    """No architecture was named, and this machine has no GPU that could be meant."""


def make_request(
    model: str,
    *,
    arch: str | None = None,
    device: str | None = None,
    kernels: Sequence[str] = (),
    batch_sizes: Sequence[int] | None = None,
    prefill_lengths: Sequence[int] | None = None,
    context: int = 4096,
    dtype: str = "bf16",
    tp: int = 1,
    trials: int | None = None,
    budget_s: float | None = None,
    jobs: int | None = None,
    timeout_s: float = 30.0,
    seed: int = 0,
    resume: bool = True,
    estimate: bool = False,
    space_file: str | Path | None = None,
    database: str | Path | None = None,
) -> TuneRequest:
    """The request that `autotune run` would make of these words; `autotune run --help` says what each means.

    Batch sizes alone ask for decode alone, prompt lengths alone for prefill alone, neither for both. Raises ModelError,
    UnknownArch, UnknownDevice, NoGpu, WorkloadError, SpaceFileError, AdapterUnavailable, each with one line, and
    StoreError for a database path that cannot be one.
    """
    extra = read_space_file(Path(space_file)) if space_file is not None else {}
    spec = load_model(model, resolve_hub=resolve_hub)
    target, is_present = target_of(arch, device)
    measures = is_present and not estimate
    nothing_named = batch_sizes is None and prefill_lengths is None
    own = tuple(kernel for kernel in kernels if kernel not in FOREIGN_KERNELS)
    foreign = tuple(dict.fromkeys(kernel for kernel in kernels if kernel in FOREIGN_KERNELS))
    for kernel in foreign:
        adapter_of(kernel).check(measures=measures)
    workload = functools.partial(
        problems,
        spec,
        batch_sizes=DECODE_BATCH_SIZES if nothing_named else batch_sizes or (),
        prefill_lengths=PREFILL_LENGTHS if nothing_named else prefill_lengths or (),
        dtype=dtype,
        tp=tp,
        context=context,
    )
    try:
        items = workload(kernels=own or None) if own or not foreign else ()
        if foreign:
            items += foreign_items(workload(kernels=STAND_INS), foreign)
    except ModelError as error:  # the model is sound, but cannot be split that many ways
        raise WorkloadError(str(error)) from None
    check_parameters(extra, [item.problem for item in items], target)
    return TuneRequest(
        device=target,
        model=spec.name,
        items=items,
        measures=measures,
        trials=trials or (MEASURED_TRIALS if measures else ESTIMATED_TRIALS),
        budget_s=budget_s,
        jobs=jobs or len(os.sched_getaffinity(0)),
        timeout_s=timeout_s,
        seed=seed,
        resume=resume,
        database=database_path(database, os.environ),
        extra_choices=extra,
    )


def target_of(arch: str | None, device: str | None) -> tuple[Device, bool]:
    """The device to tune for, and whether this machine has it. Raises UnknownArch, UnknownDevice or NoGpu."""
    local = find_local_gpu()
    named = arch if arch is not None else device
    if named is None:
        if local is None:
            raise NoGpu(
                "this machine has no GPU that torch can see: name the one to tune for, for example --arch gfx942 "
                "(`autotune archs` lists them)"
            )
        return local.device, True
    target = resolve(named, device)
    return target, local is not None and local.device == target
