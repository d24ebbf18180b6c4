"""Small random graphs made of the patterns' pieces with one thing changed: whatever matches, the result is eager's.

A decoder layer is put together from a norm, projections, rotary embedding, attention, a router and a gated MLP; in one
of them one thing is something else (another axis, an intermediate used elsewhere, an input written in place, another
activation ...). A wrong match shows as a wrong value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from paiton.compiler import passes
from paiton.compiler.compose import compose
from paiton.compiler.site import Status

from .rewriting import rewrite_and_compare

B, S, HEADS, KV, D, EXPERTS = 2, 4, 4, 2, 8, 4
HIDDEN = HEADS * D

CHANGES = {
    "norm": (
        "another axis", "axis dropped", "cubes", "sum", "alpha", "no rsqrt", "one plus weight", "scale used elsewhere",
        "square used elsewhere", "x written after", "x written between", "wide written", "weight squared", "twice",
    ),
    "residual": ("alpha", "minus", "broadcast", "in place", "written later", "scaled", "read before"),
    "qkv": (
        "bias of k", "x written", "x written by a view", "other x", "weight written", "transposed",
        "viewed flat", "fourth",
    ),
    "rope": (
        "other sign", "swapped halves", "swapped tables", "interleaved", "partial", "minus", "tables of k", "x written",
        "half read elsewhere", "q read elsewhere", "one position", "norm on q only", "norms", "norms read elsewhere",
    ),
    "attention": ("scale", "causal", "mask", "additive mask", "repeated", "interleaved heads", "k written", "float64"),
    "router": (
        "sigmoid", "other axis", "smallest", "softmax after", "sum elsewhere", "renormalised", "renormalised in place",
        "divided by another", "values read elsewhere", "half precision softmax",
    ),
    "mlp": (
        "gelu", "bias", "other order", "x written", "gate read elsewhere", "up read elsewhere", "silu in place",
        "other x", "sum", "transposed", "one row", "sigmoid",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One thing that is something else: `piece` is a key of CHANGES."""

    piece: str
    what: str

    def __call__(self, piece: str, what: str) -> bool:
        return (piece, what) == (self.piece, self.what)


UNCHANGED = Change("", "")


def _tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    sizes = {
        "x": (B, S, HIDDEN), "w1": (HIDDEN,), "w2": (HIDDEN,), "wq": (HIDDEN, HIDDEN), "wk": (KV * D, HIDDEN),
        "wv": (KV * D, HIDDEN), "bias": (KV * D,), "qn": (D,), "kn": (D,), "wo": (HIDDEN, HIDDEN),
        "gate": (HIDDEN, HIDDEN), "up": (HIDDEN, HIDDEN), "down": (HIDDEN, HIDDEN), "router": (EXPERTS, HIDDEN),
        "extra": (HIDDEN,),
    }  # fmt: skip
    made = {name: torch.randn(*size, generator=generator) * size[-1] ** -0.25 for name, size in sizes.items()}
    angles = torch.rand(1, S, D, generator=generator) * 6
    return {name: each.to(dtype) for name, each in made.items()} | {
        "cos": angles.cos().to(dtype),
        "sin": angles.sin().to(dtype),
    }


def _norm(x, weight, is_changed, extras):
    """RMSNorm; `extras` collects what is read elsewhere."""

    def changed(what):
        return is_changed("norm", what)

    wide = x.float()
    square = wide.pow(3).abs() if changed("cubes") else wide.pow(2)
    axis = -2 if changed("another axis") else -1
    mean = square.sum(axis, keepdim=True) if changed("sum") else square.mean(axis, keepdim=not changed("axis dropped"))
    if changed("axis dropped"):
        mean = mean[:, :1, None]
    if changed("square used elsewhere"):
        extras.append(square)
    if changed("wide written"):
        wide.mul_(2)
    if changed("x written between"):
        x.mul_(2)
    total = torch.add(mean, 1e-3, alpha=4) if changed("alpha") else mean + 1e-3
    root = total.sqrt() if changed("no rsqrt") else torch.rsqrt(total)
    normalised = (wide * root).to(x.dtype)
    if changed("scale used elsewhere"):
        extras.append(root)
    if changed("twice"):
        normalised = normalised * normalised
    if changed("one plus weight"):
        weight = weight + 1
    if changed("weight squared"):
        weight = weight * weight
    out = weight * normalised
    if changed("x written after"):
        x.add_(1)
    return out


