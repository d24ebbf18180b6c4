"""The backend as a whole: right values, the four levels of fallback under injected faults, and torch.compile's ways."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from paiton.compiler import backend as backend_module
from paiton.compiler import passes
from paiton.compiler.backend import paiton
from paiton.compiler.registration import register
from paiton.compiler.report import CompileReport, history
from paiton.compiler.rewriter import Pattern, Rewriter, single
from paiton.compiler.site import Status

from .tiny_models import MAIN_FAMILIES, make_tiny, static_cache, tokens

EAGER = {"paiton.lower": "eager", "paiton.sites": "all"}
CLOSE = {"rtol": 1e-4, "atol": 4e-6}


def compiled(model: nn.Module, *, dynamic: bool | None = None, fullgraph: bool = False, **options: Any) -> Any:
    return torch.compile(model, backend=paiton, options=EAGER | options, dynamic=dynamic, fullgraph=fullgraph)


def last() -> CompileReport:
    return history.reports()[-1]


class Block(nn.Module):
    """Two norms with a linear layer between them: enough for a site, small enough to compile."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(1 + 0.2 * torch.randn(32, generator=generator))
        self.second = nn.Parameter(1 + 0.2 * torch.randn(32, generator=generator))
        self.weight = nn.Parameter(0.2 * torch.randn(32, 32, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.linear(nn.functional.rms_norm(x, (32,), self.first, 1e-6), self.weight)
        return nn.functional.rms_norm(x.tanh(), (32,), self.second, 1e-6)


def rows(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


# Right values


@pytest.mark.parametrize("kind", MAIN_FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_rewritten_and_computes_the_same(kind: str, dtype: torch.dtype) -> None:
    model = make_tiny(kind, dtype, layers=1)
    with torch.no_grad():
        wanted = model(tokens()).logits
        found = compiled(model, **{"paiton.strict": True})(tokens()).logits
    # The operators' bodies round as the model does.
    torch.testing.assert_close(found, wanted, **(CLOSE if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}))
    assert last().counts()["attention"] == 1
    assert last().counts(Status.ERROR) == {}
    assert last().nodes_after < last().nodes_before


@pytest.mark.parametrize("lower", ["aot_eager", "inductor"])
def test_each_lowering_computes_the_same(lower: str) -> None:
    model = Block()
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, **{"paiton.lower": lower})(rows()), model(rows()), **CLOSE)
    assert last().lower == lower and last().has_operators


def test_writes_into_a_static_cache_survive() -> None:
    model = make_tiny("qwen3", layers=1)
    caches = [static_cache(model), static_cache(model)]
    function = compiled(model)
    with torch.no_grad():
        for step in range(3):
            ids = tokens(2, 5 if step == 0 else 1, seed=step)
            wanted = model(ids, past_key_values=caches[0]).logits
            torch.testing.assert_close(function(ids, past_key_values=caches[1]).logits, wanted, **CLOSE)
    torch.testing.assert_close(caches[1].layers[0].keys, caches[0].layers[0].keys, **CLOSE)
    assert caches[1].layers[0].keys[:, :, :7].abs().sum() > 0


def test_weights_may_change_after_compilation() -> None:
    model = Block()
    function = compiled(model)
    with torch.no_grad():
        function(rows())
        model.first.mul_(2.0)
        model.load_state_dict({name: held + 0.5 for name, held in model.state_dict().items()})
        torch.testing.assert_close(function(rows()), model(rows()), **CLOSE)
    assert len(history.reports()) == 1


# Level 1: a matcher


def _inject_a_faulty_matcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def match(rewriter: Rewriter, group: tuple[fx.Node, ...]) -> str:
        raise KeyError("matcher bug")

    faulty = Pattern("faulty", single(lambda node: node.op == "call_function"), match)
    monkeypatch.setattr(passes, "PATTERNS", (faulty, *passes.PATTERNS))


def test_a_matcher_that_fails_costs_its_site_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _inject_a_faulty_matcher(monkeypatch)
    model = Block()
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="paiton"):
        torch.testing.assert_close(compiled(model)(rows()), model(rows()), **CLOSE)
    assert last().counts(Status.ERROR)["faulty"] > 0
    assert last().counts()["rms_norm"] == 2
    assert "KeyError: 'matcher bug'" in caplog.text


# Level 2: the rewriter


def test_a_rewriter_that_fails_leaves_the_graph_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def sweep(rewriter: Rewriter) -> int:
        rewriter.graph.erase_node(next(iter(rewriter.graph.find_nodes(op="output"))))
        raise AssertionError("sweep bug")

    monkeypatch.setattr(Rewriter, "sweep", sweep)
    model = Block()
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="paiton"):
        torch.testing.assert_close(compiled(model)(rows()), model(rows()), rtol=0, atol=0)
    assert last().fallback == "rewriting failed: AssertionError: sweep bug"
    assert last().counts() == {}
    assert len([record for record in caplog.records if "unmodified" in record.message]) == 1


# Level 3: the lowering


def _failing_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str | None]:
    keys: list[str | None] = []
    original = backend_module.lower

    def lower(module: Any, inputs: Any, how: str, patches: Any, key: str | None) -> Any:
        keys.append(key)
        if key is not None:
            raise error
        return original(module, inputs, how, patches, key)

    monkeypatch.setattr(backend_module, "lower", lower)
    return keys


