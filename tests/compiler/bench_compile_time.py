"""Compile time beside Inductor's: `python tests/compiler/bench_compile_time.py [--families qwen3_moe] [--layers 8,48]`.

A model with tiny matrices is compiled for a prompt, by Inductor alone and by this backend, each in a fresh process with
empty caches and one compile thread. CPU time of the process and of the C++ compilers it starts, from the first call to
its end, so that another process on the machine does not count; Dynamo's part is in both. `--sites all` keeps every
operator, as a GPU would.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile

from transformers import logging

from paiton.tests.compiler.tiny_models import MAIN_FAMILIES, make_tiny, tokens

SMALL = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 64,
}  # fmt: skip
SMALL_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
BACKENDS = ("inductor", "paiton")


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def compile_once(family: str, layers: int, backend: str, sites: str) -> float:
    """CPU seconds of the first call."""
    import torch

    from paiton.compiler.registration import register

    register()
    model = make_tiny(family, layers=layers, **SMALL, **(SMALL_EXPERTS if family == "qwen3_moe" else {}))
    options = {"paiton.sites": sites} if backend == "paiton" else None
    compiled = torch.compile(model, backend=backend, options=options)
    start = _cpu_s()
    with torch.no_grad():
        compiled(tokens(2, 8) % 64, use_cache=False)
    return _cpu_s() - start


def measured(family: str, layers: int, backend: str, sites: str) -> float:
    """`compile_once` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--child", family, str(layers), backend, sites],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", default=",".join(MAIN_FAMILIES))
    parser.add_argument("--layers", default="8,48")
    parser.add_argument("--sites", default="faster", choices=("faster", "all"))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    if arguments.child:
        family, layers, backend, sites = arguments.child
        print(compile_once(family, int(layers), backend, sites))
        return
    for family in arguments.families.split(","):
        for layers in map(int, arguments.layers.split(",")):
            theirs, ours = (measured(family, layers, backend, arguments.sites) for backend in BACKENDS)
            print(
                f"{family:10} {layers:3} layers, sites {arguments.sites:6}: Inductor {theirs:7.1f} s   "
                f"paiton {ours:7.1f} s   ratio {ours / theirs:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
