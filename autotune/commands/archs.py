"""`autotune archs`: the GPUs that can be tuned for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from .options import json_option

if TYPE_CHECKING:
    from ...search_spaces.arch import Device


@click.command(short_help="List the GPU architectures and devices.")
@click.argument("name", required=False)
@json_option
def archs(name: str | None, as_json: bool) -> None:
    """List the architectures and devices that can be tuned for, with the figures the static model uses.

    With NAME (an architecture, a device or what a tool printed) show that device with the source of each figure.

    \b
    Examples:
      autotune archs
      autotune archs MI300X
      autotune archs gfx942:sramecc+:xnack-
    """
    from ...search_spaces.arch import known_devices
    from .options import device_of

    if name is not None:
        _show_one(device_of(name, None), as_json)
        return
    devices = known_devices()
    if as_json:
        _echo_json([_plain(device) for device in devices])
        return
    from rich.table import Table

    from ..console import make_console

    table = Table("device", "arch", "CUs / SMs", "XCDs", "LDS / shared", "memory", "bandwidth", "bf16 peak", box=None)
    for device in devices:
        table.add_row(
            device.name, device.arch.name, str(device.compute_units), str(device.xcds),
            f"{device.arch.shared_limit_bytes // 1024} KiB", f"{device.memory_gib:g} GiB",
            f"{device.hbm_gbps / 1000:.2f} TB/s", f"{device.peak_tflops['bf16']:.0f} TFLOP/s",
        )  # fmt: skip
    console = make_console()
    console.print(table)
    defaults: dict[str, Device] = {device.arch.name: device_of(device.arch.name, None) for device in devices}
    console.print(
        "An architecture alone means: " + ", ".join(f"{a} = {d.name}" for a, d in defaults.items()),
        highlight=False,
    )


def _show_one(device: Device, as_json: bool) -> None:
    plain = _plain(device)
    if as_json:
        _echo_json(plain)
        return
    from rich.table import Table

    from ..console import make_console

    table = Table("figure", "value", "source", box=None)
    for owner, sources in ((device.arch, device.arch.sources), (device, device.sources)):
        for field in dataclasses.fields(owner):
            value = getattr(owner, field.name)
            if field.name in ("arch", "sources"):
                continue
            shown = ", ".join(f"{k} {v:g}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            table.add_row(field.name, shown, sources.get(field.name, ""))
    make_console().print(table)


def _plain(device: Device) -> dict[str, object]:
    values: dict[str, object] = {}
    for field in dataclasses.fields(device):
        value = getattr(device, field.name)
        values[field.name] = (
            device.arch.name if field.name == "arch" else dict(value) if hasattr(value, "keys") else value
        )
    return values


def _echo_json(value: object) -> None:
    import json

    click.echo(json.dumps(value))
