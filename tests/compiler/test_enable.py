"""paiton.compile: which calls really run the backend, each row of the table in docs/backend.md, with transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CompileConfig

import paiton
from paiton.compiler.enable import is_compiled
from paiton.compiler.registration import register
from paiton.compiler.report import history

from .tiny_models import make_tiny, tokens

EAGER = {"paiton.lower": "eager", "paiton.sites": "all"}
STEPS = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture
def model() -> Any:
    register()
    return make_tiny("qwen3", layers=1)


def _graphs(call: Any) -> tuple[int, Any]:
    before = history.total
    with torch.no_grad():
        result = call()
    return history.total - before, result


def _as_on_a_gpu(**settings: Any) -> CompileConfig:
    """A CompileConfig with which transformers compiles on a CPU too."""
    config = CompileConfig(**settings)
    config._compile_all_devices = True
    return config


# The table: which way runs the backend, and for how many graphs


def test_calling_the_result_of_torch_compile_runs_it(model: Any) -> None:
    compiled = torch.compile(model, backend="paiton", options=EAGER)
    assert _graphs(lambda: compiled(tokens()))[0] == 1


def test_generate_of_the_result_of_torch_compile_never_does(model: Any) -> None:
    compiled = torch.compile(model, backend="paiton", options=EAGER)
    assert _graphs(lambda: compiled.generate(tokens(), **STEPS))[0] == 0


def test_generate_of_a_model_compiled_in_place_does(model: Any) -> None:
    model.compile(backend="paiton", options=EAGER)
    graphs, _ = _graphs(lambda: model.generate(tokens(), **STEPS))
    assert graphs == 3  # prefill, the first step, and steps with a cache of any length


def test_in_place_with_a_static_cache_and_transformers_own_compilation_the_inner_one_wins(model: Any) -> None:
    others: list[int] = []

    def other(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        others.append(1)
        return module.forward

    model.compile(backend="paiton", options=EAGER)
    config = _as_on_a_gpu(backend=other, mode=None)
    graphs, _ = _graphs(lambda: model.generate(tokens(), cache_implementation="static", compile_config=config, **STEPS))
    assert (graphs, len(others)) == (2, 0)


def test_a_compile_config_compiles_decode_only(model: Any) -> None:
    config = _as_on_a_gpu(backend="paiton", mode=None, options=EAGER)
    graphs, found = _graphs(
        lambda: model.generate(tokens(), cache_implementation="static", compile_config=config, **STEPS)
    )
    assert graphs == 1
    assert torch.equal(found, _eager_tokens())


def test_a_compile_config_in_the_generation_config_is_the_same(model: Any) -> None:
    model.generation_config.compile_config = _as_on_a_gpu(backend="paiton", mode=None, options=EAGER)
    model.generation_config.cache_implementation = "static"
    assert _graphs(lambda: model.generate(tokens(), **STEPS))[0] == 1


# paiton.compile


def _eager_tokens(batch: int = 2, length: int = 16) -> torch.Tensor:
    plain = make_tiny("qwen3", layers=1)
    with torch.no_grad():
        found: torch.Tensor = plain.generate(tokens(batch, length), cache_implementation="static", **STEPS)
    return found


def test_compile_makes_generate_run_it_for_prefill_and_decode(model: Any) -> None:
    assert paiton.compile(model, options=EAGER) is model
    graphs, found = _graphs(lambda: model.generate(tokens(), **STEPS))
    assert graphs == 2
    prefill, decode = (report.counts() for report in history.reports())
    assert prefill["attention"] == 1
    assert decode["attention"] + decode["attention_cache"] == 1
    assert torch.equal(found, _eager_tokens())
    assert _graphs(lambda: model.generate(tokens(seed=5), **STEPS))[0] == 0


def test_other_batches_and_lengths_compile_no_more_graphs_than_torch_would(model: Any) -> None:
    plain, captured = make_tiny("qwen3", layers=1), []

    def counting(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        captured.append(1)
        return module.forward

    plain.compile(backend=counting)
    paiton.compile(model, options=EAGER)
    for batch, length in ((2, 16), (3, 11)):
        before = len(captured)
        with torch.no_grad():
            wanted = plain.generate(tokens(batch, length), cache_implementation="static", **STEPS)
        ids = tokens(batch, length)
        graphs, found = _graphs(lambda given=ids: model.generate(given, **STEPS))
        assert graphs == len(captured) - before
        assert torch.equal(found, wanted)


def test_compile_holds_back_transformers_own_compilation(model: Any) -> None:
    paiton.compile(model, options=EAGER)
    assert model.generation_config.disable_compile is True
    assert model.generation_config.cache_implementation == "static"


def test_compile_twice_is_compile_once(model: Any) -> None:
    paiton.compile(model, options=EAGER)
    call = model._compiled_call_impl
    paiton.compile(model, options=dict(EAGER))
    assert model._compiled_call_impl is call
    paiton.compile(model, options=EAGER, dynamic=True)
    assert model._compiled_call_impl is not call


def test_uncompile_takes_it_back(model: Any) -> None:
    held = (model.generation_config.cache_implementation, model.generation_config.disable_compile)
    assert paiton.uncompile(model) is False
    paiton.compile(model, options=EAGER)
    paiton.compile(model, options=EAGER, fullgraph=True)
    assert is_compiled(model)
    assert paiton.uncompile(model) is True
    assert (model.generation_config.cache_implementation, model.generation_config.disable_compile) == held
    assert model._compiled_call_impl is None and not is_compiled(model)
    assert _graphs(lambda: model(tokens()))[0] == 0


def test_experts_that_loop_become_products() -> None:
    model: Any = make_tiny("qwen3_moe", layers=1)
    model.set_experts_implementation("eager")
    want = model.generate(tokens(), cache_implementation="static", disable_compile=True, **STEPS)
    paiton.compile(model, options=EAGER, fullgraph=True)
    assert model.config._experts_implementation == "grouped_mm"
    graphs, tokens_out = _graphs(lambda: model.generate(tokens(), **STEPS))
    assert graphs == 2
    assert all(report.counts()["experts"] == 1 for report in history.reports()[-2:])
    assert torch.equal(tokens_out, want)
    paiton.uncompile(model)
    assert model.config._experts_implementation == "eager"


def test_experts_of_the_users_choice() -> None:
    model: Any = make_tiny("qwen3_moe", layers=1)
    for how, given in (("eager", None), ("batched_mm", "grouped_mm")):
        model.set_experts_implementation(how)
        paiton.compile(model, experts=given)
        assert model.config._experts_implementation == how
        paiton.uncompile(model)
        assert model.config._experts_implementation == how


def test_a_cache_of_the_users_choice(model: Any) -> None:
    paiton.compile(model, options=EAGER, cache=None)
    assert model.generation_config.cache_implementation is None
    assert _graphs(lambda: model.generate(tokens(), **STEPS))[0] == 3


def test_mode_and_options_together(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from paiton.compiler import backend

    seen: list[Any] = []
    original = backend.lower
    monkeypatch.setattr(backend, "lower", lambda *args: seen.append(args[3]) or original(*args))
    paiton.compile(model, mode="max-autotune-no-cudagraphs", options=EAGER)
    _graphs(lambda: model(tokens()))
    assert seen == [torch._inductor.list_mode_options("max-autotune-no-cudagraphs")]


def test_a_module_that_cannot_generate() -> None:
    class Norms(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.RMSNorm(8, eps=1e-6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.norm(x)
            return result

    model = paiton.compile(Norms(), options=EAGER)
    assert _graphs(lambda: model(torch.ones(2, 8)))[0] == 1
    assert history.reports()[-1].counts() == {"rms_norm": 1}


def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, not function"):
        paiton.compile(lambda x: x)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="the model itself, not the result"):
        paiton.compile(torch.compile(model, backend="paiton"))


def test_a_compiled_model_can_be_copied_and_saved(model: Any, tmp_path: Any) -> None:
    import copy

    paiton.compile(model, options=EAGER)
    assert torch.equal(copy.deepcopy(model)(tokens()).logits, model(tokens()).logits)
    model.save_pretrained(tmp_path)
