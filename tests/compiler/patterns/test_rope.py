"""Rotary embedding of q and k, with and without the norms before it, and the forms that are another rotation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from paiton.compiler.patterns import rms_norm, rope
from paiton.compiler.site import Status

from ..rewriting import rewrite_and_compare

B, S, H, HK, D = 2, 3, 4, 2, 8
PATTERNS = [rms_norm.PATTERN, rope.PATTERN]


def _tensors(dtype: torch.dtype = torch.float32, tables: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(6)
    sizes = ((B, S, H * D), (B, S, HK * D), (D,), (D,))
    q, k, q_weight, k_weight = (torch.randn(*size, generator=generator).to(dtype) for size in sizes)
    angles = torch.rand(tables, S, D, generator=generator) * 6
    return q, k, q_weight, k_weight, angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def _chunked(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([-x2, x1], -1)


def _split(x):
    x1, x2 = torch.split(x, x.shape[-1] // 2, dim=-1)
    return torch.concat((torch.neg(x2), x1), dim=3)


def _split_in_sections(x):
    x1, x2 = x.split([D // 2, D // 2], -1)
    return torch.cat((x2.neg(), x1), -1)


def _every_axis(x):
    return torch.cat((-x[:, :, :, D // 2 :], x[:, :, :, : D // 2]), dim=-1)


def _norm(x, weight, eps=1e-6):
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rope(rotate: Callable[..., torch.Tensor] = _rotate_half) -> Callable[..., object]:
    def layer(q, k, q_weight, k_weight, cos, sin):
        q, k = q.view(B, S, -1, D).transpose(1, 2), k.view(B, S, -1, D).transpose(1, 2)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + rotate(q) * sin, (k * cos) + (rotate(k) * sin)

    return layer


def _norm_and_rope(q, k, q_weight, k_weight, cos, sin):
    q = _norm(q.view(B, S, -1, D), q_weight).transpose(1, 2)
    k = _norm(k.view(B, S, -1, D), k_weight).transpose(1, 2)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rotate", [_rotate_half, _chunked, _split, _split_in_sections, _every_axis])
def test_matches(rotate: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    done = rewrite_and_compare(_rope(rotate), *_tensors(dtype), patterns=PATTERNS)
    assert done.operators == {"qk_norm_rope": 1}
    assert done.sites[0].detail == "RoPE, heads 4/2 of 8"


@pytest.mark.parametrize("tables", [1, B])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_takes_the_norms_in(dtype: torch.dtype, tables: int) -> None:
    done = rewrite_and_compare(_norm_and_rope, *_tensors(dtype, tables), patterns=PATTERNS)
    assert done.operators == {"qk_norm_rope": 1}
    assert [site.status for site in done.sites] == [Status.JOINED, Status.JOINED, Status.REPLACED]
    assert done.sites[-1].detail.startswith("norm (eps 1e-06) and RoPE")


def test_other_orders_of_the_factors_and_terms() -> None:
    def layer(q, k, q_weight, k_weight, cos, sin):
        q, k = q.view(B, S, -1, D).permute(0, 2, 1, 3), k.view(B, S, -1, D).transpose(-2, -3)
        cos, sin = cos.view(1, 1, S, D), sin[:, None]
        return torch.add(sin * _rotate_half(q), cos.mul(q)), torch.mul(k, cos).add(_rotate_half(k) * sin)

    assert rewrite_and_compare(layer, *_tensors(), patterns=PATTERNS).operators == {"qk_norm_rope": 1}


def test_k_may_come_first_and_one_head_is_enough() -> None:
    def layer(q, k, q_weight, k_weight, cos, sin):
        k, q = _rope()(k[..., :D], q, None, None, cos, sin)
        return q, k

    done = rewrite_and_compare(layer, *_tensors(), patterns=PATTERNS)
    assert done.operators == {"qk_norm_rope": 1} and done.sites[0].detail == "RoPE, heads 4/1 of 8"


def test_layers_share_their_tables() -> None:
    def layers(q, k, q_weight, k_weight, cos, sin):
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        for _ in range(3):
            q, k = q.view(B, S, -1, D).transpose(1, 2), k.view(B, S, -1, D).transpose(1, 2)
            q, k = q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin
            q, k = (x.transpose(1, 2).reshape(B, S, -1) for x in (q, k))
        return q, k

    assert rewrite_and_compare(layers, *_tensors(), patterns=PATTERNS).operators == {"qk_norm_rope": 3}


def test_a_scale_in_the_tables_is_theirs() -> None:
    def layer(q, k, q_weight, k_weight, cos, sin):
        return _rope()(q, k, q_weight, k_weight, cos * 1.25, sin * 1.25)

    assert rewrite_and_compare(layer, *_tensors(), patterns=PATTERNS).operators == {"qk_norm_rope": 1}


def _norms_of_different_eps(q, k, q_weight, k_weight, cos, sin):
    q, k = _norm(q.view(B, S, -1, D), q_weight), _norm(k.view(B, S, -1, D), k_weight, 1e-2)
    return _rope()(q, k, None, None, cos, sin)


def _only_q_normalised(q, k, q_weight, k_weight, cos, sin):
    return _rope()(_norm(q.view(B, S, -1, D), q_weight), k, None, None, cos, sin)


def _norm_read_elsewhere(q, k, q_weight, k_weight, cos, sin):
    q, k = _norm(q.view(B, S, H, D), q_weight), _norm(k.view(B, S, HK, D), k_weight)
    q4, k4 = q.transpose(1, 2), k.transpose(1, 2)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q4 * cos + _rotate_half(q4) * sin, k4 * cos + _rotate_half(k4) * sin, k.sum()


def _norm_over_all_heads(q, k, q_weight, k_weight, cos, sin):
    """OLMoE's: the norm is over all heads together."""
    return _rope()(_norm(q, q_weight.repeat(H)), _norm(k, k_weight.repeat(HK)), None, None, cos, sin)


