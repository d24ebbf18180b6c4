"""The join of norm, RoPE, cache write and decode attention: decode steps of tiny models, and what must not match."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from paiton.compiler.passes import PATTERNS
from paiton.compiler.patterns.attention import PATTERN as ATTENTION_PATTERN
from paiton.compiler.patterns.attention_cache import PATTERN
from paiton.compiler.patterns.rope import PATTERN as ROPE_PATTERN
from paiton.compiler.rewriter import Rewriter
from paiton.compiler.site import Status

from ..rewriting import Rewritten, backend, rewrite_and_compare, writes
from ..tiny_models import make_tiny, static_cache, tokens

LENGTH, PROMPT, STEPS = 16, 5, 3


def decode(model: Any, run: Callable[..., Any], steps: int = STEPS) -> tuple[list[torch.Tensor], Any]:
    """Logits of a prompt (eager) and of `steps` decode steps by `run`, and the cache; the second row is padded."""
    ids, cache = tokens(2, PROMPT + steps), static_cache(model, 2, LENGTH)
    keys = torch.arange(LENGTH)
    is_token = torch.stack((keys >= 0, keys >= 2))
    with torch.no_grad():
        found = [model(ids[:, :PROMPT], past_key_values=cache).logits]
        for position in range(PROMPT, PROMPT + steps):
            mask = (is_token & (keys <= position))[:, None, None]
            at = torch.full((2, 1), position)
            step = ids[:, position : position + 1]
            found.append(run(step, past_key_values=cache, attention_mask=mask, position_ids=at).logits)
    return found, cache


def check_decode(model: Any, done: Rewritten, before_sweep: Callable[[Rewriter], object] = lambda r: None) -> None:
    expected, its_cache = decode(model, model)
    compiled = torch.compile(model, backend=backend([*PATTERNS, PATTERN], done, before_sweep), fullgraph=True)
    found, cache = decode(model, compiled)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, its in zip(cache.layers, its_cache.layers, strict=True):
        torch.testing.assert_close(ours.keys, its.keys)
        torch.testing.assert_close(ours.values, its.values)
        assert int(ours.cumulative_length) == int(its.cumulative_length)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "qwen3_moe"])
def test_decode_step_of_a_model(kind: str) -> None:
    done = Rewritten()
    check_decode(make_tiny(kind), done)
    assert len(done.modules) == 1
    assert done.counts["attention_cache"] == 2
    assert done.operators["attention_decode_fused"] == 2
    assert not {"attention", "qk_norm_rope"} & set(done.operators)
    written = writes(done.modules[0].graph)
    assert "index_copy_" not in written, "each write is done once"
    assert written.count("add_") == 2, "the cache counts its tokens as before"


def test_undone_joins_give_their_parts_and_the_writes_back() -> None:
    done = Rewritten()

    def undo(rewriter: Rewriter) -> None:
        for site in rewriter.replaced("attention_cache"):
            assert rewriter.undo(site, "slower")

    check_decode(make_tiny("qwen3", layers=1), done, undo)
    assert done.counts["attention_cache"] == 0
    assert done.operators["attention"] == done.operators["qk_norm_rope"] == 1
    assert writes(done.modules[0].graph).count("index_copy_") == 2


def test_undone_with_its_parts_nothing_of_ours_is_left() -> None:
    done = Rewritten()

    def undo(rewriter: Rewriter) -> None:
        while rewriter.replaced():
            rewriter.undo(rewriter.replaced()[-1], "slower")

    check_decode(make_tiny("qwen3", layers=1), done, undo)
    assert not done.operators
    assert len(done.modules[0].graph.nodes) == len(done.originals[0].graph.nodes)


HEADS, KV, DIM = 4, 2, 16


def step_inputs(batch: int = 2) -> tuple[torch.Tensor, ...]:
    """q, k, v [B, 1, H, D]; cos, sin [B, 1, D]; k and v cache; position [1]; mask [B, 1, 1, T]."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mask = (torch.arange(LENGTH) <= 6).expand(batch, 1, 1, LENGTH).clone()
    return (
        random(batch, 1, HEADS, DIM), random(batch, 1, KV, DIM), random(batch, 1, KV, DIM),
        random(batch, 1, DIM), random(batch, 1, DIM),
        random(batch, KV, LENGTH, DIM), random(batch, KV, LENGTH, DIM), torch.tensor([6]), mask,
    )  # fmt: skip


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = DIM // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


Step = Callable[..., Any]


