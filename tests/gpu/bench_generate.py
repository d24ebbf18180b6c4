"""Decode through generate(): tokens per second of eager, Inductor and Paiton on one GPU, random weights in bf16.

    python tests/gpu/bench_generate.py Qwen/Qwen3-30B-A3B --layers 12 --batch 8

Interleaved rounds of the three, the median of each; the first round compiles and is not counted. `--layers` keeps a run
short: time per layer is the same. The configuration comes from the hub or from a folder with a config.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

import paiton
from paiton.compiler.report import history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()

    config = AutoConfig.from_pretrained(asked.model)
    if asked.layers:
        config.num_hidden_layers = asked.layers
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    ids = torch.randint(3, config.vocab_size, (asked.batch, asked.prompt), device="cuda")
    ways = {"eager": _plain, "inductor": _inductor, "paiton": _paiton}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(asked.rounds + 1):
        for name, prepare in ways.items():
            prepare(model)
            # The prompt's time is in both. One length of the cache, so that each way compiles its graphs once.
            length = asked.prompt + asked.new
            seconds = _seconds(model, ids, asked.new, length) - _seconds(model, ids, 1, length)
            if number:
                times[name].append(asked.batch * (asked.new - 1) / seconds)
    for name, found in times.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"{name:9} {statistics.median(found):9.1f} tokens/s  ({spread}, {asked.rounds} rounds)")
    print("\n".join(report.table() for report in history.reports()[-2:]))


def _seconds(model: Any, ids: torch.Tensor, new: int, length: int) -> float:
    cache = StaticCache(config=model.config, max_cache_len=length)
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.no_grad():
        model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, past_key_values=cache)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _plain(model: Any) -> None:
    paiton.uncompile(model)
    model._compiled_call_impl = None
    model.generation_config.disable_compile = True


def _inductor(model: Any) -> None:
    _plain(model)
    model.compile(mode="reduce-overhead")


def _paiton(model: Any) -> None:
    _plain(model)
    paiton.compile(model, mode="reduce-overhead", cache=None)


if __name__ == "__main__":
    main()