def test_a_lowering_that_fails_is_done_again_without_our_operators(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys = _failing_once(monkeypatch, RuntimeError("lowering bug\nand more"))
    model = Block()
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="paiton"):
        torch.testing.assert_close(compiled(model)(rows()), model(rows()), rtol=0, atol=0)
    assert keys[0] is not None and keys[1] is None
    assert last().fallback == "lowering failed: RuntimeError: lowering bug"
    assert last().counts() == {} and last().counts(Status.LEFT)["rms_norm"] == 2
    assert last().nodes_after == last().nodes_before


def test_running_out_of_memory_is_not_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing_once(monkeypatch, torch.OutOfMemoryError("no room"))
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="no room"):
        compiled(Block())(rows())


@pytest.mark.parametrize("level", [1, 2, 3])
def test_strict_raises_at_every_level(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    if level == 1:
        _inject_a_faulty_matcher(monkeypatch)
    elif level == 2:
        monkeypatch.setattr(Rewriter, "sweep", lambda rewriter: 1 / 0)
    else:
        _failing_once(monkeypatch, RuntimeError("lowering bug"))
    message = {1: "MatcherFault: pattern faulty", 2: "ZeroDivisionError", 3: "lowering bug"}[level]
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message):
        compiled(Block(), **{"paiton.strict": True})(rows())


# What torch.compile can be asked


def test_a_disabled_pattern_is_not_looked_for() -> None:
    with torch.no_grad():
        compiled(Block(), **{"paiton.disable_patterns": ["rms_norm"]})(rows())
    assert last().counts()["rms_norm"] == 0
    torch._dynamo.reset()
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="did you mean rms_norm"):
        compiled(Block(), **{"paiton.disable_patterns": ["rmsnorm"]})(rows())


def test_fullgraph_is_one_graph() -> None:
    model = make_tiny("qwen3_moe", layers=1)
    with torch.no_grad():
        compiled(model, fullgraph=True)(tokens())
    assert len(history.reports()) == 1


def test_one_dynamic_graph_serves_every_batch() -> None:
    model = make_tiny("qwen3", layers=1)
    function = compiled(model, dynamic=True)
    with torch.no_grad():
        for batch in (2, 3, 5, 8):
            ids = tokens(batch, 6)
            torch.testing.assert_close(function(ids).logits, model(ids).logits, **CLOSE)
    assert len(history.reports()) == 1
    assert last().counts()["attention"] == 1


def test_graph_breaks_give_several_graphs_each_rewritten() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(), Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(x)

    model = Broken()
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(rows()), model(rows()), **CLOSE)
    assert [report.counts()["rms_norm"] for report in history.reports()] == [2, 2]


def test_two_models_in_three_threads() -> None:
    models = [Block(), make_tiny("qwen2", layers=1).requires_grad_(False), Block()]
    inputs: list[torch.Tensor] = [rows(), tokens(), rows(4)]
    wanted = [_output(model(x)) for model, x in zip(models, inputs, strict=True)]
    functions = [compiled(model) for model in models]
    found: dict[int, torch.Tensor] = {}

    def run(index: int) -> None:
        with torch.no_grad():
            found[index] = _output(functions[index](inputs[index]))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        torch.testing.assert_close(found[index], wanted[index].detach(), **CLOSE)


def _output(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result.logits


def test_the_name_is_registered_once() -> None:
    register()
    assert register() is False
    assert "paiton" in torch._dynamo.list_backends(exclude_tags=())
    torch._dynamo.lookup_backend("paiton")  # an entry point is a name only until it is asked for
    with pytest.raises(AssertionError, match="duplicate name: paiton"):
        torch._dynamo.register_backend(paiton, name="paiton")
    with torch.no_grad():
        torch.compile(Block(), backend="paiton", options=EAGER)(rows())
    assert last().has_operators


@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
def test_a_mode_reaches_inductor(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        backend_module, "lower", lambda module, inputs, how, patches, key: seen.append(patches) or module
    )
    with torch.no_grad():
        torch.compile(Block(), backend=paiton, mode=mode)(rows())
    assert seen == [torch._inductor.list_mode_options(mode) if mode != "default" else {}]


def test_a_wrong_mode_is_torchs_error() -> None:
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="Unrecognized mode=nonsense"):
        torch.compile(Block(), backend=paiton, mode="nonsense")(rows())


def test_graphs_are_dumped(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "on the way"
    with torch.no_grad():
        compiled(Block(), **{"paiton.dump": str(folder)})(rows())
    kinds = {path.name.partition(".")[2]: path for path in folder.iterdir()}
    assert set(kinds) == {"before.py", "after.py", "report.json"}
    assert "torch.ops.paiton.rms_norm" in kinds["after.py"].read_text()
    assert json.loads(kinds["report.json"].read_text())["sites"][0]["status"] == "replaced"


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="paiton"):
        compiled(Block(), **{"paiton.dump": tmp_path / "file"})(rows())
    assert last().has_operators and "paiton.dump" in caplog.text


def test_a_graph_without_sites_is_plain_inductors(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []
    original: Callable[..., Any] = backend_module.lower
    monkeypatch.setattr(backend_module, "lower", lambda *args: keys.append(args[-1]) or original(*args))
    with torch.no_grad():
        compiled(nn.Tanh())(rows())
    assert keys == [None]
    assert last().nodes_after == last().nodes_before
