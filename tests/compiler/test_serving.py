"""What vLLM and SGLang ask of a backend, against their documented interfaces; neither is installed here.

docs/serving.md says which road gives what. vLLM's compilation modes 1 and 2 take a name that torch lists, or a
qualified name, and hand it to torch.compile; its configuration folder is tested with the exported files (tests/cache).
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from paiton.compiler.backend import paiton
from paiton.compiler.registration import register
from paiton.compiler.report import history

ROOT = Path(__file__).resolve().parents[2]


def _declared_entry_point() -> EntryPoint:
    """The entry point as pyproject.toml declares it; this environment may be a checkout without an installation."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.entry-points.torch_dynamo_backends]")[2].strip()
    name, _, value = section.splitlines()[0].partition("=")
    return EntryPoint(name.strip(), value.strip().strip('"'), "torch_dynamo_backends")


def test_the_entry_point_is_the_backend() -> None:
    declared = _declared_entry_point()
    assert declared.name == "paiton"
    assert declared.load() is paiton


def test_torch_finds_it_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installed package: no import, no registration."""
    from torch._dynamo.backends import registry

    registry.list_backends()  # torch reads the entry points once
    monkeypatch.setitem(registry._BACKENDS, "paiton", _declared_entry_point())
    monkeypatch.setitem(registry._COMPILER_FNS, "paiton", None)
    del registry._COMPILER_FNS["paiton"]
    assert registry.lookup_backend("paiton") is paiton
    assert register() is False  # what is there is not registered twice


def test_it_is_listed_as_vllm_asks_for_it() -> None:
    register()
    assert "paiton" in torch._dynamo.list_backends(exclude_tags=())
    assert "paiton" in torch._dynamo.list_backends()


def test_a_qualified_name_resolves_as_vllm_resolves_it() -> None:
    module, _, name = "paiton.compiler.backend.paiton".rpartition(".")
    assert getattr(import_module(module), name) is paiton


def test_it_takes_a_graph_and_example_inputs_and_nothing_else() -> None:
    parameters = inspect.signature(paiton).parameters.values()
    positional = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert len(positional) == 2
    assert all(each.default is None for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY)


class Layer(torch.nn.Module):
    """A norm and a projection around an opaque operator, as in a vLLM model."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.Parameter(torch.linspace(0.5, 1.5, 32))
        self.weight = torch.nn.Parameter(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)) * 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.rms_norm(x, (32,), self.norm, 1e-6)
        result: torch.Tensor = torch.ops.paiton_test.opaque(torch.nn.functional.linear(h, self.weight), "layers.0")
        return result


@pytest.fixture(scope="module")
def opaque() -> Any:
    library = torch.library.Library("paiton_test", "FRAGMENT")
    library.define("opaque(Tensor x, str layer) -> Tensor")
    library.impl("opaque", lambda x, layer: x.sin(), "CompositeExplicitAutograd")
    torch.library.register_fake("paiton_test::opaque", lambda x, layer: torch.empty_like(x), lib=library)
    return library


@pytest.mark.parametrize("drops_guards", [False, True], ids=["mode 1", "mode 2"])
def test_a_model_with_opaque_operators_compiles_as_vllm_compiles_it(opaque: Any, drops_guards: bool) -> None:
    """fullgraph, dynamic off, and in mode 2 a filter that drops every guard."""
    register()
    options: dict[str, Any] = {"paiton.lower": "eager", "paiton.sites": "all"}
    if drops_guards:
        options["guard_filter_fn"] = lambda entries: [False for _ in entries]
    model = Layer()
    compiled = torch.compile(model, backend="paiton", fullgraph=True, dynamic=False, options=options)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert history.reports()[-1].counts()["rms_norm"] == 1


def test_importing_the_package_imports_no_torch() -> None:
    import subprocess

    code = "import sys, paiton; print(sorted({'torch', 'triton', 'transformers', 'sqlalchemy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {"compile", "explain", "uncompile", "register", "reload", "tune"} <= set(dir(import_module("paiton")))
