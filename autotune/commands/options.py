"""Options that several commands share, and the checks of their values."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ...search_spaces.arch import Device, UnknownArch, UnknownDevice
    from ...search_spaces.model_spec import ModelSpec

F = TypeVar("F", bound=Callable[..., Any])

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def database_option(function: F) -> F:
    """`--db PATH`."""
    return click.option(
        "--db", "database", metavar="PATH", default=None,
        help="Database file. Default: the first of $PAITON_DB, else ~/.local/share/paiton/paiton.db.",
    )(function)  # fmt: skip


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")(function)


def integer_list(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Callback for comma-separated positive integers: `1,2,4` to a tuple, each number once, ascending."""
    if value is None:
        return None
    numbers = []
    for part in value.split(","):
        if not re.fullmatch(r"[1-9]\d{0,8}", part.strip()):
            raise click.BadParameter(f"{part.strip()!r} in {value!r} is not a positive integer; expected e.g. 1,2,4")
        numbers.append(int(part))
    return tuple(sorted(set(numbers)))


def seconds(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Callback for a time such as `90s`, `10m` or `1.5h`; a bare number is seconds."""
    if value is None:
        return None
    found = _DURATION.fullmatch(value.strip())
    if found is None or float(found.group(1)) <= 0:
        raise click.BadParameter(f"{value!r} is not a time; expected e.g. 90s, 10m or 1.5h")
    return float(found.group(1)) * _SECONDS[found.group(2) or "s"]


def database_path_of(database: str | None) -> Path:
    """The database that a command means."""
    from ...cache.location import database_path

    return database_path(database, os.environ)


def shipped_paths() -> tuple[Path, ...]:
    """The databases under the user's: further entries of PAITON_DB, those of installed packages, our own."""
    from ...cache.location import shipped_databases

    return shipped_databases(os.environ)


def device_of(arch: str, device: str | None) -> Device:
    """The device that `--arch` and `--device` name. Raises a usage error."""
    from ...search_spaces.arch import UnknownArch, UnknownDevice, resolve

    try:
        return resolve(arch, device)
    except (UnknownArch, UnknownDevice) as error:
        raise _unknown_gpu(error, device) from None


def _unknown_gpu(error: UnknownArch | UnknownDevice, device: str | None) -> click.BadParameter:
    """The usage error, at the option whose value is at fault."""
    from ...search_spaces.arch import UnknownDevice

    return click.BadParameter(
        str(error), param_hint="--device" if isinstance(error, UnknownDevice) and device else "--arch"
    )


def model_of(text: str) -> ModelSpec:
    """The model that `--model` names. Raises a usage error."""
    from ...search_spaces.load_model import load_model
    from ...search_spaces.model_spec import ModelError
    from ..hub import resolve_hub

    try:
        return load_model(text, resolve_hub=resolve_hub)
    except ModelError as error:
        raise click.BadParameter(str(error), param_hint="--model") from None


def workload_options(function: F) -> F:
    """What to work on: GPU, model, kernels, batch sizes, prompt lengths, context, dtype and tensor-parallel degree."""
    options = (
        click.option("--arch", help="GPU: gfx942, sm_90, MI325X, ... Default: the GPU of this machine."),
        click.option("--device", help="Product where an architecture has several: gfx942 alone means MI300X."),
        click.option("--model", required=True, help="Built-in name, path of a config.json or its folder, or a hub id."),
        click.option("--kernel", "kernels", multiple=True, metavar="NAME", help="Only this kernel; repeat for more."),
        click.option(
            "--batch-sizes",
            metavar="N,N,...",
            callback=integer_list,
            default=None,
            help="Decode batch sizes. [default: 1,2,4,8,16,24,32,64,128,256]",
        ),
        click.option(
            "--prefill-lengths",
            metavar="N,N,...",
            callback=integer_list,
            default=None,
            help="Prompt lengths. [default: 512,1024,2048,4096,8192]",
        ),
        click.option(
            "--context",
            type=click.IntRange(1),
            default=4096,
            show_default=True,
            help="Cached tokens per sequence in decode.",
        ),
        click.option("--dtype", default="bf16", show_default=True, help="Element type: bf16, fp16 or fp32."),
        click.option(
            "--tp",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Tensor-parallel degree: the shapes of one rank.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@contextlib.contextmanager
def usage_errors(device: str | None) -> Iterator[None]:
    """What a request cannot mean becomes a usage error that names the option; `device` is the value of `--device`."""
    from ...search_spaces.arch import UnknownArch, UnknownDevice
    from ...search_spaces.model_spec import ModelError
    from ...search_spaces.workload import WorkloadError
    from ..adapters.foreign import AdapterUnavailable
    from ..request import NoGpu
    from ..space_file import SpaceFileError

    try:
        yield
    except SpaceFileError as error:
        raise click.BadParameter(str(error), param_hint="--space") from None
    except (UnknownArch, UnknownDevice) as error:
        raise _unknown_gpu(error, device) from None
    except ModelError as error:
        raise click.BadParameter(str(error), param_hint="--model") from None
    except (WorkloadError, NoGpu, AdapterUnavailable) as error:
        raise click.UsageError(str(error)) from None