def _residual(x, y, is_changed, extras):
    def changed(what):
        return is_changed("residual", what)

    if changed("alpha"):
        return torch.add(x, y, alpha=2)
    if changed("minus"):
        return x - y
    if changed("broadcast"):
        return x + y[:, :1]
    if changed("scaled"):
        return x + y * 0.5
    if changed("in place"):
        y += x
        return y
    total = x + y
    if changed("read before"):
        extras.append(total.exp())
    if changed("written later"):
        extras.append(total * 1)
        total.mul_(2)
    return total


def _projections(x, t, is_changed, extras):
    def changed(what):
        return is_changed("qkv", what)

    q = F.linear(x, t["wq"].t() if changed("transposed") else t["wq"])
    if changed("x written"):
        x.mul_(2)
    if changed("x written by a view"):
        x.view(-1)[3:].zero_()
    if changed("weight written"):
        t["wv"].t()[1].add_(1)
    k = F.linear(x, t["wk"], t["bias"] if changed("bias of k") else None)
    v = F.linear(x + 1 if changed("other x") else x, t["wv"])
    if changed("viewed flat"):
        extras.append(q.view(-1))
    if changed("fourth"):
        extras.append(F.linear(x, t["wk"]))
    return q, k, v


def _rotate(x, is_changed):
    half = D // 2
    if is_changed("rope", "other sign"):
        return torch.cat((x[..., half:], -x[..., :half]), -1)
    if is_changed("rope", "swapped halves"):
        return torch.cat((-x[..., :half], x[..., half:]), -1)
    if is_changed("rope", "interleaved"):
        return torch.cat((-x[..., 1::2], x[..., ::2]), -1)
    if is_changed("rope", "partial"):
        return torch.cat((-x[..., 2:4], x[..., :2], x[..., 4:]), -1)
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def _rope(q, k, t, is_changed, extras):
    def changed(what):
        return is_changed("rope", what)

    q, k = q.view(B, S, -1, D), k.view(B, S, -1, D)
    if changed("norms") or changed("norm on q only") or changed("norms read elsewhere"):
        q = _norm(q, t["qn"], UNCHANGED, extras)
    if changed("norms") or changed("norms read elsewhere"):
        k = _norm(k, t["kn"], UNCHANGED, extras)
        if changed("norms read elsewhere"):
            extras.append(k)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    cos, sin = t["cos"].unsqueeze(1), t["sin"].unsqueeze(1)
    if changed("swapped tables"):
        cos, sin = sin, cos
    if changed("one position"):
        cos, sin = cos[:, :, :1], sin[:, :, :1]
    turned = _rotate(q, is_changed)
    q_out = q * cos - turned * sin if changed("minus") else (q * cos) + (turned * sin)
    if changed("half read elsewhere"):
        extras.append(turned)
    if changed("q read elsewhere"):
        extras.append(q)
    if changed("x written"):
        k.mul_(2)
    if changed("tables of k"):
        cos = cos * 2
    return q_out, (k * cos) + (_rotate(k, is_changed) * sin)


