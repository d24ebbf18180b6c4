"""Time to rewrite a deep model's graph: `python tests/compiler/bench_rewrite.py [--layers 64] [--profile]`.

Dynamo captures the model once; then the graph is rewritten several times, as the backend does it: copy, match, join,
decide, sweep, lint, recompile. CPU time, the best of the rounds. Sizes of the model are tiny: they do not matter.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from typing import Any

import torch
from transformers import logging

from paiton.compiler.options import Options
from paiton.compiler.passes import rewrite
from paiton.tests.compiler.tiny_models import MAIN_FAMILIES, make_tiny, static_cache, tokens

SMALL = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 64,
}  # fmt: skip


def captured(family: str, layers: int, *, decode: bool = False) -> tuple[torch.fx.GraphModule, float]:
    """Dynamo's graph of a deep model with tiny matrices, and how long it took; with `decode`, of a step."""
    changes = dict(SMALL)
    if family == "qwen3_moe":
        changes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    model = make_tiny(family, layers=layers, **changes)
    found: list[torch.fx.GraphModule] = []

    def keep(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        found.append(module)
        return lambda *inputs: module(*inputs)

    torch._dynamo.reset()
    inputs: dict[str, Any] = {"use_cache": False}
    ids = tokens(1, 4) % 64
    if decode:
        mask = torch.ones(1, 1, 1, 8, dtype=torch.bool)
        inputs = {
            "past_key_values": static_cache(model, 1, 8),
            "attention_mask": mask if family == "qwen3_moe" else {"full_attention": mask},
            "position_ids": torch.zeros(1, 1, dtype=torch.long),
        }
        ids = ids[:, :1]
    start = time.process_time()
    with torch.no_grad():
        torch.compile(model, backend=keep, fullgraph=True)(ids, **inputs)
    return found[0], time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--families", default=",".join(MAIN_FAMILIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sites", default="faster")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    print(f"torch {torch.__version__}, {arguments.layers} layers, CPU time")
    for family in arguments.families.split(","):
        module, dynamo_s = captured(family, arguments.layers)
        times = []
        for _ in range(arguments.rounds):
            start = time.process_time()
            done = rewrite(module, Options(sites=arguments.sites))
            times.append(time.process_time() - start)
        print(
            f"{family:10} {done.nodes_before} -> {done.nodes_after} nodes, {len(done.sites)} sites: "
            f"rewrite {min(times):.2f} s, Dynamo {dynamo_s:.2f} s",
            flush=True,
        )
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(rewrite, module, Options(sites=arguments.sites))
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
