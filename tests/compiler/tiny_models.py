"""Tiny random models of many Hugging Face families, with nothing trivial in them: a wrong rewrite shows in the values.

Norm weights are not one, biases are not zero, and there are fewer key/value heads than query heads. The embedding's
size and the vocabulary are small enough for a forward pass in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

VOCABULARY = 256
HEAD_DIM = 32

_VOCABULARY = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_COMMON = _VOCABULARY | {
    "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
_HEADS = {"head_dim": HEAD_DIM}
_EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4}
_LOCAL_EXPERTS = {"num_local_experts": 16, "num_experts_per_tok": 4}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {},
    "qwen3": _HEADS,
    "qwen3_moe": _HEADS | _EXPERTS | {"moe_intermediate_size": 64, "norm_topk_prob": True},
    "mixtral": _HEADS | _LOCAL_EXPERTS | {"intermediate_size": 64},
    "qwen2_moe": _EXPERTS | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
    "olmoe": _EXPERTS | {"intermediate_size": 64},
    "llama": _HEADS,
    "mistral": _HEADS,
    "gemma2": _HEADS | {"query_pre_attn_scalar": HEAD_DIM},
    "gemma3_text": _HEADS | {"query_pre_attn_scalar": HEAD_DIM},
    "gpt_oss": _HEADS | _LOCAL_EXPERTS | {"intermediate_size": 64},
    "olmo2": {},
    "phi3": {},
    "granite": {},
    "granitemoe": _LOCAL_EXPERTS | {"intermediate_size": 64},
    "glm4": _HEADS,
    "glm4_moe": _HEADS | {
        "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "first_k_dense_replace": 1,
    },
    "cohere2": _HEADS,
    "smollm3": _HEADS,
    "starcoder2": {},
    "qwen3_next": _HEADS | _EXPERTS | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96} | {
        "full_attention_interval": 2,
    },
    "deepseek_v3": {
        "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 2, "topk_group": 1,
        "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
        "first_k_dense_replace": 1, "num_key_value_heads": 8,
    },
    "gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 4},
    "opt": {"hidden_size": 128, "num_attention_heads": 4, "ffn_dim": 192, "word_embed_proj_dim": 128},
    "bloom": {"hidden_size": 128, "n_layer": 2, "n_head": 4},
}  # fmt: skip
"""What each family adds to or changes in the common sizes."""

MAIN_FAMILIES = ("qwen2", "qwen3", "qwen3_moe")
_OWN_SIZES = ("gpt2", "opt", "bloom")


def make_tiny(
    kind: str,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    seed: int = 0,
    *,
    device: str = "cpu",
    experts_implementation: str | None = None,
    **changes: Any,
) -> Any:
    """A model of family `kind` in eval mode with random weights, the same for the same seed.

    `experts_implementation` is "grouped_mm", "batched_mm" or "eager"; `changes` are fields of the configuration.
    """
    sizes: dict[str, Any] = dict(_VOCABULARY) if kind in _OWN_SIZES else dict(_COMMON)
    sizes |= FAMILIES[kind] | {"num_hidden_layers": layers} | changes
    if kind in ("gpt2", "bloom"):
        sizes["n_layer"] = sizes.pop("num_hidden_layers")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32)
    _randomise(model, seed)
    # A random model must be able to go on for as many tokens as a test wants.
    model.generation_config.eos_token_id = None
    if experts_implementation is not None:
        model.set_experts_implementation(experts_implementation)
    return model.to(dtype=dtype).to(device=device).eval()


def _randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and "norm" in name:
                # Gemma's norms multiply by 1 + weight; both are far from trivial with either reading.
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise)
            elif name.endswith(("gate.weight", "router.weight")):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(parameter.shape[-1] ** -0.5 * noise)


def tokens(batch: int = 2, length: int = 16, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    """Random token ids [batch, length], none of them special."""
    if device == "meta":
        return torch.zeros(batch, length, dtype=torch.long, device=device)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator).to(device)


def static_cache(model: Any, batch: int = 2, length: int = 32) -> StaticCache:
    """An empty static cache for `model`, already allocated: a graph then takes its tensors as inputs."""
    config = model.config
    cache = StaticCache(config=config, max_cache_len=length)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_key_value_heads
    cache.early_initialization(
        batch_size=batch, num_heads=heads, head_dim=head_dim, dtype=model.dtype, device=model.device
    )
    return cache
