"""Attention: SDPA as Hugging Face calls it, repeat_kv in its spellings, and what the kernels cannot compute.

transformers 5.17 and 5.23 share one call. With the prompt's own masks it is a boolean [B, 1, S, T], made in the graph
(no cache, or 5.17's DynamicCache) or given to it (StaticCache within `generate`); on a CPU repeat_kv is always spelled
out, elsewhere only beside a mask: without one it is `enable_gqa`. 5.23 makes no mask for DynamicCache.
`attn_implementation="eager"` is a product, a softmax and a product: there is no anchor.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from paiton.compiler.patterns.attention import PATTERN

from ..rewriting import operators, rewrite, rewrite_and_compare, writes

BATCH, HEADS, KV_HEADS, QUERIES, KEYS, HEAD_DIM = 2, 6, 2, 5, 9, 16
REPEATS = HEADS // KV_HEADS
Function = Callable[..., object]


def _random(*axes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*axes, generator=torch.Generator().manual_seed(sum(axes))).to(dtype)


def _inputs(queries: int = QUERIES, keys: int = KEYS, **kind: torch.dtype) -> tuple[torch.Tensor, ...]:
    """q [B, S, H, D].transpose(1, 2), as a model has it; k and v [B, Hk, T, D]."""
    q = _random(BATCH, queries, HEADS, HEAD_DIM, **kind).transpose(1, 2)
    return q, _random(BATCH, KV_HEADS, keys, HEAD_DIM, **kind), _random(BATCH, KV_HEADS, keys, HEAD_DIM, **kind) * 2


def _mask(queries: int = QUERIES, keys: int = KEYS, batch: int = BATCH) -> torch.Tensor:
    """Causal from the last key on, and the second sequence has two tokens of padding in front."""
    mask = torch.ones(batch, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    mask[-1, :, :, :2] = False
    return mask


def _getitem(x):
    batch, heads, tokens, size = x.shape
    wide = x[:, :, None, :, :].expand(batch, heads, REPEATS, tokens, size)
    return wide.reshape(batch, heads * REPEATS, tokens, size)


def _short_getitem(x):
    return x[:, :, None].expand(-1, -1, REPEATS, -1, -1).flatten(1, 2)


def _unsqueeze(x):
    return x.unsqueeze(2).expand(-1, -1, REPEATS, -1, -1).reshape(BATCH, HEADS, -1, HEAD_DIM)


def _unsqueeze_from_behind(x):
    return torch.unsqueeze(x, -3).repeat(1, 1, REPEATS, 1, 1).view(BATCH, HEADS, -1, HEAD_DIM)


def _repeat_interleave(x):
    return torch.repeat_interleave(x, dim=1, repeats=REPEATS)


def _repeat_interleave_method(x):
    return x.repeat_interleave(REPEATS, -3).contiguous()


REPEAT_KV = [
    _getitem, _short_getitem, _unsqueeze, _unsqueeze_from_behind, _repeat_interleave, _repeat_interleave_method,
]  # fmt: skip


def _call(module):
    (call,) = (node for node in module.graph.nodes if node.name.startswith("attention_default"))
    return call


@pytest.mark.parametrize("repeat_kv", REPEAT_KV)
def test_key_value_heads_go_in_unrepeated(repeat_kv: Function) -> None:
    def attention(q, k, v, mask):
        return F.scaled_dot_product_attention(q, repeat_kv(k), repeat_kv(v), attn_mask=mask, scale=0.3)

    done = rewrite_and_compare(attention, *_inputs(), _mask(), patterns=[PATTERN])
    assert done.counts == {"attention": 1}, done.reasons
    call = _call(done.modules[0])
    assert [each.op for each in call.args[:4]] == ["placeholder"] * 4
    assert call.args[4:] == (0.3, False, 0)
    # The inputs, our call, the transpose to SDPA's layout, the output: no repetition is left.
    assert len(done.modules[0].graph.nodes) == 4 + 2 + 1
    assert f"{HEADS}/{KV_HEADS} heads of {HEAD_DIM}" in done.sites[0].detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_enable_gqa_and_the_default_scale(dtype: torch.dtype) -> None:
    def attention(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    done = rewrite_and_compare(attention, *_inputs(dtype=dtype), patterns=[PATTERN])
    assert done.counts == {"attention": 1}, done.reasons
    assert _call(done.modules[0]).args[4:] == (HEAD_DIM**-0.5, False, 0)


@pytest.mark.parametrize("keys", [QUERIES, KEYS, 3])
def test_causal_is_aligned_to_the_top_left_corner(keys: int) -> None:
    """With as many keys as queries, and with more or fewer: ours is SDPA's rule, query i sees keys 0 to i."""

    def attention(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, None, 0.0, True, enable_gqa=True)

    done = rewrite_and_compare(attention, *_inputs(keys=keys), patterns=[PATTERN])
    assert done.counts == {"attention": 1} and _call(done.modules[0]).args[5] is True


