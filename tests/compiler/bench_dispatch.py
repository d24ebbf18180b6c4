"""What a call of our operators costs before any work is done: `python tests/compiler/bench_dispatch.py`.

An operator whose body returns at once, beside the same function called plainly, as `torch.library.custom_op`, and as a
`Library.impl` without our gradient guard; then the answer to a known question, which a launcher asks on every call.
CPU time of one thread in microseconds, best and median of interleaved rounds. Targets: 6 us a call, 1 us a look-up.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import torch

from paiton.compiler import selection
from paiton.compiler.ops.define import define
from paiton.compiler.ops.moe import asks_experts
from paiton.compiler.ops.norm import asks_rms_norm

CALLS, ROUNDS = 2000, 31
Tensor = torch.Tensor
SIGNATURE = "(Tensor x, Tensor weight, float eps) -> Tensor"


def nothing(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The least that a functional operator can do: a fresh output."""
    return torch.empty_like(x)


def measured(functions: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Microseconds a call, one number a round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.thread_time()
            for _ in range(CALLS):
                function()
            times[name].append((time.thread_time() - start) / CALLS * 1e6)
    return times


def show(title: str, functions: dict[str, Callable[[], Any]], least: str | None = None) -> None:
    times = measured(functions)
    print(title)
    for name, each in times.items():
        extra = f"   over {least}: {min(each) - min(times[least]):5.2f}" if least and name != least else ""
        print(f"  {name:42} best {min(each):6.2f}   median {median(each):6.2f}{extra}")


def main() -> None:
    torch.set_num_threads(1)
    operator = define(f"bench_nothing{SIGNATURE}", nothing)
    operator.body(nothing)
    library = torch.library.Library("paiton_bench", "FRAGMENT")
    library.define(f"bare{SIGNATURE}")
    library.impl("bare", nothing, "CompositeExplicitAutograd")
    custom = torch.library.custom_op("paiton_bench::custom", nothing, mutates_args=(), schema=SIGNATURE)
    bare = torch.ops.paiton_bench.bare.default
    modes: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "gradients on, none required": torch.enable_grad,
    }
    for mode, context in modes.items():
        with context():
            x, weight = torch.randn(4, 64), torch.randn(64)
            show(
                f"a call ({mode}), us",
                {
                    "plain Python": lambda: nothing(x, weight, 1e-6),  # noqa: B023  called in this iteration
                    "paiton operator": lambda: operator.overload(x, weight, 1e-6),  # noqa: B023
                    "Library.impl": lambda: bare(x, weight, 1e-6),  # noqa: B023
                    "custom_op": lambda: custom(x, weight, 1e-6),  # noqa: B023
                },
                "plain Python",
            )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        os.environ["PAITON_DB"] = os.path.join(folder, "none.db")
        x, weight = torch.randn(4, 64), torch.randn(64)
        moe = (
            torch.randn(4, 64),
            torch.randn(8, 64, 64),
            torch.randn(8, 64, 32),
            torch.rand(4, 2),
            torch.ones(4, 2),
            None,
        )
        cpu, one, two = x.device, asks_rms_norm(x, weight, 1e-6), asks_experts(*moe)
        with selection.use_device("MI300X"):
            show(
                "a known question, us",
                {
                    "look-up, one kernel": lambda: selection.choose(one, cpu),
                    "look-up, two ways of three kernels": lambda: selection.choose(two, cpu),
                    "question and look-up, rms_norm": lambda: selection.choose(
                        asks_rms_norm(x, weight, 1e-6), x.device
                    ),
                    "question and look-up, experts": lambda: selection.choose(asks_experts(*moe), moe[0].device),
                },
            )


if __name__ == "__main__":
    main()
