"""Models of one layer that Triton's interpreter runs in seconds, and the calls that the tests make of them."""

from __future__ import annotations

from typing import Any

import torch

from .tiny_models import make_tiny, static_cache, tokens

BATCH, PROMPT, CACHE = 2, 5, 8
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64}
SMALL_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def small(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of family `family`."""
    sizes = SMALL | (SMALL_EXPERTS if family == "qwen3_moe" else {})
    return make_tiny(family, dtype, layers=1, **sizes)


def prompt_and_step(model: Any, config_of: Any) -> list[torch.Tensor]:
    """Logits of a prompt and of one step with a static cache, and what the cache then holds."""
    ids, cache = tokens(BATCH, PROMPT + 1) % 61 + 3, static_cache(config_of, BATCH, CACHE)
    found = []
    for start, end in ((0, PROMPT), (PROMPT, PROMPT + 1)):
        mask = torch.ones(end - start, CACHE, dtype=torch.bool).tril(start).expand(BATCH, 1, -1, -1)
        inputs = {
            "attention_mask": mask if hasattr(config_of.config, "num_experts") else {"full_attention": mask},
            "position_ids": torch.arange(start, end).expand(BATCH, -1),
        }
        found.append(model(ids[:, start:end], past_key_values=cache, **inputs).logits)
    return found + [each for layer in cache.layers for each in (layer.keys, layer.values)]
