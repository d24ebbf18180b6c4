"""A Hugging Face `config.json` to a ModelSpec. The file is a stranger's: nothing in it is trusted.

The defaults of absent fields are those of the model's configuration class in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .model_spec import LIMITS, ModelError, ModelSpec


@dataclass(frozen=True)
class _Family:
    """What the modelling code of one `model_type` fixes, beyond what its config says."""

    qkv_bias: bool | str = False  # the value, or the name of the config field
    o_bias: bool | str = False
    qk_norm: Literal["none", "head", "row"] = "none"
    kv_heads_required: bool = True
    # A dense layer's and an expert's width, the number of experts.
    inter_field: str | None = "intermediate_size"
    experts_field: str | None = None
    moe_inter_field: str = "moe_intermediate_size"
    always_renormalizes: bool = False
    has_shared_expert: bool = False
    # Which layers use the sliding window where `layer_types` does not say: all; or by `max_window_layers`.
    window_rule: Literal["all", "from", "even_below"] = "all"
    window_switch: bool = False  # the window counts only where use_sliding_window is true


_QWEN2 = _Family(qkv_bias=True, window_rule="from", window_switch=True)
_QWEN3 = _Family(
    qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="head", window_rule="from", window_switch=True
)
_QWEN3_MOE = _Family(
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm="head",
    experts_field="num_experts",
    window_switch=True,
)
FAMILIES: dict[str, _Family] = {
    "llama": _Family(qkv_bias="attention_bias", o_bias="attention_bias", kv_heads_required=False),
    "mistral": _Family(),
    "mixtral": _Family(
        inter_field=None,
        experts_field="num_local_experts",
        moe_inter_field="intermediate_size",
        always_renormalizes=True,
    ),
    "olmoe": _Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm="row",
        kv_heads_required=False,
        inter_field=None,
        experts_field="num_experts",
        moe_inter_field="intermediate_size",
    ),
    "qwen2": _QWEN2,
    "qwen2_moe": _Family(
        qkv_bias="qkv_bias",
        experts_field="num_experts",
        has_shared_expert=True,
        window_rule="even_below",
        window_switch=True,
    ),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_text": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3_MOE,
}


def parse_config(config: object, name: str, source: str = "") -> ModelSpec:
    """The model that `config`, a parsed `config.json`, describes; text models may be nested in `text_config`.

    Raises ModelError, one line, for anything that is no object, of an unknown family, incomplete, of a wrong
    type, out of range or contradictory.
    """
    if not isinstance(config, Mapping):
        raise ModelError(f"{name}: the configuration is a JSON {_kind(config)}, expected an object")
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        config = nested
    family_name = config.get("model_type")
    if "model_type" in config and (not isinstance(family_name, str) or family_name not in FAMILIES):
        raise ModelError(f"{name}: model_type {shown(family_name)} is not one of {', '.join(FAMILIES)}")
    family = FAMILIES.get(str(family_name), FAMILIES["llama"])
    reader = _Reader(config, name)
    reader.need("model_type")
    spec = _read(reader, family, str(family_name), source)
    assert spec is not None or reader.missing
    if spec is None:
        raise ModelError(f"{name}: missing {', '.join(reader.missing)}")
    return spec


def _read(reader: _Reader, family: _Family, family_name: str, source: str) -> ModelSpec | None:
    """The model, or None when a needed field is missing: the reader then lists them all."""
    activation = reader.config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"{reader.name}: hidden_act {shown(activation)} is not silu, the kernels compute SwiGLU")
    if reader.flag("mlp_bias"):
        raise ModelError(f"{reader.name}: mlp_bias is true, the kernels compute a SwiGLU without bias")
    layers = reader.need_integer("num_hidden_layers", "layers")
    hidden = reader.need_integer("hidden_size", "hidden")
    q_heads = reader.need_integer("num_attention_heads", "q_heads")
    vocab = reader.need_integer("vocab_size", "vocab")
    kv_heads = reader.integer("num_key_value_heads", "kv_heads", q_heads)
    if family.kv_heads_required:
        reader.need("num_key_value_heads")
    experts = top_k = moe_inter = shared_inter = 0
    dense_layers = layers
    if family.experts_field is not None:
        experts = reader.need_integer(_experts_field(reader, family.experts_field), "experts")
        top_k = reader.need_integer("num_experts_per_tok", "top_k")
        moe_inter = reader.need_integer(family.moe_inter_field, "moe_inter")
        dense_layers = 0 if family.inter_field is None else _dense_layers(reader, layers)
    if family.has_shared_expert:
        shared_inter = reader.need_integer("shared_expert_intermediate_size", "shared_inter")
    inter = 0
    if family.inter_field is not None and dense_layers:
        inter = reader.need_integer(family.inter_field, "inter")
    if reader.missing:
        return None
    if not reader.config.get("head_dim") and hidden % q_heads:
        raise ModelError(
            f"{reader.name}: hidden_size {hidden} is no multiple of {q_heads} heads and head_dim is absent"
        )
    window, window_layers = _window(reader, family, layers)
    return ModelSpec(
        name=reader.name,
        family=family_name,
        source=source,
        layers=layers,
        hidden=hidden,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=reader.integer("head_dim", "head_dim", hidden // q_heads),
        vocab=vocab,
        dense_layers=dense_layers,
        inter=inter,
        qkv_bias=reader.flag_of(family.qkv_bias, default=family_name == "qwen2_moe"),
        o_bias=reader.flag_of(family.o_bias),
        qk_norm=family.qk_norm,
        window=window,
        window_layers=window_layers,
        experts=experts if dense_layers < layers else 0,
        top_k=top_k if dense_layers < layers else 0,
        moe_inter=moe_inter if dense_layers < layers else 0,
        renormalize=dense_layers < layers and (family.always_renormalizes or reader.flag("norm_topk_prob")),
        shared_inter=shared_inter if dense_layers < layers else 0,
        tied_embeddings=reader.flag("tie_word_embeddings"),
    )


def _experts_field(reader: _Reader, usual: str) -> str:
    """The name under which this config has its experts: transformers 5 saves Qwen3-MoE's under Mixtral's name."""
    known = (usual, "num_experts", "num_local_experts")
    return next((name for name in known if reader.config.get(name) is not None), usual)


def _dense_layers(reader: _Reader, layers: int) -> int:
    """Layers without experts: those in `mlp_only_layers`, and all but every `decoder_sparse_step`-th."""
    step = reader.integer("decoder_sparse_step", "layers", 1)
    named = reader.integers("mlp_only_layers")
    return sum(1 for layer in range(layers) if layer in named or (layer + 1) % step)


def _window(reader: _Reader, family: _Family, layers: int) -> tuple[int, int]:
    """The sliding window and how many layers use it; (0, 0) where every layer sees everything."""
    window = reader.integer("sliding_window", "window", 0)
    if not window or (family.window_switch and not reader.flag("use_sliding_window")):
        return 0, 0
    kinds = reader.config.get("layer_types")
    first_full = reader.integer("max_window_layers", "window_layers", min(28, layers))
    if isinstance(kinds, list):
        count = min(kinds.count("sliding_attention"), layers)
    elif family.window_rule == "from":
        count = max(0, layers - first_full)
    elif family.window_rule == "even_below":
        count = sum(1 for layer in range(min(first_full, layers)) if layer % 2 == 0)
    else:
        count = layers
    return (window, count) if count else (0, 0)


class _Reader:
    """Typed access to a config; collects the names of needed fields that are absent."""

    def __init__(self, config: Mapping[Any, Any], name: str) -> None:
        self.config = config
        self.name = name
        self.missing: list[str] = []

    def need(self, key: str) -> None:
        """Note the key as missing where it is absent or null."""
        if self.config.get(key) is None and key not in self.missing:
            self.missing.append(key)

    def need_integer(self, key: str, limit: str) -> int:
        """An integer that must be there; 1 stands in for a missing one, which is noted."""
        self.need(key)
        return self.integer(key, limit, 1)

    def integer(self, key: str, limit: str, default: int) -> int:
        """An integer inside `LIMITS[limit]`. A size that may be 0 in a ModelSpec may be 0 here too."""
        value = self.config.get(key)
        if value is None:
            return default
        low, high = LIMITS[limit]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"{self.name}: {key} is {shown(value)}, expected an integer {low}..{high}")
        if not low <= value <= high:
            raise ModelError(f"{self.name}: {key} {shown(value)} is outside {low}..{high}")
        return value

    def integers(self, key: str) -> frozenset[int]:
        """A list of layer numbers, empty where absent."""
        value = self.config.get(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise ModelError(f"{self.name}: {key} is {shown(value)}, expected a list of layer numbers")
        return frozenset(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean, `default` where absent."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"{self.name}: {key} is {shown(value)}, expected true or false")
        return value

    def flag_of(self, rule: bool | str, default: bool = False) -> bool:
        """A family's fixed answer, or what the config's field says."""
        return rule if isinstance(rule, bool) else self.flag(rule, default)


def shown(value: object, limit: int = 60) -> str:
    """A value in an error message: one line, at most `limit` characters."""
    # An integer of thousands of digits cannot be turned into text by Python itself.
    text = "a huge number" if isinstance(value, int) and value.bit_length() > 256 else ascii(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _kind(value: object) -> str:
    names = {
        list: "array",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