@pytest.mark.parametrize("batch", [1, BATCH])
def test_mask_of_one_or_of_each_sequence(batch: int) -> None:
    def attention(q, k, v, mask):
        return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), mask)

    done = rewrite_and_compare(attention, *_inputs(), _mask(batch=batch), patterns=[PATTERN])
    assert done.counts == {"attention": 1} and _call(done.modules[0]).args[3].name.endswith("mask_")


def test_a_query_that_sees_nothing() -> None:
    """As in the padding of a prompt."""

    def attention(q, k, v, mask):
        return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), mask)

    mask = _mask()
    mask[0, 0, :2] = False
    assert rewrite_and_compare(attention, *_inputs(), mask, patterns=[PATTERN]).counts


def test_reads_the_cache_after_the_write() -> None:
    """K and V are read through the cache, by the order of the program alone; the writes stay."""

    def attention(q, k, v, k_cache, v_cache, mask, position):
        k_cache.index_copy_(2, position, k)
        v_cache.index_copy_(2, position, v)
        out = F.scaled_dot_product_attention(q, _getitem(k_cache), _getitem(v_cache), attn_mask=mask)
        k_cache.add_(1)
        return out

    q, k, v = _inputs(1, 1)
    caches = _inputs()[1:]
    done = rewrite_and_compare(attention, q, k, v, *caches, _mask(1), torch.tensor([4]), patterns=[PATTERN])
    (module,) = done.modules
    assert done.counts == {"attention": 1}, done.reasons
    assert writes(module.graph) == ["index_copy_", "index_copy_", "add_"]
    order = [node.name for node in module.graph.nodes]
    call = _call(module)
    assert order.index("index_copy__1") < order.index(call.name) < order.index("add_")
    assert [call.args[1].op, call.args[2].op] == ["placeholder", "placeholder"]


def test_a_write_between_repeat_kv_and_attention() -> None:
    """repeat_kv copied the cache before the write, so its source cannot take its place."""

    def attention(q, k, v, mask):
        key, value = _getitem(k), _getitem(v)
        v[:, 0].zero_()
        return F.scaled_dot_product_attention(q, key, value, attn_mask=mask)

    done = rewrite_and_compare(attention, *_inputs(), _mask(), patterns=[PATTERN])
    assert not done.counts and "written in place by zero_" in done.reasons[0]


def test_a_write_to_the_copy() -> None:
    def attention(q, k, v, mask):
        key, value = _repeat_interleave(k), _repeat_interleave(v)
        value.mul_(2)
        return F.scaled_dot_product_attention(q, key, value, attn_mask=mask)

    done = rewrite_and_compare(attention, *_inputs(), _mask(), patterns=[PATTERN])
    assert not done.counts and "written in place by mul_" in done.reasons[0]


