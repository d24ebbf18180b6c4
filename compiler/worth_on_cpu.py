"""Which sites stay on a CPU, where no kernel of ours runs: those whose plain body was measured beside Inductor's code.

Measured with `python tests/compiler/bench_cpu_sites.py` (torch 2.13, one thread of 2 shared cores, hidden 512 and 1024,
21 November 2026; ours / Inductor). Decode attention 0.10 to 0.63 in bf16 or under a mask and 0.71 to 1.11 in fp32
without one, where a single sequence is the loser; prefill attention 0.97 to 1.09. Whole models (bench_cpu.py, hidden
512, 4 layers) say of a single fp32 sequence under a mask: a step takes 0.93 to 0.96 of Inductor's time with a cache of
512 tokens, 0.99 to 1.05 with one of 128. Experts 0.81 to 1.01 in fp32, 0.83 to 0.97 in bf16 but for 2 to 8 tokens (1.01
to 1.04). Everything else loses: router 1.2 to 1.8, norms 2.3 to 3.4, RoPE 3.7 to 6, linear layers 1.0 to 1.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .hints import size_hint

_Args = Sequence[Any]
_FEW_TOKENS = range(2, 33)
"""Where bf16 experts lose, up to the next size measured to win."""
_LONG = 512
"""Keys from which a single fp32 sequence under a mask was measured to win."""


def _attention(args: _Args) -> bool:
    q, k, mask = args[0], args[1], args[3]
    if size_hint(q.shape[2]) != 1:
        return False
    if q.dtype is not torch.float32 or size_hint(q.shape[0]) > 1:
        return True
    return mask is not None and size_hint(k.shape[2]) >= _LONG


def _experts(args: _Args) -> bool:
    x = args[0]
    return x.dtype is torch.float32 or size_hint(x.shape[0]) not in _FEW_TOKENS


_STAYS: Mapping[str, Callable[[_Args], bool]] = {"attention": _attention, "experts": _experts}


def stays_on_cpu(pattern: str, args: _Args) -> bool:
    """Whether a site of this pattern stays; `args` are the fake arguments of its operator. Sizes count by hint."""
    rule = _STAYS.get(pattern)
    return rule is not None and rule(args)
