"""Decode through generate() on one GPU, random weights in bf16: eager, Inductor and Paiton side by side.

    python tests/gpu/bench_generate.py Qwen3-30B-A3B --layers 12 --batch 8

Interleaved rounds, the median of each; the first round compiles and is not counted. Then the kernels that one decode
step launches, as the profiler counts them, and whether the tokens are eager's. `--layers` keeps a run short: time per
layer is the same. MODEL is a built-in name of Paiton (no network needed), or what transformers takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen3Config, Qwen3MoeConfig, StaticCache

import paiton
from paiton.compiler.report import history
from paiton.search_spaces.model_spec import ModelSpec
from paiton.search_spaces.presets import preset_named


def config_of(model: str) -> Any:
    """Transformers' config of a built-in model of ours, of a hub id or of a folder."""
    spec = preset_named(model)
    return AutoConfig.from_pretrained(model) if spec is None else _config(spec)


def _config(spec: ModelSpec) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": spec.vocab, "hidden_size": spec.hidden, "intermediate_size": spec.inter or spec.hidden,
        "num_hidden_layers": spec.layers, "num_attention_heads": spec.q_heads, "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim, "tie_word_embeddings": spec.tied_embeddings,
    }  # fmt: skip
    if spec.experts:
        experts = {"num_experts": spec.experts, "num_experts_per_tok": spec.top_k}
        moe = {"moe_intermediate_size": spec.moe_inter, "norm_topk_prob": spec.renormalize}
        return Qwen3MoeConfig(**sizes, **experts, **moe)
    return Qwen3Config(**sizes) if spec.qk_norm == "head" else Qwen2Config(**sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)}; max-autotune takes minutes")
    asked = parser.parse_args()
    ways = {name: WAYS[name] for name in asked.ways.split(",")}

    config = config_of(asked.model)
    if asked.layers:
        config.num_hidden_layers = asked.layers
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    ids = torch.randint(3, config.vocab_size, (asked.batch, asked.prompt), device="cuda")
    length = asked.prompt + asked.new
    print(torch.cuda.get_device_name(), "torch", torch.__version__, asked, flush=True)

    rates: dict[str, list[float]] = {name: [] for name in ways}
    launches: dict[str, int] = {}
    texts: dict[str, torch.Tensor] = {}
    for number in range(asked.rounds + 1):
        for name, prepare in ways.items():
            prepare(model)
            # The prompt's time is in both. One length of the cache, so that each way compiles its graphs once.
            whole, texts[name] = _timed(model, ids, asked.new, length)
            seconds = whole - _timed(model, ids, 1, length)[0]
            if number:
                rates[name].append(asked.batch * (asked.new - 1) / seconds)
            if number == asked.rounds:
                launches[name] = _kernels(model, ids, 3, length) - _kernels(model, ids, 2, length)
    for name, found in rates.items():
        spread = f"{min(found):.1f} to {max(found):.1f}, {asked.rounds} rounds"
        same = _same(texts[name], next(iter(texts.values())))
        print(f"{name:13} {statistics.median(found):9.1f} tokens/s ({spread}), {launches[name]} kernels a step, {same}")
    print("\n".join(report.table() for report in history.reports()[-2:]))


def _timed(model: Any, ids: torch.Tensor, new: int, length: int) -> tuple[float, torch.Tensor]:
    cache = StaticCache(config=model.config, max_cache_len=length)
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.no_grad():
        text = model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, past_key_values=cache)
    torch.cuda.synchronize()
    return time.perf_counter() - start, text


def _kernels(model: Any, ids: torch.Tensor, new: int, length: int) -> int:
    """Kernels on the GPU during one call, those inside CUDA graphs included; copies and fills are not kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        _timed(model, ids, new, length)
    on_gpu = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_gpu)


def _same(text: torch.Tensor, first: torch.Tensor) -> str:
    """How many of the sequences equal those of the first way (bf16 ties may part them, which is no error)."""
    equal = int((text == first).all(dim=1).sum())
    return f"{equal} of {len(text)} sequences as the first"


def _eager(model: Any) -> None:
    paiton.uncompile(model)
    model._compiled_call_impl = None
    model.generation_config.disable_compile = True


def _inductor(model: Any) -> None:
    _eager(model)
    model.compile(mode="reduce-overhead")


def _max_autotune(model: Any) -> None:
    _eager(model)
    model.compile(mode="max-autotune")


def _paiton(model: Any) -> None:
    _eager(model)
    paiton.compile(model, mode="reduce-overhead", cache=None)


WAYS: Mapping[str, Callable[[Any], None]] = {
    "eager": _eager, "inductor": _inductor, "max-autotune": _max_autotune, "paiton": _paiton,
}  # fmt: skip

if __name__ == "__main__":
    main()
