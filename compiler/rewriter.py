"""Puts our operations into a graph, one site at a time, so that every step can be taken back.

A pattern finds anchors and matches what surrounds them. `replace` accepts only a value of equal shape, dtype and
device, so a matcher that fails half-way leaves a correct graph. The nodes a site stands for stay in the graph, unused,
until `sweep`: a site can be undone until then, when the decision goes against it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from .aliasing import is_view, may_alias, mutated_args, storage_owner
from .canonical import layer_of, same_shape, shape, value
from .site import Reject, Site, Status, need

_LOG = logging.getLogger("paiton")
_INHERITED_META = ("nn_module_stack", "stack_trace", "source_fn_stack")

Anchors = Callable[["Rewriter"], Iterable[tuple[fx.Node, ...]]]
Match = Callable[["Rewriter", tuple[fx.Node, ...]], "str | None"]


@dataclass(frozen=True)
class Pattern:
    """What to look for. `anchors` yields groups of nodes, usually of one; a group's first node names the site.

    `match` puts the operation in and returns the details for the report, raises Reject(reason), or returns None where
    the group is no site of this pattern at all.
    """

    name: str
    anchors: Anchors
    match: Match


def single(is_anchor: Callable[[fx.Node], bool]) -> Anchors:
    """Anchors of one node each: every live node for which `is_anchor` holds."""

    def find(rewriter: Rewriter) -> Iterable[tuple[fx.Node, ...]]:
        return ((node,) for node in rewriter.live_nodes() if is_anchor(node))

    return find


def _mode_of(graph: fx.Graph) -> Any:
    """The mode of the fake tensors in the graph; None where there is none."""
    values = (value(node) for node in graph.nodes)
    return next((found.fake_mode for found in values if isinstance(found, FakeTensor)), None)


class Rewriter:
    """The graph of `module` under change, and the sites found so far."""

    def __init__(self, module: fx.GraphModule, fake_mode: Any = None) -> None:
        """`fake_mode` is asked only where no value in the graph is a fake tensor.

        The mode is the graph's own: Dynamo puts another one into the tracing context before it calls a backend, and
        fake tensors of two modes do not mix.
        """
        self.module = module
        self.graph = module.graph
        self.sites: list[Site] = []
        self._fake_mode = _mode_of(module.graph) or fake_mode or contextlib.nullcontext()
        self._site_of_call: dict[fx.Node, Site] = {}
        self._dead: set[fx.Node] = set()
        self._claims: Counter[fx.Node] = Counter()
        """How many sites that stand in the graph, by themselves or joined, stand for a node or made it."""
        self._site: Site | None = None

    # Reading

    def live_nodes(self) -> list[fx.Node]:
        """The nodes in order, without those that a replaced site left behind."""
        return [node for node in self.graph.nodes if node not in self._dead]

    def is_live(self, node: fx.Node) -> bool:
        return node not in self._dead

    def users(self, node: fx.Node) -> list[fx.Node]:
        """The live users of a node, in order of the graph."""
        return sorted(user for user in node.users if user not in self._dead)

    def site_of(self, call: fx.Node) -> Site | None:
        """The site whose operation `call` is."""
        return self._site_of_call.get(call)

    def replaced(self, *patterns: str) -> list[Site]:
        """Sites that stand in the graph at the moment, of these patterns or of all."""
        return [s for s in self.sites if s.status is Status.REPLACED and (not patterns or s.pattern in patterns)]

    def check_no_write(self, inputs: Iterable[Any], first: fx.Node, before: fx.Node) -> None:
        """Reject if a node from `first` up to `before` writes an input, which `before` would then read too late."""
        owners: set[fx.Node] | None = None
        node = first
        while node is not before and node.op != "output" and node < before:
            for written in mutated_args(node):
                if owners is None:
                    owners = {storage_owner(each) for each in inputs if isinstance(each, fx.Node)}
                owner = storage_owner(written)
                is_input = owner in owners or any(may_alias(owner, each) for each in owners)
                need(not is_input, f"an input is written in place by {node.name} before its use")
            node = node.next

    # Changing

    def run(self, pattern: Pattern) -> None:
        """Try every anchor of a pattern; what one site does wrong costs only that site."""
        for group in list(pattern.anchors(self)):
            if not all(self.is_live(node) for node in group):
                continue
            anchor = group[0]
            site = Site(pattern.name, anchor.name, layer_of(anchor), Status.REPLACED)
            self._site = site
            try:
                detail = pattern.match(self, group)
            except Reject as reject:
                self._take_back(site)
                site.status, site.detail = Status.REJECTED, str(reject)
            except Exception as error:
                self._take_back(site)
                site.status, site.detail = Status.ERROR, f"{type(error).__name__}: {error}"
                _LOG.debug("pattern %s failed at %s", pattern.name, anchor.name, exc_info=True)
            else:
                if detail is None:
                    self._take_back(site)
                    continue
                site.detail = detail
                self._commit(site)
            finally:
                self._site = None
            self.sites.append(site)

    def emit(
        self, before: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], *, like: fx.Node,
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Node:  # fmt: skip
        """A call of a function in front of `before`, with its fake value; `like` is the node it stands for."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs or {})
        return self._finish(node, like, target)

    def emit_method(self, before: fx.Node, name: str, args: tuple[Any, ...], *, like: fx.Node) -> fx.Node:
        """A call of the tensor method `name` on args[0]."""
        with self.graph.inserting_before(before):
            node = self.graph.call_method(name, args)
        return self._finish(node, like, lambda self_arg, *rest: getattr(self_arg, name)(*rest))

    def _finish(self, node: fx.Node, like: fx.Node, function: Callable[..., Any]) -> fx.Node:
        assert self._site is not None, "nodes are emitted inside a match"
        self._site.emitted.append(node)
        if self._site.call is None and isinstance(node.target, torch._ops.OpOverload):
            self._site.call = node
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        with self._fake_mode, torch.no_grad():
            node.meta["example_value"] = function(*args, **kwargs)
        node.meta |= {key: like.meta[key] for key in _INHERITED_META if key in like.meta}
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Give all users of `old` the value `new`. Reject unless shape (statically), dtype and device are equal, and
        the views that are taken of `old` can be taken of `new`."""
        assert self._site is not None, "values are replaced inside a match"
        a, b = value(old), value(new)
        need(isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor), "an output is not a tensor")
        need(same_shape(shape(old), shape(new)), f"output shape {tuple(b.shape)} is not {tuple(a.shape)}")
        need(a.dtype == b.dtype, f"output dtype {b.dtype} is not {a.dtype}")
        need(a.device == b.device, f"output device {b.device} is not {a.device}")
        self._check_views(old, b)
        self._site.swaps.append((old, new))
        self._site.nodes.append(old)
        made = set(self._site.emitted)
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in made)

    def retire(self, nodes: Iterable[fx.Node]) -> None:
        """Name the nodes that the site stands for. Those that nothing else uses are dead once the match succeeds."""
        assert self._site is not None, "nodes are retired inside a match"
        self._site.nodes += [node for node in nodes if node.op not in ("placeholder", "get_attr", "output")]

    def retire_write(self, node: fx.Node, written: fx.Node) -> None:
        """Name a node that writes the graph input `written` in place, a write that the site's operation does itself.

        The node dies with the match, though a write into an input otherwise never does, and `undo` brings it back.
        Reject unless it writes that input and nothing else, its value has no live user, and our operation, emitted
        before, stands behind it and writes the same input. What reads the input between the two is the matcher's to
        check (`check_no_access`).
        """
        assert self._site is not None, "writes are retired inside a match"
        call = self._site.call
        need(mutated_args(node) == (written,) and written.op == "placeholder", f"{node.name} is no write of an input")
        need(not self.users(node), f"the result of {node.name} is used")
        need(
            call is not None and node < call and written in mutated_args(call), f"nothing writes {written.name} instead"
        )
        self._site.writes.append(node)
        self._site.nodes.append(node)

    def check_no_access(self, memory: fx.Node, first: fx.Node, before: fx.Node, besides: Iterable[fx.Node]) -> None:
        """Reject if a live node from `first` up to `before`, other than `besides`, reads or writes the storage of the
        graph input `memory`, or what may share it."""
        allowed, node = set(besides), first
        while node is not before and node.op != "output":
            if node not in allowed and self.is_live(node):
                owners = [storage_owner(each) for each in node.all_input_nodes]
                is_touched = any(owner is memory or may_alias(owner, memory) for owner in owners)
                need(not is_touched, f"{node.name} uses {memory.name} in between")
            node = node.next

    def absorb(self, *sites: Site) -> None:
        """Name smaller sites that this one takes in; their operations die with the match."""
        assert self._site is not None, "sites are absorbed inside a match"
        for part in sites:
            self._site.parts.append(part)
            self.retire(part.emitted)

    def undo(self, site: Site, reason: str) -> bool:
        """Take a replaced site out again and bring back what it stood for, its parts included.

        False, and nothing changes, where the site does not stand in the graph by itself, or where a user of the new
        value comes before the old one.
        """
        if site.status is not Status.REPLACED:
            return False
        made = set(site.emitted)
        if any(user < old for old, new in site.swaps for user in self.users(new) if user not in made):
            site.reason = f"{reason}; kept, because a later site reads it early"
            return False
        self._claims.subtract({*site.nodes, *site.emitted})
        self._take_back(site)
        site.status, site.reason = Status.LEFT, reason
        for part in site.parts:
            part.status = Status.REPLACED
        if site.call is not None:
            self._site_of_call.pop(site.call, None)
        # What another site stands for as well goes on being dead.
        self._bury([node for node in site.nodes if self._claims[node] > 0])
        return True

    def sweep(self) -> int:
        """Erase what replaced sites left behind; returns the number of nodes.

        `Graph.eliminate_dead_code` must not be used here: no method call is impure to it, so it deletes the writes into
        the KV cache. Here the roots are the output, every node that no site named, and writes into graph inputs but for
        those that an operation of ours took over; a live node keeps alive those who write its storage.
        """
        candidates, taken = self._candidates(), self._taken_writes()
        writers: dict[fx.Node, list[fx.Node]] = {}
        work: list[fx.Node] = []
        for node in self.graph.nodes:
            if node in taken:
                continue
            owners = [storage_owner(written) for written in mutated_args(node)]
            for owner in owners:
                writers.setdefault(owner, []).append(node)
            if node not in candidates or any(owner.op in ("placeholder", "get_attr") for owner in owners):
                work.append(node)
        live: set[fx.Node] = set()
        while work:
            node = work.pop()
            if node not in live:
                live.add(node)
                work += node.all_input_nodes
                work += writers.get(storage_owner(node), ())
        dead = [node for node in self.graph.nodes if node not in live and node in candidates]
        for node in reversed(dead):
            self.graph.erase_node(node)
        self._dead.clear()
        return len(dead)

    # Inside

    def _check_views(self, old: fx.Node, new: torch.Tensor) -> None:
        """Take every view of `old` of the new value, as long as strides differ: `view` of a slice can fail."""
        assert self._site is not None
        work: list[tuple[fx.Node, Any]] = [(old, new)]
        while work:
            node, fresh = work.pop()
            if isinstance(fresh, torch.Tensor) and same_shape(value(node).stride(), fresh.stride()):
                continue
            for user in self.users(node):
                if is_view(user) and user not in self._site.emitted:
                    is_raw = getattr(user.target, "__name__", user.target) == "as_strided"
                    need(not is_raw, f"{user.name} reads raw strides")
                    work.append((user, self._view_of(user, node, fresh)))

    def _view_of(self, user: fx.Node, node: fx.Node, fresh: Any) -> Any:
        """The fake value of `user` if `node` had the value `fresh`."""
        args, kwargs = fx.map_arg((user.args, user.kwargs), lambda each: fresh if each is node else value(each))
        function = getattr(type(args[0]), user.target) if isinstance(user.target, str) else user.target
        try:
            with self._fake_mode, torch.no_grad():
                return function(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            raise Reject(f"{user.name} cannot view the new layout: {str(error).partition(chr(10))[0]}") from error

    def _candidates(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for site in self.sites:
            if site.status in (Status.REPLACED, Status.JOINED):
                found |= {*site.nodes, *site.emitted}
        return found

    def _taken_writes(self) -> set[fx.Node]:
        """Writes that operations in the graph do themselves."""
        return {node for site in self.sites if site.status in (Status.REPLACED, Status.JOINED) for node in site.writes}

    def _commit(self, site: Site) -> None:
        for part in site.parts:
            part.status = Status.JOINED
        if site.call is not None:
            self._site_of_call[site.call] = site
        self._claims.update({*site.nodes, *site.emitted})
        self._dead.update(site.writes)
        self._bury(site.nodes)

    def _bury(self, nodes: Iterable[fx.Node]) -> None:
        """Those of the nodes that nothing else needs are dead from now on.

        A write dies with the node that made the storage: whoever reads it is a user of that node, near or far.
        """
        dying = {node for node in nodes if node not in self._dead}
        is_settled = False
        while not is_settled:
            needed = [
                node
                for node in sorted(dying, reverse=True)
                if any(user not in dying and user not in self._dead for user in node.users)
                or any(storage_owner(written) not in dying for written in mutated_args(node))
            ]
            dying.difference_update(needed)
            is_settled = not needed
        self._dead |= dying

    def _take_back(self, site: Site) -> None:
        for old, new in reversed(site.swaps):
            new.replace_all_uses_with(old)
        self._dead -= set(site.nodes)
        for node in reversed(site.emitted):
            if not node.users:
                self.graph.erase_node(node)
                self._dead.discard(node)
        site.swaps.clear()
        site.emitted.clear()
        site.writes.clear()
