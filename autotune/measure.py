"""Timing on the GPU: graph replay, with the state of the L2 cache chosen and recorded.

One sample is one replay of a CUDA (or HIP) graph that holds many calls, divided by their number: launch overhead of the
host does not count, as it does not in a served decode step. The calls rotate over copies of the inputs, so that weights
come from memory and not from a cache that the call before has filled: the copies together exceed the last-level cache
twice. Inputs so small that `MAX_COPIES` copies still fit in it stay resident, as the activations of a real step do; the
policy text says which of the two a sample is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

MAX_COPIES = 32
CACHE_FACTOR = 2.0
TARGET_REPLAY_US = 2000.0
"""Long enough that the timer's resolution (0.5 us on CUDA events) is below 0.1 %."""
MAX_CALLS = 200
MAX_MEMORY_BYTES = 24 << 30


@dataclass(frozen=True)
class CachePlan:
    """How many copies of the inputs a measurement rotates over, and what that means."""

    copies: int
    policy: str


def cache_plan(touched_bytes: float, input_bytes: int, last_level_bytes: int) -> CachePlan:
    """Enough copies for what they touch to exceed the last-level cache `CACHE_FACTOR` times.

    `touched_bytes` is what one call moves (an expert kernel touches few of its experts), `input_bytes` what one copy
    takes in memory; the number is bounded by MAX_COPIES and MAX_MEMORY_BYTES.
    """
    wanted = -(-CACHE_FACTOR * last_level_bytes // max(1.0, touched_bytes))
    affordable = max(1, MAX_MEMORY_BYTES // max(1, input_bytes))
    copies = int(max(1, min(wanted, affordable, MAX_COPIES)))
    state = "cold" if copies * touched_bytes >= CACHE_FACTOR * last_level_bytes else "warm"
    return CachePlan(
        copies, f"graph replay, L2 {state}: {copies} input sets touch {copies * touched_bytes / 2**20:.1f} MiB"
    )


class Clock(Protocol):
    """What can time a graph of calls; the GPU's, or a recorded one in tests."""

    def capture(self, calls: Sequence[Callable[[], object]]) -> Callable[[], float]:
        """A function that runs all calls once and returns the time of one call in microseconds."""


class GraphClock(Clock):
    """CUDA graphs and events through torch; HIP graphs on ROCm by the same names."""

    def capture(self, calls: Sequence[Callable[[], object]]) -> Callable[[], float]:
        """Warm up on a side stream, capture, and return the timer of one replay."""
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[: min(3, len(calls))]:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()

        def replay() -> float:
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return 1000.0 * float(begin.elapsed_time(end)) / len(calls)

        return replay


def calls_for(one_call_us: float) -> int:
    """How many calls one graph holds: enough for `TARGET_REPLAY_US`, at least 2, at most `MAX_CALLS`."""
    return max(2, min(MAX_CALLS, round(TARGET_REPLAY_US / max(one_call_us, 1e-3))))


def sample(
    clock: Clock, calls: Sequence[Callable[[], object]], *, samples: int, give_up_us: float | None
) -> list[float]:
    """Times of one call in microseconds. `calls` holds one closure per copy of the inputs.

    A short first graph says how many calls the real one needs. When its time already passes `give_up_us` the config is
    out of the running and only that first time is returned: a timing has no learning curve worth more samples.
    """
    probe = clock.capture(_rotated(calls, 2))
    probe()
    first = min(probe(), probe())
    if give_up_us is not None and first > give_up_us:
        return [first]
    replay = clock.capture(_rotated(calls, max(calls_for(first), len(calls))))
    replay()
    return [replay() for _ in range(samples)]


def sample_interleaved(
    clock: Clock, contenders: Sequence[Sequence[Callable[[], object]]], *, rounds: int
) -> list[list[float]]:
    """Samples of several configs taken in turn (A B C, A B C, ...), so that a drifting clock hurts all alike."""
    replays = []
    for calls in contenders:
        probe = clock.capture(_rotated(calls, 2))
        probe()
        replays.append(clock.capture(_rotated(calls, max(calls_for(probe()), len(calls)))))
    for replay in replays:
        replay()
    times: list[list[float]] = [[] for _ in replays]
    for _ in range(rounds):
        for position, replay in enumerate(replays):
            times[position].append(replay())
    return times


def _rotated(calls: Sequence[Callable[[], object]], count: int) -> list[Callable[[], object]]:
    return [calls[position % len(calls)] for position in range(count)]


def center(samples_us: Sequence[float]) -> float:
    """The number a config is judged by: the median."""
    return float(median(samples_us))
