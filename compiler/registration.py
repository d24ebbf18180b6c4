"""The name "paiton" among torch's backends.

An installed package is found by its entry point and needs no import. A checkout without an installation has none:
there the name is registered on first use of this package's functions. Both at once would be torch's AssertionError
"duplicate name: paiton".
"""

from __future__ import annotations

NAME = "paiton"


def register() -> bool:
    """Make torch.compile(..., backend="paiton") work. Returns whether it had to be registered here."""
    from torch._dynamo.backends.registry import list_backends, register_backend

    if NAME in list_backends(exclude_tags=()):
        return False
    from .backend import paiton

    register_backend(paiton, name=NAME)
    return True