def step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
    k_cache: torch.Tensor, v_cache: torch.Tensor, position: torch.Tensor, mask: torch.Tensor,
    *, change: str = "",
) -> Any:  # fmt: skip
    """A decode step with one thing `change`d."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    extra: Any = ()
    other = position
    if change == "another position":
        other = position + 1
    elif change == "read before the write":
        extra = (k_cache.sum(),)
    at = position * 1
    k_cache.index_copy_(2, at, k)
    if change == "read in between":
        extra = (k_cache.sum(),)
    elif change == "written in between":
        v_cache.mul_(0.5)
    v_cache.index_copy_(2, at if other is position else other, v)
    if change == "written again":
        k_cache[:, :, 0] = 1.0
    elif change == "position changed":
        at.add_(1)
    elif change == "mask changed":
        mask.logical_not_()
    elif change == "new k used":
        extra = (k * 2,)
    elif change == "new q used":
        extra = (q * 2,)
    elif change == "write's result used":
        extra = (k_cache.index_copy_(2, at, k) + 1,)
    out = functional.scaled_dot_product_attention(
        q, k_cache, v_cache, attn_mask=None if change == "no mask" else mask, enable_gqa=True
    )
    if change == "read after":
        extra = (k_cache.sum(), v_cache[:, :, 6] * 2)
    return out.transpose(1, 2).contiguous(), *extra


ALL = [ROPE_PATTERN, ATTENTION_PATTERN, PATTERN]


@pytest.mark.parametrize("change", ["", "read after", "read before the write"])
def test_hand_written_step_matches(change: str) -> None:
    def run(*inputs: torch.Tensor) -> Any:
        return step(*inputs, change=change)

    done = rewrite_and_compare(run, *step_inputs(), patterns=ALL)
    assert done.operators == {"attention_decode_fused": 1}, done.reasons
    assert writes(done.modules[0].graph) == ["paiton.attention_decode_fused.default"]


@pytest.mark.parametrize(
    "change",
    [
        "another position", "read in between", "written in between", "written again", "position changed",
        "mask changed", "new k used", "new q used", "write's result used", "no mask",
    ],
)  # fmt: skip
def test_changed_step_does_not_match(change: str) -> None:
    def run(*inputs: torch.Tensor) -> Any:
        return step(*inputs, change=change)

    done = rewrite_and_compare(run, *step_inputs(), patterns=ALL)
    assert done.operators["attention_decode_fused"] == 0
    assert not [site for site in done.sites if site.status is Status.ERROR]


def test_several_new_tokens_do_not_match() -> None:
    inputs = list(step_inputs())
    for index in range(5):
        inputs[index] = torch.cat((inputs[index], inputs[index]), 1)
    inputs[7], inputs[8] = torch.tensor([5, 6]), inputs[8].expand(2, 1, 2, LENGTH).clone()
    done = rewrite_and_compare(step, *inputs, patterns=ALL)
    assert done.operators["attention_decode_fused"] == 0
    assert done.operators["attention"] == 1


def test_one_cache_of_keys_and_values_does_not_match() -> None:
    def run(*inputs: torch.Tensor) -> Any:
        *first, k_cache, _, position, mask = inputs
        return step(*first, k_cache, k_cache, position, mask)

    done = rewrite_and_compare(run, *step_inputs(), patterns=ALL)
    assert done.operators["attention_decode_fused"] == 0


def test_the_mask_decides_about_the_new_token_and_what_stands_behind_it() -> None:
    inputs = list(step_inputs())
    inputs[8] = (torch.arange(LENGTH) % 3 == 1).expand(2, 1, 1, LENGTH).clone()
    done = rewrite_and_compare(step, *inputs, patterns=ALL)
    assert done.operators == {"attention_decode_fused": 1}


def test_inductor_hands_the_caches_on_without_a_copy() -> None:
    """Functionalised and put back in place: the operator gets the tensors of the caller, the same after every step."""
    from torch._inductor.utils import run_and_get_code

    from paiton.compiler.backend import paiton

    inputs = step_inputs()
    k_cache, v_cache = inputs[5].clone(), inputs[6].clone()
    expected = step(*inputs[:5], k_cache, v_cache, *inputs[7:])
    compiled = torch.compile(step, backend=paiton, options={"paiton.sites": "all"})
    with torch.no_grad():
        found, (code,) = run_and_get_code(compiled, *inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inputs[5:7], (k_cache, v_cache))
    (call,) = (line for line in code.splitlines() if "= torch.ops.paiton.attention_decode_fused.default(" in line)
    handed_on = [name.strip() for name in call.partition("default(")[2].rpartition(")")[0].split(",")]
    caches = [f"arg{index}_1" for index in range(len(inputs))]
    in_place = [name for name in handed_on if name in caches]
    assert len(in_place) >= 2, call
    shape = tuple(inputs[5].shape)
    assert f"empty_strided_cpu({shape}" not in code, "a buffer of the size of a cache"
    assert "copy_(" not in code.replace("copy__", "")


def test_as_many_inputs_are_static_as_without_the_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and caches; one that is not would be copied every step under CUDA graphs."""
    from torch._functorch import config as functorch
    from torch._inductor import compile_fx as inductor

    from paiton.compiler.backend import compile_graph
    from paiton.compiler.options import Options

    found: list[int] = []
    compile_fx = inductor.compile_fx

    def count(module: Any, inputs: Any, **keywords: Any) -> Any:
        found.append(len(keywords["static_input_idxs"]))
        raise ValueError("enough was seen")

    def counting(module: Any, inputs: Any, **keywords: Any) -> Any:
        return compile_fx(module, inputs, **{**keywords, "inner_compile": count})

    monkeypatch.setattr(inductor, "compile_fx", counting)
    model = make_tiny("qwen3", layers=1)
    options = Options(strict=True, sites="all")
    for compiler in (counting, lambda module, inputs: compile_graph(module, inputs, options)[0]):
        torch._dynamo.reset()
        with functorch.patch(enable_autograd_cache=False), pytest.raises(Exception, match="enough was seen"):
            decode(model, torch.compile(model, backend=compiler, fullgraph=True), steps=1)
    plain, joined = found
    assert plain == joined >= 15
