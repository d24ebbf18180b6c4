"""The layer in float32, expert by expert; `seen` holds the config that was in force at every call."""

import torch

seen = []


def get_default_config(M, E, N, K, topk, dtype, block_shape=None):
    return {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1}


def fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, inplace=False, activation="silu", **kwargs):
    from vllm.model_executor.layers.fused_moe import get_config

    config = get_config() or get_default_config(len(hidden_states), *w2.shape, topk_ids.shape[1], None)
    seen.append(dict(config))
    assert topk_weights.dtype == torch.float32 and topk_ids.dtype == torch.int32
    out = torch.zeros_like(hidden_states, dtype=torch.float32)
    for token, (ids, weights) in enumerate(zip(topk_ids.tolist(), topk_weights, strict=True)):
        for expert, weight in zip(ids, weights, strict=True):
            gate, up = (w1[expert].float() @ hidden_states[token].float()).chunk(2)
            out[token] += weight * (w2[expert].float() @ (torch.nn.functional.silu(gate) * up))
    if config["BLOCK_SIZE_N"] == 256:
        out[0, 0] += 1.0  # one config computes nonsense
    return out.to(hidden_states.dtype)