def test_dynamic_cache_grows() -> None:
    """One graph for the first step, one of symbolic length after it; all of them match."""

    class Step(torch.nn.Module):
        def forward(self, q, k, v, past_k, past_v):
            keys, values = torch.cat([past_k, k], dim=-2), torch.cat([past_v, v], dim=-2)
            return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True), keys, values

    from ..rewriting import Rewritten, backend

    done, step = Rewritten(), Step()
    compiled = torch.compile(step, backend=backend([PATTERN], done))
    q, k, v = _inputs(1, 1)
    past = _inputs()[1:]
    with torch.no_grad():
        for _ in range(4):
            out, *past = compiled(q, k, v, *past)
            torch.testing.assert_close(out, F.scaled_dot_product_attention(q, *past, enable_gqa=True))
    assert len(done.modules) == 2 and done.counts == {"attention": 2}, done.reasons
    assert isinstance(_call(done.modules[1]).args[1].meta["example_value"].shape[2], torch.SymInt)


def test_symbolic_sizes_with_a_mask() -> None:
    class Attention(torch.nn.Module):
        def forward(self, x, k, v, mask):
            q = x.view(*x.shape[:2], HEADS, HEAD_DIM).transpose(1, 2)
            k, v = (each.view(*each.shape[:2], KV_HEADS, HEAD_DIM).transpose(1, 2) for each in (k, v))
            out = F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), attn_mask=mask)
            return out.transpose(1, 2).reshape(*x.shape)

    x, k, v = (_random(BATCH, n, h * HEAD_DIM) for n, h in ((5, HEADS), (9, KV_HEADS), (9, KV_HEADS)))
    done = rewrite_and_compare(Attention(), x, k, v, _mask(), patterns=[PATTERN], dynamic=True)
    assert done.counts == {"attention": 1}, done.reasons


def test_undone_it_is_what_it_was() -> None:
    def attention(q, k, v, mask):
        return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), attn_mask=mask)

    done = rewrite_and_compare(
        attention, *_inputs(), _mask(), patterns=[PATTERN],
        before_sweep=lambda rewriter: [rewriter.undo(site, "slower") for site in rewriter.replaced()],
    )  # fmt: skip
    assert operators(done.modules[0].graph) == []
    assert len(done.modules[0].graph.nodes) == len(done.originals[0].graph.nodes)


def test_repeated_otherwise_is_taken_as_it_is() -> None:
    """Heads in the order 0 1 0 1 0 1 serve other queries than 0 0 0 1 1 1: they go in repeated."""

    def tiled(x):
        return x.repeat(1, REPEATS, 1, 1)

    def expanded_in_front(x):
        return x[:, None].expand(-1, REPEATS, -1, -1, -1).reshape(BATCH, HEADS, -1, HEAD_DIM)

    for repeat_kv in (tiled, expanded_in_front):

        def attention(q, k, v, mask, repeat_kv=repeat_kv):
            return F.scaled_dot_product_attention(q, repeat_kv(k), repeat_kv(v), attn_mask=mask)

        done = rewrite_and_compare(attention, *_inputs(), _mask(), patterns=[PATTERN])
        assert f"{HEADS}/{HEADS} heads" in done.sites[0].detail


def test_only_one_of_the_two_repeated() -> None:
    def attention(q, k, v, mask):
        return F.scaled_dot_product_attention(q, _getitem(k), v.repeat(1, REPEATS, 1, 1), attn_mask=mask)

    done = rewrite_and_compare(attention, *_inputs(), _mask(), patterns=[PATTERN])
    assert f"{HEADS}/{HEADS} heads" in done.sites[0].detail


def _sdpa(**changed):
    def attention(q, k, v, mask):
        return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), **{"attn_mask": mask, **changed})

    return attention


def _added_mask(q, k, v, mask):
    added = torch.zeros(mask.shape).masked_fill(~mask, -3.0)
    return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), attn_mask=added)


