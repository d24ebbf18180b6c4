"""A size as a number."""

from __future__ import annotations

from typing import Any

import torch


def size_hint(size: Any) -> int:
    """The size by its hint, without installing a guard; 1 where nothing is known of it."""
    if isinstance(size, torch.SymInt):
        return int(size.node.hint) if size.node.has_hint() else 1
    return int(size)
