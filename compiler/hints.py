"""A symbolic number as the number that the example inputs had, without installing a guard."""

from __future__ import annotations

from typing import Any

import torch

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def hint_of(number: Any) -> Any:
    """The hint of a symbolic number, None where nothing is known of it; anything else as it is."""
    if isinstance(number, _SYMBOLIC):
        return number.node.hint if number.node.has_hint() else None
    return number


def size_hint(size: Any) -> int:
    """The size by its hint; 1 where nothing is known of it."""
    hint = hint_of(size)
    return 1 if hint is None else int(hint)
