"""CPU inference beside plain Inductor's: `python tests/compiler/bench_cpu.py [--families qwen3_moe] [--layers 4]`.

A model with a static cache, compiled by Inductor alone and by this backend with its defaults; prompts and steps run in
interleaved rounds on the same inputs. CPU time of one thread, so that another process on the machine does not count;
the best of the rounds, and the median of the ratios of each round. A ratio of at most 1 is the promise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import logging

from paiton.compiler.registration import register
from paiton.compiler.report import history
from paiton.tests.compiler.tiny_models import MAIN_FAMILIES, make_tiny, static_cache, tokens

BACKENDS = ("inductor", "paiton")
BATCH, PROMPT, CACHE = 1, 64, 512


def sizes(family: str, hidden: int) -> dict[str, int]:
    """Small, but with weights that no cache near the core holds."""
    common = {
        "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 256), "vocab_size": 2048,
    }  # fmt: skip
    if family != "qwen2":
        common["head_dim"] = 64
    if family == "qwen3_moe":
        common |= {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": hidden // 2}
    return common


def calls(model: Any, compiled: Any, batch: int, keys: int = CACHE) -> dict[str, Callable[[], Any]]:
    """A prompt and a step, each on a cache that has room for both."""
    cache = static_cache(model, batch, keys)
    is_moe = hasattr(model.config, "num_experts")

    def call(start: int, length: int) -> Callable[[], Any]:
        mask = torch.ones(length, keys, dtype=torch.bool).tril(start).expand(batch, 1, -1, -1).contiguous()
        ids = tokens(batch, length)
        positions = torch.arange(start, start + length).expand(batch, -1)
        attention_mask = mask if is_moe else {"full_attention": mask}

        def run() -> Any:
            for layer in cache.layers:
                layer.cumulative_length.fill_(start)
            return compiled(ids, past_key_values=cache, attention_mask=attention_mask, position_ids=positions).logits

        return run

    return {"prompt": call(0, PROMPT), "step": call(PROMPT, 1)}


def times_us(functions: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """CPU time of one call of each function, per round of about 50 ms each."""
    loops = []
    for function in functions:
        function()
        start = time.thread_time()
        function()
        loops.append(max(1, int(0.05 / max(time.thread_time() - start, 1e-6))))
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for each, function, count in zip(found, functions, loops, strict=True):
            start = time.thread_time()
            for _ in range(count):
                function()
            each.append((time.thread_time() - start) / count * 1e6)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", default=",".join(MAIN_FAMILIES))
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--cache", type=int, default=CACHE, help="tokens that the static cache has room for")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtypes", default="float32")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    register()
    torch.set_num_threads(1)
    sizes_said = f"hidden {arguments.hidden}, {arguments.layers} layers, batch {arguments.batch}"
    print(f"torch {torch.__version__}, {sizes_said}, a cache of {arguments.cache}")
    for family in arguments.families.split(","):
        for dtype in arguments.dtypes.split(","):
            torch._dynamo.reset()
            history.clear()
            model = make_tiny(family, getattr(torch, dtype), arguments.layers, **sizes(family, arguments.hidden))
            both = [
                calls(model, torch.compile(model, backend=name), arguments.batch, arguments.cache) for name in BACKENDS
            ]
            for what in ("prompt", "step"):
                theirs, ours = (each[what]() for each in both)
                torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
                theirs_us, ours_us = times_us([each[what] for each in both], arguments.rounds)
                ratio = statistics.median(b / a for a, b in zip(theirs_us, ours_us, strict=True))
                print(
                    f"{family:10} {dtype:9} {what:7} Inductor {min(theirs_us):9.1f} us   ours {min(ours_us):9.1f} us   "
                    f"best/best {min(ours_us) / min(theirs_us):.3f}   median ratio {ratio:.3f}",
                    flush=True,
                )
            kept = [dict(report.counts()) for report in history.reports()]
            print(f"{'':10} {'':9} kept: {kept}", flush=True)


if __name__ == "__main__":
    main()