def _attention(q, k, v, is_changed):
    def changed(what):
        return is_changed("attention", what)

    v = v.view(B, S, KV, D).transpose(1, 2)
    if changed("interleaved heads"):
        k, v = k.repeat(1, HEADS // KV, 1, 1), v.repeat(1, HEADS // KV, 1, 1)
    elif changed("repeated"):
        k, v = (each[:, :, None].expand(B, KV, HEADS // KV, S, D).reshape(B, HEADS, S, D) for each in (k, v))
    if changed("k written"):
        k[:, :, 0] = 0
    if changed("float64"):
        q, k, v = q.double(), k.double(), v.double()
    visible = torch.ones(S, S, dtype=torch.bool).tril()
    mask = visible[None, None].expand(B, 1, S, S) if changed("mask") else None
    if changed("additive mask"):
        mask = torch.zeros(B, 1, S, S, dtype=q.dtype).masked_fill(~visible, -3.0)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=changed("causal"), scale=0.7 if changed("scale") else None,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out.transpose(1, 2).reshape(B, S, HIDDEN)


def _router(x, t, is_changed, extras):
    def changed(what):
        return is_changed("router", what)

    logits = F.linear(x.reshape(-1, HIDDEN), t["router"])
    dtype = logits.dtype if changed("half precision softmax") else torch.float32
    axis = 0 if changed("other axis") else -1
    if changed("sigmoid"):
        scores = logits.float().sigmoid()
    elif changed("softmax after"):
        scores = logits.float()
    else:
        scores = F.softmax(logits, dim=axis, dtype=dtype)
    values, ids = torch.topk(scores, 2, dim=-1, largest=not changed("smallest"))
    if changed("softmax after"):
        values = values.softmax(-1)
    if changed("sum elsewhere"):
        extras.append(values.sum(-1, keepdim=True))
    if changed("values read elsewhere"):
        extras.append(values.exp())
    if changed("renormalised"):
        values = values / values.sum(-1, keepdim=True)
    if changed("renormalised in place"):
        values /= values.sum(-1, keepdim=True)
    if changed("divided by another"):
        values = values / scores.sum(-1, keepdim=True)
    extras.append(ids)
    return values.to(x.dtype)


def _mlp(x, t, is_changed, extras):
    def changed(what):
        return is_changed("mlp", what)

    gate = F.linear(x, t["gate"].t() if changed("transposed") else t["gate"], t["extra"] if changed("bias") else None)
    if changed("x written"):
        x.add_(1)
    up = F.linear(x * 2 if changed("other x") else x, t["up"][:1] if changed("one row") else t["up"])
    if changed("gate read elsewhere"):
        extras.append(gate)
    if changed("up read elsewhere"):
        extras.append(up)
    activated = F.gelu(gate) if changed("gelu") else F.silu(gate, inplace=changed("silu in place"))
    if changed("sigmoid"):
        activated = gate.sigmoid()
    if changed("sum"):
        return F.linear(activated + up, t["down"])
    return F.linear(up * activated if changed("other order") else activated * up, t["down"])


def _layer(is_changed: Change) -> Callable[..., object]:
    def layer(t):
        extras: list[torch.Tensor] = []
        x = t["x"]
        y = _norm(x, t["w1"], is_changed, extras)
        q, k, v = _projections(y, t, is_changed, extras)
        q, k = _rope(q, k, t, is_changed, extras)
        y = F.linear(_attention(q, k, v, is_changed).to(x.dtype), t["wo"])
        x = _residual(x, y, is_changed, extras)
        y = _norm(x, t["w2"], is_changed, extras)
        weights = _router(y, t, is_changed, extras)
        x = _residual(x, _mlp(y, t, is_changed, extras), is_changed, extras)
        return x, weights, extras

    return layer


def _cases() -> list[Change]:
    return [Change(piece, what) for piece, changes in CHANGES.items() for what in changes]


def _check(change: Change, dtype: torch.dtype, is_dynamic: bool) -> set[str]:
    done = rewrite_and_compare(
        _layer(change),
        _tensors(dtype),
        patterns=passes.PATTERNS,
        dynamic=True if is_dynamic else None,
        before_sweep=lambda rewriter: compose(rewriter, frozenset()),
    )
    assert not [site.detail for site in done.sites if site.status is Status.ERROR]
    return set(done.operators)


def test_nothing_changed() -> None:
    """All of it matches, so that the others start from something."""
    found = _check(Change("", ""), torch.float32, is_dynamic=False)
    assert {"linear_qkv", "qk_norm_rope", "attention", "router", "linear_silu_mul"} <= found
    assert found & {"rms_norm", "add_rms_norm"}


@settings(max_examples=60)
@given(st.sampled_from(_cases()), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())
def test_one_thing_changed(change: Change, dtype: torch.dtype, is_dynamic: bool) -> None:
    _check(change, dtype, is_dynamic)
