"""Built-in models: the shapes of the public `config.json` of each hub id."""

from __future__ import annotations

from typing import Literal

from .model_spec import ModelSpec

_QWEN3_VOCAB = 151_936
_QWEN25_VOCAB = 152_064


def _dense(
    hub_id: str,
    family: str,
    shape: tuple[int, int, int],
    heads: tuple[int, int, int],
    vocab: int,
    *,
    qkv_bias: bool = False,
    qk_norm: Literal["none", "head"] = "none",
    window: int = 0,
    tied_embeddings: bool = False,
) -> ModelSpec:
    """`shape` is (layers, hidden, inter), `heads` is (query heads, KV heads, head_dim)."""
    layers, hidden, inter = shape
    q_heads, kv_heads, head_dim = heads
    return ModelSpec(
        name=hub_id.split("/")[1], source=f"preset {hub_id}", family=family,
        layers=layers, hidden=hidden, inter=inter, dense_layers=layers,
        q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, vocab=vocab,
        qkv_bias=qkv_bias, qk_norm=qk_norm, window=window, window_layers=layers if window else 0,
        tied_embeddings=tied_embeddings,
    )  # fmt: skip


def _moe(
    hub_id: str,
    family: str,
    shape: tuple[int, int, int],
    heads: tuple[int, int, int],
    vocab: int,
    *,
    experts: tuple[int, int],
    renormalize: bool,
    shared_inter: int = 0,
    qkv_bias: bool = False,
    qk_norm: Literal["none", "head", "row"] = "none",
) -> ModelSpec:
    """Every layer has experts. `shape` is (layers, hidden, moe_inter), `experts` is (experts, top_k)."""
    layers, hidden, moe_inter = shape
    q_heads, kv_heads, head_dim = heads
    return ModelSpec(
        name=hub_id.split("/")[1], source=f"preset {hub_id}", family=family,
        layers=layers, hidden=hidden, moe_inter=moe_inter, dense_layers=0,
        q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, vocab=vocab,
        experts=experts[0], top_k=experts[1], renormalize=renormalize, shared_inter=shared_inter,
        qkv_bias=qkv_bias, qk_norm=qk_norm,
    )  # fmt: skip


def _qwen3(size: str, shape: tuple[int, int, int], heads: tuple[int, int], tied: bool = False) -> ModelSpec:
    return _dense(
        f"Qwen/Qwen3-{size}",
        "qwen3",
        shape,
        (*heads, 128),
        _QWEN3_VOCAB,
        qk_norm="head",
        tied_embeddings=tied,
    )


def _qwen3_moe(name: str, shape: tuple[int, int, int], heads: tuple[int, int], experts: int) -> ModelSpec:
    return _moe(
        f"Qwen/{name}", "qwen3_moe", shape, (*heads, 128), _QWEN3_VOCAB,
        experts=(experts, 8), renormalize=True, qk_norm="head",
    )  # fmt: skip


def _qwen25(name: str, shape: tuple[int, int, int], heads: tuple[int, int]) -> ModelSpec:
    return _dense(f"Qwen/{name}", "qwen2", shape, (*heads, 128), _QWEN25_VOCAB, qkv_bias=True)


def _llama(name: str, shape: tuple[int, int, int], heads: tuple[int, int, int], tied: bool = False) -> ModelSpec:
    return _dense(f"meta-llama/{name}", "llama", shape, heads, 128_256, tied_embeddings=tied)


