"""A place in a graph that one of our operations could compute, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from torch import fx


class Reject(Exception):
    """The anchor is there, but what surrounds it is not what the kernel computes. The message is the reason."""


def need(condition: object, reason: str) -> None:
    """Raise Reject(reason) unless the condition holds."""
    if not condition:
        raise Reject(reason)


class Status(str, Enum):
    """What became of a site."""

    REPLACED = "replaced"
    """Our operation is in the graph."""
    LEFT = "left"
    """Matched, but what Inductor makes of it is expected to be as fast: the graph is as it was."""
    JOINED = "joined"
    """Became part of a larger site."""
    REJECTED = "rejected"
    ERROR = "error"
    """The matcher failed: a fault of ours; the graph is as it was."""


@dataclass
class Site:
    """One site. What the report shows: pattern, place, status and the reason or details.

    `call` is the node of our operation, `swaps` the (old, new) pairs of values it took over, oldest first, `nodes` the
    nodes that die with the site, `writes` those of them whose in-place write the operation does itself, `emitted` those
    made for it, `parts` the smaller sites it absorbed.
    """

    pattern: str
    anchor: str
    where: str
    status: Status
    detail: str = ""
    reason: str = ""
    """Why it was decided so: the database's answer, or the estimate."""
    call: fx.Node | None = None
    swaps: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    nodes: list[fx.Node] = field(default_factory=list)
    writes: list[fx.Node] = field(default_factory=list)
    emitted: list[fx.Node] = field(default_factory=list)
    parts: list[Site] = field(default_factory=list)
