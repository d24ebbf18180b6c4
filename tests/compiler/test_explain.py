"""paiton.explain: what it says of a model here, of one for a GPU that is not here, and of sites that are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import paiton
from paiton.cache.key import Cell, Environment
from paiton.cache.rows import Label, TunedRow
from paiton.cache.store import ConfigStore
from paiton.compiler import selection
from paiton.compiler.report import SiteRow, history
from paiton.compiler.site import Status
from paiton.compiler.tuning_rows import misses, tuning_rows
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import UnknownArch, UnknownDevice, resolve
from paiton.search_spaces.problem import Problem
from paiton.search_spaces.registry import space_of

from .tiny_models import make_tiny, static_cache, tokens

MI300X = resolve("MI300X")
NORM = space_of("rms_norm").problem(dtype="bf16", batch=2, hidden=128)
LINEAR = space_of("linear").problem(dtype="bf16", batch=2, n=64, k=128, bias=0, residual=0)


def _measured(path: Path, problem: Problem, us: float) -> None:
    spec = spec_of(problem.kernel)
    cell = Cell(
        arch=MI300X.arch.name, device=MI300X.name, kernel=problem.kernel, kernel_digest=spec.digest,
        signature=problem.signature, dtype=problem.dtype, batch=problem.batch,
    )  # fmt: skip
    config = spec.space.default_config(problem, MI300X)
    env = Environment(triton="3.7.1", triton_key="k", toolkit="", paiton=paiton.__version__, gpu="AMD Instinct MI300X")
    row = TunedRow(cell=cell, label=Label.MEASURED, env=env, config_json=config.json(), us_median=us, samples=9)
    with ConfigStore.open(path) as store:
        store.put_tuned(row)
    selection.reload()


def _site(problem: Problem, status: Status = Status.REPLACED) -> SiteRow:
    return SiteRow(problem.kernel, "layer", "node", status, calls=((problem.kernel, ((problem,),)),))


# A whole model


def test_decode_for_a_gpu_that_is_not_here() -> None:
    model = make_tiny("qwen3_moe", torch.bfloat16, layers=1, experts_implementation="batched_mm")
    cache = static_cache(model)
    found = paiton.explain(model, tokens(2, 1), past_key_values=cache, device="MI300X")
    assert found.device == MI300X and len(found.reports) == 1
    assert found.counts()["experts"] + found.counts().get("experts_residual", 0) == 1
    assert found.absent == () and found.graph_breaks == ()
    text = str(found)
    assert text.startswith("paiton: Qwen3MoeForCausalLM on MI300X (gfx942), 1 graph\n")
    assert "moe_gate_up[experts=16,hidden=128,inter=64,top_k=4] bf16: 1 sites" in text
    assert "--device MI300X --model MODEL --kernel moe_gate_up --batch-sizes 2" in text
    assert "generate() runs this backend after paiton.compile(model) only" in text
    assert found.launches is not None and found.launches.ours < found.launches.inductor
    # Nothing of the caller's was touched.
    assert model.device.type == "cpu" and not cache.layers[0].keys.any()
    assert str(resolve("MI300X")) == str(found.device)


def test_as_json() -> None:
    model = make_tiny("qwen2", torch.bfloat16, layers=1)
    plain = json.loads(json.dumps(paiton.explain(model, tokens(), device="H200").to_json()))
    assert plain["device"] == "H200" and plain["model"] == "Qwen2ForCausalLM"
    assert {site["pattern"] for site in plain["graphs"][0]["sites"]} >= {"rms_norm", "attention", "linear_silu_mul"}
    assert all(line.startswith("autotune run --arch sm_90 ") for line in plain["commands"])
    assert plain["launches"]["sites"] == len([s for s in plain["graphs"][0]["sites"] if s["status"] == "replaced"])


def test_on_the_cpu_the_caller_keeps_his_cache_and_history() -> None:
    model = make_tiny("qwen3", layers=1)
    cache = static_cache(model)
    before = history.total
    found = paiton.explain(model, tokens(2, 1), past_key_values=cache)
    assert found.device is None and found.tuning == () and found.launches is None
    assert "on the CPU no kernel of ours runs" in str(found)
    assert not cache.layers[0].keys.any() and history.total == before


def test_the_result_of_torch_compile_is_explained_with_a_warning() -> None:
    model = make_tiny("qwen2", layers=1)
    found = paiton.explain(torch.compile(model), tokens())
    assert any("generate() of this object runs the model inside, uncompiled" in note for note in found.notes)
    assert found.model == "Qwen2ForCausalLM"


def test_a_model_compiled_in_place_is_explained_and_stays_compiled() -> None:
    model = paiton.compile(make_tiny("qwen2", layers=1), options={"paiton.lower": "eager"})
    call = model._compiled_call_impl
    found = paiton.explain(model, tokens())
    assert found.reports[0].counts(Status.LEFT)["rms_norm"] > 0
    assert not any("after paiton.compile" in note for note in found.notes)
    assert model._compiled_call_impl is call


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(TypeError, match="not function"):
        paiton.explain(lambda x: x, torch.ones(1))
    with pytest.raises((UnknownArch, UnknownDevice), match="MI999"):
        paiton.explain(torch.nn.Tanh(), torch.ones(1), device="MI999")
    with pytest.raises(ValueError, match="did you mean paiton"):
        paiton.explain(torch.nn.Tanh(), torch.ones(1), options={"paiton.strickt": True})


# Sites that are missing


def test_eager_attention_is_named() -> None:
    model = make_tiny("qwen2", torch.bfloat16, layers=2, attn_implementation="eager")
    (missing,) = paiton.explain(model, tokens(), device="MI300X").absent
    assert str(missing) == (
        "attention at model.layers.0.self_attn and 1 more (Qwen2Attention): eager attention is products and a softmax"
        " apart: load the model with attn_implementation='sdpa'"
    )


def test_graph_breaks_of_something_else_are_not_told() -> None:
    torch._dynamo.utils.counters["graph_break"]["of another model"] += 1
    found = paiton.explain(make_tiny("qwen2", layers=1), tokens())
    assert found.graph_breaks == ()


def test_eager_experts_are_named_with_the_graph_break() -> None:
    model = make_tiny("qwen3_moe", layers=1, experts_implementation="eager")
    found = paiton.explain(model, tokens())
    (missing,) = found.absent
    assert missing.pattern == "experts" and missing.where == "model.layers.0.mlp.experts"
    assert "breaks the graph at aten.nonzero" in missing.reason
    assert "set_experts_implementation('grouped_mm')" in missing.reason
    assert found.graph_breaks and len(found.reports) > 1


def test_an_mlp_with_another_activation_is_named() -> None:
    model = make_tiny("starcoder2", layers=1)
    reasons = {each.pattern: each.reason for each in paiton.explain(model, tokens()).absent}
    assert reasons == {"linear_silu_mul": "no silu(gate) * up of two linear layers without a bias"}


def test_a_gradient_says_why_and_nothing_is_missed() -> None:
    # explain looks at inference; a model that wants autocast is left alone, and then nothing is expected of it.
    model = make_tiny("qwen2", layers=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = paiton.explain(model, tokens())
    assert found.absent == () and "left alone: autocast is on" in str(found)


# Configurations


def test_neighbouring_batches_with_one_answer_are_one_line(database: Path) -> None:
    (row,) = tuning_rows([_site(NORM), _site(NORM, Status.LEFT)], MI300X)
    assert row.title == "rms_norm[hidden=128] bf16: 1 sites, 1 left to Inductor"
    assert [str(served) for served in row.served] == ["batch 1..256: default (not tuned)"]


def test_a_stored_row_answers_with_its_tier_and_time(database: Path) -> None:
    _measured(database, NORM.with_batch(8), 6.5)
    (row,) = tuning_rows([_site(NORM)], MI300X, batches=(4, 8, 64))
    texts = [str(served) for served in row.served]
    assert texts[0].startswith("batch 2: default (not tuned)")
    assert any(text.startswith("batch 8: ") and text.endswith("(exact, measured, 6.5 µs)") for text in texts)
    assert texts[-1].startswith("batch 64: default")


def test_misses_are_one_command_for_each_kernel(database: Path) -> None:
    _measured(database, LINEAR, 5.0)
    sites = [_site(NORM), _site(NORM.with_batch(16)), _site(LINEAR), _site(NORM.with_batch(32), Status.JOINED)]
    (miss,) = misses(sites, MI300X)
    assert miss.command("Qwen/Qwen3-8B") == (
        "autotune run --arch gfx942 --device MI300X --model Qwen/Qwen3-8B --kernel rms_norm --batch-sizes 2,16"
    )


def test_no_database_is_a_note(database: Path) -> None:
    found: Any = paiton.explain(make_tiny("qwen2", layers=1), tokens(2, 4))
    assert any("no database" in note for note in found.notes)