PRESETS: tuple[ModelSpec, ...] = (
    _qwen3_moe("Qwen3-30B-A3B", (48, 2048, 768), (32, 4), experts=128),
    _qwen3_moe("Qwen3-235B-A22B", (94, 4096, 1536), (64, 4), experts=128),
    _qwen3_moe("Qwen3-Coder-480B-A35B-Instruct", (62, 6144, 2560), (96, 8), experts=160),
    _qwen3("0.6B", (28, 1024, 3072), (16, 8), tied=True),
    _qwen3("1.7B", (28, 2048, 6144), (16, 8), tied=True),
    _qwen3("4B", (36, 2560, 9728), (32, 8), tied=True),
    _qwen3("8B", (36, 4096, 12288), (32, 8)),
    _qwen3("14B", (40, 5120, 17408), (40, 8)),
    _qwen3("32B", (64, 5120, 25600), (64, 8)),
    _qwen25("QwQ-32B", (64, 5120, 27648), (40, 8)),
    _qwen25("Qwen2.5-7B", (28, 3584, 18944), (28, 4)),
    _qwen25("Qwen2.5-14B", (48, 5120, 13824), (40, 8)),
    _qwen25("Qwen2.5-32B", (64, 5120, 27648), (40, 8)),
    _qwen25("Qwen2.5-72B", (80, 8192, 29568), (64, 8)),
    _moe(
        "Qwen/Qwen2-57B-A14B", "qwen2_moe", (28, 3584, 2560), (28, 4, 128), 151_936,
        experts=(64, 8), renormalize=False, shared_inter=20480, qkv_bias=True,
    ),
    _moe(
        "Qwen/Qwen1.5-MoE-A2.7B", "qwen2_moe", (24, 2048, 1408), (16, 16, 128), 151_936,
        experts=(60, 4), renormalize=False, shared_inter=5632, qkv_bias=True,
    ),
    _moe(
        "mistralai/Mixtral-8x7B-v0.1", "mixtral", (32, 4096, 14336), (32, 8, 128), 32_000,
        experts=(8, 2), renormalize=True
    ),
    _moe(
        "allenai/OLMoE-1B-7B-0924", "olmoe", (16, 2048, 1024), (16, 16, 128), 50_304,
        experts=(64, 8), renormalize=False, qk_norm="row"
    ),
    _dense(
        "mistralai/Mistral-7B-v0.1", "mistral", (32, 4096, 14336), (32, 8, 128), 32_000, window=4096
    ),
    _llama("Llama-3.2-1B", (16, 2048, 8192), (32, 8, 64), tied=True),
    _llama("Llama-3.2-3B", (28, 3072, 8192), (24, 8, 128), tied=True),
    _llama("Llama-3.1-8B", (32, 4096, 14336), (32, 8, 128)),
    _llama("Llama-3.1-70B", (80, 8192, 28672), (64, 8, 128)),
    _llama("Llama-3.1-405B", (126, 16384, 53248), (128, 8, 128)),
)  # fmt: skip

# Releases with the shapes of another: later training, longer context, other data.
ALIASES: dict[str, str] = {
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "Qwen3-30B-A3B",
    "Qwen/Qwen3-30B-A3B-Thinking-2507": "Qwen3-30B-A3B",
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": "Qwen3-30B-A3B",
    "Qwen/Qwen3-235B-A22B-Instruct-2507": "Qwen3-235B-A22B",
    "Qwen/Qwen3-235B-A22B-Thinking-2507": "Qwen3-235B-A22B",
    "Qwen/Qwen3-Coder-480B-A35B": "Qwen3-Coder-480B-A35B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct": "Qwen2.5-7B",
    "Qwen/Qwen2.5-14B-Instruct": "Qwen2.5-14B",
    "Qwen/Qwen2.5-32B-Instruct": "Qwen2.5-32B",
    "Qwen/Qwen2.5-72B-Instruct": "Qwen2.5-72B",
    "mistralai/Mixtral-8x7B": "Mixtral-8x7B-v0.1",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "Mixtral-8x7B-v0.1",
    "allenai/OLMoE-1B-7B": "OLMoE-1B-7B-0924",
    "allenai/OLMoE-1B-7B-0125": "OLMoE-1B-7B-0924",
    "meta-llama/Llama-3.1-8B-Instruct": "Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B-Instruct": "Llama-3.1-70B",
    "meta-llama/Llama-3.3-70B-Instruct": "Llama-3.1-70B",
}


def preset_named(text: str) -> ModelSpec | None:
    """The preset of a name or hub id, in any case; None where there is none."""
    wanted = text.strip().lower()
    for alias, target in ALIASES.items():
        if wanted in (alias.lower(), alias.split("/")[1].lower()):
            wanted = target.lower()
    for model in PRESETS:
        if wanted in (model.name.lower(), model.source.removeprefix("preset ").lower()):
            return model
    return None
