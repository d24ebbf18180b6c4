"""Lowering: our identity in the compile caches' keys, the user's passes kept, static inputs as plain Inductor's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx
from torch._inductor import compile_fx as inductor
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass

from paiton.compiler import lowering
from paiton.compiler.backend import compile_graph
from paiton.compiler.lowering import HOOKS, CacheKeyPass, cache_key, lower, source_digest
from paiton.compiler.options import Options

from .tiny_models import make_tiny, tokens


class UserPass(CustomGraphPass):
    """Somebody's own pass."""

    def __call__(self, graph: fx.Graph) -> None:
        return None

    def uuid(self) -> str:
        return "mine"


def test_the_key_names_what_can_change_a_compiled_graph() -> None:
    key = cache_key(["linear", "attention"])
    assert key.endswith(" without attention,linear")
    assert source_digest() in key and "schema 1" in key
    assert cache_key() != key


def test_the_digest_is_of_the_sources(tmp_path: Any) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    first = source_digest(tmp_path)
    (tmp_path / "b.py").write_text("y = 1")
    source_digest.cache_clear()
    assert source_digest(tmp_path) != first


def test_our_pass_takes_a_place_that_the_user_left_free() -> None:
    assert list(lowering._key_patches({}, "k")) == [HOOKS[0]]
    assert list(lowering._key_patches({HOOKS[0]: UserPass()}, "k")) == [HOOKS[1]]
    with config.patch({HOOKS[0]: UserPass(), HOOKS[1]: UserPass()}):
        found = lowering._key_patches({}, "k")
    assert list(found) == [HOOKS[2]]
    assert found[HOOKS[2]].uuid() == "k"


def test_without_a_free_place_nothing_is_cached() -> None:
    taken = {hook: UserPass() for hook in HOOKS}
    assert lowering._key_patches(taken, "k") == {"force_disable_caches": True}


def test_the_pass_changes_nothing() -> None:
    graph = fx.symbolic_trace(lambda a: a + 1).graph
    before = str(graph)
    CacheKeyPass("k")(graph)
    assert str(graph) == before


@pytest.mark.parametrize("key", [None, "k"])
def test_patches_and_key_arrive_in_inductor(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    seen: list[dict[str, Any]] = []

    def compile_fx(module: fx.GraphModule, inputs: Sequence[Any], config_patches: dict[str, Any]) -> Any:
        seen.append(config_patches)
        return module.forward

    monkeypatch.setattr(inductor, "compile_fx", compile_fx)
    lower(fx.symbolic_trace(lambda a: a + 1), [torch.ones(1)], "inductor", {"max_autotune": True}, key)
    assert seen[0]["max_autotune"] is True
    assert [name for name in seen[0] if name in HOOKS] == ([] if key is None else [HOOKS[0]])


def _static_inputs(backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How many inputs Inductor takes for static, and of how many; compiled without generating code."""
    found: list[tuple[int, int]] = []

    def inner(module: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        found.append((len(kwargs.get("static_input_idxs") or ()), len(inputs)))
        raise _Enough

    original = inductor.compile_fx
    # With patches compile_fx calls itself, and brings its inner_compile along.
    monkeypatch.setattr(
        inductor,
        "compile_fx",
        lambda module, inputs, **kwargs: original(module, inputs, **{"inner_compile": inner, **kwargs}),
    )
    torch._dynamo.reset()
    with (
        torch.no_grad(),
        config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
        pytest.raises(Exception, match="enough was seen"),
    ):
        torch.compile(make_tiny("qwen3", layers=1), backend=backend)(tokens(), use_cache=False)
    monkeypatch.undo()
    return found[0]


class _Enough(Exception):
    def __init__(self) -> None:
        super().__init__("enough was seen")


def test_as_many_inputs_are_static_as_under_plain_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that do not count as static would be copied every step under CUDA graphs, without an error."""

    def plain(module: fx.GraphModule, inputs: list[Any]) -> Any:
        return inductor.compile_fx(module, inputs)

    def ours(module: fx.GraphModule, inputs: list[Any]) -> Any:
        return compile_graph(module, inputs, Options(strict=True, sites="all"))[0]

    wanted = _static_inputs(plain, monkeypatch)
    assert wanted[0] >= 10
    assert _static_inputs(ours, monkeypatch)[0] == wanted[0]
