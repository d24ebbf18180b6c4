"""How a launcher gets its config and what happens when the launch fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import failures, selection
from ..ask import Asks


def launching(
    asks: Callable[..., Asks], body: Callable[..., Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of `launch(way, *args)`: the launcher of an operator, `body` where no config is chosen or a launch
    fails. The first argument of an operator is a tensor; its device is the call's."""

    def wrap(launch: Callable[..., Any]) -> Callable[..., Any]:
        def launcher(*args: Any) -> Any:
            device = args[0].device
            way = selection.choose(asks(*args), device)
            if way is None:
                return body(*args)
            try:
                if device.type == "cpu" or device.index == torch.cuda.current_device():
                    return launch(way, *args)
                # Triton launches on the current device.
                with torch.cuda.device(device):
                    return launch(way, *args)
            except Exception as error:
                if not failures.is_launch_failure(error):
                    raise
                if failures.note(way, error):
                    selection.forget_choices()
                return body(*args)

        return launcher

    return wrap


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """x [..., K] as [rows, K] with contiguous rows; a copy only where its strides ask for one."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def unit_last(x: torch.Tensor) -> torch.Tensor:
    """x with a unit stride over its last axis; a copy only where its strides ask for one."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