@pytest.mark.parametrize(
    "layer", [_norms_of_different_eps, _only_q_normalised, _norm_read_elsewhere, _norm_over_all_heads]
)
def test_rope_alone_where_the_norms_do_not_fit(layer: Callable[..., object]) -> None:
    done = rewrite_and_compare(layer, *_tensors(), patterns=PATTERNS)
    assert done.operators["qk_norm_rope"] == 1
    assert "RoPE, heads 4/2 of 8" in [site.detail for site in done.sites]


def _partial(q, k, q_weight, k_weight, cos, sin):
    q, k = q.view(B, S, -1, D).transpose(1, 2), k.view(B, S, -1, D).transpose(1, 2)
    cos, sin, half = cos.unsqueeze(1)[..., : D // 2], sin.unsqueeze(1)[..., : D // 2], D // 2

    def turn(x):
        turned = x[..., :half]
        return torch.cat((turned * cos + _rotate_half(turned) * sin, x[..., half:]), -1)

    return turn(q), turn(k)


def _not_transposed(q, k, q_weight, k_weight, cos, sin):
    q, k = q.view(B, H, S, D), k.view(B, HK, S, D)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin


def _one_position(q, k, q_weight, k_weight, cos, sin):
    """One row of the tables for all positions."""
    return _rope()(q, k, None, None, cos[:, :1], sin[:, :1])


def _one_angle(q, k, q_weight, k_weight, cos, sin):
    return _rope()(q, k, None, None, cos[..., :1], sin[..., :1])


def _wide_tables(q, k, q_weight, k_weight, cos, sin):
    return _rope()(q, k, None, None, cos.double(), sin.double())


def _q_alone(q, k, q_weight, k_weight, cos, sin):
    q = q.view(B, S, -1, D).transpose(1, 2)
    return q * cos.unsqueeze(1) + _rotate_half(q) * sin.unsqueeze(1)


def _k_after_q(q, k, q_weight, k_weight, cos, sin):
    """k is made from the rotated q."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    q = q.view(B, S, -1, D).transpose(1, 2)
    q = q * cos + _rotate_half(q) * sin
    k = (k.view(B, S, -1, D) + q.mean()).transpose(1, 2)
    return q, k * cos + _rotate_half(k) * sin


def _k_written(q, k, q_weight, k_weight, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    q4, k4 = q.view(B, S, -1, D).transpose(1, 2), k.view(B, S, -1, D).transpose(1, 2)
    q4 = q4 * cos + _rotate_half(q4) * sin
    k.mul_(2)
    return q4, k4 * cos + _rotate_half(k4) * sin


def _table_written(q, k, q_weight, k_weight, cos, sin):
    table = cos.unsqueeze(1)
    q, k = q.view(B, S, -1, D).transpose(1, 2), k.view(B, S, -1, D).transpose(1, 2)
    q = q * table + _rotate_half(q) * sin.unsqueeze(1)
    cos.mul_(2)
    return q, k * table + _rotate_half(k) * sin.unsqueeze(1)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (_partial, "partial rotary"),
        (_not_transposed, "not [B, S, H, D] with axes 1 and 2 exchanged"),
        (_one_position, "not [B, 1, S, D]"),
        (_one_angle, "partial rotary"),
        (_wide_tables, "cos torch.float64"),
        (_q_alone, "only one tensor is rotated"),
        (_k_after_q, "made after the other is rotated"),
        (_k_written, "written in place"),
    ],
)
def test_rejects(layer: Callable[..., object], reason: str) -> None:
    done = rewrite_and_compare(layer, *_tensors(), patterns=PATTERNS)
    assert not done.operators and len(done.reasons) == 1 and reason in done.reasons[0], done.reasons


def test_tables_written_between() -> None:
    """Each `unsqueeze` of sin is another table, so q and k are no pair; with one table the write is seen."""
    done = rewrite_and_compare(_table_written, *_tensors(), patterns=PATTERNS)
    assert not done.operators and done.reasons


def test_a_pair_of_different_shapes() -> None:
    """A rope of other tokens with the same tables: one batch broadcasts over the tables of the other."""

    def turned(q, k, q_weight, k_weight, cos, sin):
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        q, k = q.view(B, S, -1, D).transpose(1, 2), k[:1].view(1, S, -1, D).transpose(1, 2)
        return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin

    done = rewrite_and_compare(turned, *_tensors(), patterns=PATTERNS)
    assert not done.operators and done.reasons == ["q and k differ in shape"]


def _interleaved(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def _other_sign(x):
    return torch.cat((x[..., D // 2 :], -x[..., : D // 2]), -1)


def _swapped_halves(x):
    return torch.cat((-x[..., : D // 2], x[..., D // 2 :]), -1)


def _unequal(x):
    return torch.cat((-x[..., D // 2 - 1 :], x[..., : D // 2 - 1]), -1)


def _strided(x):
    return torch.cat((-x[..., 1::2], x[..., ::2]), -1)


def _of_another(x):
    y = x + 1
    return torch.cat((-x[..., D // 2 :], y[..., : D // 2]), -1)


def _not_the_last_axis(x):
    return torch.cat((-x.transpose(-1, -2)[..., D // 2 :, :], x.transpose(-1, -2)[..., : D // 2, :]), -2).transpose(
        -1, -2
    )


@pytest.mark.parametrize(
    "rotate", [_interleaved, _other_sign, _swapped_halves, _unequal, _strided, _of_another, _not_the_last_axis]
)
def test_other_rotations_are_no_sites(rotate: Callable[..., torch.Tensor]) -> None:
    assert not rewrite_and_compare(_rope(rotate), *_tensors(), patterns=PATTERNS).sites


@pytest.mark.parametrize("change", ["minus", "alpha", "another x"])
def test_other_sums_are_no_sites(change: str) -> None:
    def turn(x, cos, sin):
        if change == "minus":
            return x * cos - _rotate_half(x) * sin
        if change == "alpha":
            return torch.add(x * cos, _rotate_half(x) * sin, alpha=2)
        return (x + 1) * cos + _rotate_half(x) * sin

    def layer(q, k, q_weight, k_weight, cos, sin):
        q, k = q.view(B, S, -1, D).transpose(1, 2), k.view(B, S, -1, D).transpose(1, 2)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return turn(q, cos, sin), turn(k, cos, sin)

    assert not rewrite_and_compare(layer, *_tensors(), patterns=PATTERNS).sites