def _mask_of_each_head(q, k, v, mask):
    heads = mask.repeat(1, HEADS, 1, 1)
    heads[:, 1] = True
    return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), attn_mask=heads)


def _mask_of_two_axes(q, k, v, mask):
    return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), attn_mask=mask[0, 0])


def _mask_of_all_queries(q, k, v, mask):
    return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), attn_mask=mask[:, :, -1:])


def _mask_of_all_keys(q, k, v, mask):
    seen = mask[:, :, :, -1:].expand(-1, -1, -1, KEYS)
    return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v), attn_mask=seen)


def _other_value_size(q, k, v, mask):
    return F.scaled_dot_product_attention(q, _getitem(k), _getitem(v)[..., :8], attn_mask=mask)


def _shared_by_the_batch(q, k, v, mask):
    return F.scaled_dot_product_attention(q, _getitem(k)[:1], _getitem(v)[:1], attn_mask=mask)


def _one_head_without_gqa(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], attn_mask=mask)


def _three_axes(q, k, v, mask):
    return F.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0], attn_mask=mask[:, 0])


def _double_precision(q, k, v, mask):
    return F.scaled_dot_product_attention(q.double(), _getitem(k).double(), _getitem(v).double(), attn_mask=mask)


def _strided_heads(q, k, v, mask):
    turned = _getitem(k).transpose(2, 3).contiguous().transpose(2, 3)
    return F.scaled_dot_product_attention(q, turned, _getitem(v), attn_mask=mask)


REJECTS = [
    (_sdpa(scale=0.0), "not a positive number"),
    (_sdpa(scale=-1.0), "not a positive number"),
    (_added_mask, "added to the scores (torch.float32)"),
    (_mask_of_each_head, "a mask for every head"),
    (_mask_of_two_axes, "2 axes, not four"),
    (_mask_of_all_queries, "another number of queries"),
    (_mask_of_all_keys, "strided over the keys"),
    (_other_value_size, "key and value differ in shape"),
    (_shared_by_the_batch, "not the same batch size"),
    (_one_head_without_gqa, "without enable_gqa"),
    (_three_axes, "has not four axes"),
    (_double_precision, "no kernel for torch.float64"),
    (_strided_heads, "strided over its last axis"),
]


@pytest.mark.parametrize(("function", "reason"), REJECTS)
def test_rejects(function: Function, reason: str) -> None:
    done = rewrite_and_compare(function, *_inputs(), _mask(), patterns=[PATTERN])
    assert not done.counts
    assert len(done.reasons) == 1 and reason in done.reasons[0], done.reasons


def test_rejects_dropout() -> None:
    done = rewrite(_sdpa(dropout_p=0.5), *_inputs(), _mask(), patterns=[PATTERN])
    assert done.reasons == ["dropout"]


def test_rejects_symbolic_heads() -> None:
    def attention(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    done = rewrite_and_compare(attention, *_inputs(), patterns=[PATTERN], dynamic=True)
    assert done.reasons == ["number or size of the heads is not static"]


def test_rejects_a_view_that_needs_another_layout() -> None:
    """SDPA's output is [B, H, S, D] here, ours a view of [B, S, H, D]: a reader of raw memory order keeps SDPA."""

    def attention(q, k, v, mask):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return out.view(BATCH * HEADS, -1, HEAD_DIM) if out.is_contiguous() else out.transpose(1, 2)

    done = rewrite_and_compare(attention, *_inputs(), _mask(), patterns=[PATTERN])
    assert done.counts or "cannot view the new layout" in done.reasons[0]


def test_eager_attention_has_no_anchor() -> None:
    def attention(q, k, v, mask):
        scores = (q @ _getitem(k).transpose(2, 3) * 0.25).masked_fill(~mask, -1e9)
        return F.softmax(scores, dim=-1) @ _getitem(v)

    assert rewrite_and_compare(attention, *_inputs(), _mask(), patterns=[PATTERN]).sites == []
