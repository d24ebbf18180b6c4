"""What Inductor would need where one of our operations could stand: a small roofline model, never measured.

A site that is left alone becomes the kernels listed here, one entry for each that Inductor generates or calls. Time of
a kernel = launch + ramp + max(bytes / bandwidth, flops / peak), with the constants of the static model
(search_spaces/model/constants.py), so that the ramp and the launch of both sides are the same. Numbers of kernels were
counted in the Triton code that Inductor of torch 2.13 generates for the pieces, with the calls into libraries between
them. How well the libraries do is assumed, with the reason beside the number. Reads and writes count as if they went to
memory; what the caches keep between two kernels is not modelled, for either side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..search_spaces.arch import Device
from ..search_spaces.attention import AttentionDecodeProblem
from ..search_spaces.model.constants import constants_of, hbm_gbps
from ..search_spaces.problem import Problem

BIG_WEIGHT_BYTES = 100e6
SMALL_WEIGHT_BYTES = 20e6
GEMM_BANDWIDTH = {"big": 0.85, "middle": 0.75, "small": 0.60}
"""Part of the achievable bandwidth that a vendor's GEMM reads a weight with, few rows of x. Assumed: 70 to 90 % from
100 MB, much less below 20 MB. The one published point known (rocm-libraries, pull request 12329): hipBLASLt on an
MI300X reads 133 MB in 43.3 µs, 0.73 of 4.2 TB/s, and 2 GB at 0.97."""
GEMM_PEAK = 0.70
"""Part of the matrix peak of a vendor's GEMM with many rows (assumed)."""
GROUPED_PEAK = 0.50
"""The same of torch's grouped GEMM, whose groups are of unequal sizes (assumed)."""
SDPA_BANDWIDTH = 0.60
"""Part of the achievable bandwidth of SDPA with one query, if it fills the device (assumed)."""
SDPA_PEAK = 0.55
"""Part of the matrix peak of SDPA over a prompt (assumed; FlashAttention 2 and 3 publish 0.4 to 0.75 on Hopper)."""
MASKED_UNITS_PER_PROGRAM = 2.0
"""With a mask SDPA takes its memory-efficient kernel, one program for each sequence and head and no splits of the keys;
a program is assumed to draw at most the bandwidth share of this many compute units."""


@dataclass(frozen=True)
class Kernel:
    """One or several launches of what Inductor generates or calls.

    `bandwidth` and `peak` are the parts of the achievable bandwidth and of the matrix peak it reaches.
    """

    what: str
    bytes: float
    flops: float = 0.0
    bandwidth: float = 1.0
    peak: float = GEMM_PEAK
    launches: int = 1


@dataclass(frozen=True)
class Setting:
    """What of the graph around a site changes Inductor's work, and the problem of our kernel does not say."""

    sequences: int = 1
    """Sequences of a prompt; our prefill problem is one of them."""
    keys: int = 0
    """Keys that a prompt's queries are offered: the length of a static cache, whatever it holds; 0: its own."""
    repeats_kv: bool = False
    """K and V are written out once for every query head before SDPA."""
    has_mask: bool = False
    gathers_weights: bool = False
    """The experts' weights are gathered for a batched product, as Hugging Face decodes on a GPU."""
    sum_is_fused: bool = False
    """A norm reads the sum, and Inductor adds in that kernel."""


@dataclass(frozen=True)
class Expected:
    """Inductor's side of a site."""

    us: float
    kernels: tuple[Kernel, ...]

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)


def expected(pattern: str, problem: Problem, setting: Setting, device: Device) -> Expected:
    """What the site of a pattern costs if it is left to Inductor. Raises KeyError for a pattern without an entry."""
    kernels = _KERNELS[pattern](problem, setting, device)
    return Expected(sum(kernel_us(kernel, device, problem.dtype) for kernel in kernels), kernels)


def kernel_us(kernel: Kernel, device: Device, dtype: str) -> float:
    """Modelled time of a kernel in microseconds, launches included."""
    constants = constants_of(device)
    ramp = constants.prologue_us + constants.last_level_ns * 1e-3 + constants.epilogue_us
    fixed = kernel.launches * (constants.launch_us + ramp)
    by_bytes = kernel.bytes / (hbm_gbps(device, constants) * kernel.bandwidth * 1e3)
    tflops = device.peak_tflops.get(dtype, device.peak_tflops["fp32"])
    return fixed + max(by_bytes, kernel.flops / (tflops * kernel.peak * 1e6))


def beside_us(pattern: str, problem: Problem, setting: Setting, device: Device) -> float:
    """What Inductor still does where the parts of a site are operations of ours and the site itself is not: 0 for a
    pattern without parts. Nothing of it can be fused into our operations."""
    found = _BESIDE.get(pattern)
    return sum(kernel_us(kernel, device, problem.dtype) for kernel in found(problem)) if found else 0.0


def patterns() -> tuple[str, ...]:
    """The patterns with an entry."""
    return tuple(_KERNELS)


def _gemm(what: str, rows: int, n: int, k: int, itemsize: int) -> Kernel:
    """A call of the vendor's library: every weight read once."""
    weight = float(n * k * itemsize)
    size = "big" if weight >= BIG_WEIGHT_BYTES else "middle" if weight >= SMALL_WEIGHT_BYTES else "small"
    moved = weight + rows * (n + k) * itemsize
    return Kernel(what, moved, 2.0 * rows * n * k, bandwidth=GEMM_BANDWIDTH[size])


def _rms_norm(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    """One generated kernel (counted), as ours: only a better one can win."""
    moved = (2 * problem.batch + 1) * problem.hidden * problem.itemsize
    return (Kernel("norm", moved),)


def _add_rms_norm(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    """One generated kernel (counted): Inductor fuses the add into the norm by itself."""
    moved = (4 * problem.batch + 1) * problem.hidden * problem.itemsize
    return (Kernel("add and norm", moved),)


def _linear(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    """A library call; a bias is its epilogue. A residual is added by a kernel of its own, or in the norm that reads
    the sum: then it costs the traffic alone."""
    gemm = _gemm("linear", problem.batch, problem.n, problem.k, problem.itemsize)
    if not problem.residual:
        return (gemm,)
    return (gemm, _residual_add(problem.batch * problem.n * problem.itemsize, setting))


def _residual_add(bytes_of_one: float, setting: Setting) -> Kernel:
    """Two read, one written; a norm behind it reads the two by itself and writes the sum."""
    if setting.sum_is_fused:
        return Kernel("residual add, in the norm", 2 * bytes_of_one, launches=0)
    return Kernel("residual add", 3 * bytes_of_one)


def _linear_qkv(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    """Three library calls: Inductor joins products of one input only if weights are frozen, which they are not."""
    sizes = {"q": problem.n_q, "k": problem.n_kv, "v": problem.n_kv}
    return tuple(_gemm(name, problem.batch, n, problem.k, problem.itemsize) for name, n in sizes.items())


def _linear_silu_mul(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    """Two library calls and one generated kernel for silu and mul."""
    gemms = [_gemm(name, problem.batch, problem.n, problem.k, problem.itemsize) for name in ("gate", "up")]
    return (*gemms, Kernel("silu, mul", 3.0 * problem.batch * problem.n * problem.itemsize))


def _qk_norm_rope(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    """One generated kernel each for q and k (counted), with or without the norm."""
    row = problem.batch * problem.head_dim * problem.itemsize
    return tuple(
        Kernel(f"{name} norm, rope", (2.0 * heads + 2) * row)
        for name, heads in (("q", problem.q_heads), ("k", problem.kv_heads))
    )


def _attention(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    """SDPA, a library call. repeat_kv is written out, a generated kernel each for K and V (counted); a boolean mask
    becomes an added one first, and takes SDPA off its flash kernel."""
    is_decode = isinstance(problem, AttentionDecodeProblem)
    sequences = problem.batch if is_decode else setting.sequences
    queries = 1 if is_decode else problem.batch
    keys = problem.context if is_decode else setting.keys or problem.batch
    one_head = float(sequences * keys * problem.head_dim * problem.itemsize)
    read_heads = problem.q_heads if setting.repeats_kv else problem.kv_heads
    found: list[Kernel] = []
    if setting.repeats_kv:
        copied = one_head * (problem.kv_heads + problem.q_heads)
        found += [Kernel("K repeated", copied), Kernel("V repeated", copied)]
    if setting.has_mask:
        found.append(Kernel("mask", float(sequences * queries * keys * (1 + problem.itemsize))))
    pairs = float(sequences * problem.q_heads * queries * keys)
    # Without a mask a prompt is causal, and the flash kernel leaves out the half that is not seen.
    seen = pairs if is_decode or setting.has_mask else pairs / 2
    width = SDPA_BANDWIDTH
    if setting.has_mask and is_decode:
        programs = sequences * problem.q_heads
        width *= min(1.0, MASKED_UNITS_PER_PROGRAM * programs / device.compute_units)
    query = 2.0 * sequences * queries * problem.q_heads * problem.head_dim * problem.itemsize
    moved = 2 * one_head * read_heads + query
    return (*found, Kernel("SDPA", moved, 4.0 * seen * problem.head_dim, bandwidth=width, peak=SDPA_PEAK))


def _attention_decode_fused(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    """As qk_norm_rope and attention; the new K is written by the kernel that rotates it, V by one more (counted)."""
    heads = _qk_norm_rope(problem, setting, device)
    value = Kernel("V written", 2.0 * problem.batch * problem.kv_heads * problem.head_dim * problem.itemsize)
    return (*heads, value, *_attention(problem, setting, device))


def _router(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    """Two generated kernels, softmax and what follows the top-k (counted), and topk: a radix selection and a sort."""
    logits, chosen = problem.batch * problem.experts, problem.batch * problem.top_k
    return (
        Kernel("softmax", float(logits * (problem.itemsize + 4))),
        Kernel("topk", float(logits * 4 + 2 * chosen * 12), launches=2),
        Kernel("weights", float(chosen * (4 + problem.itemsize))),
    )


def _experts(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    moe = _experts_gathered(problem) if setting.gathers_weights else _experts_grouped(problem)
    return tuple(moe)


def _experts_grouped(problem: Any) -> list[Kernel]:
    """torch's grouped GEMM, which prepares its arguments in a launch of its own; five generated kernels and histc's two
    around it (counted)."""
    size, pairs, hidden, inter = problem.itemsize, problem.pairs, problem.hidden, problem.inter
    return [
        Kernel("sort of the ids", 16.0 * pairs),
        Kernel("histogram, running sum", 16.0 * pairs + 8.0 * problem.experts, launches=3),
        Kernel("rows gathered", 2.0 * pairs * hidden * size),
        _grouped("gate and up", problem, 2 * inter, hidden),
        Kernel("silu, mul", 3.0 * pairs * inter * size),
        _grouped("down", problem, hidden, inter),
        Kernel("weights, inverse order, sum", 2.0 * (pairs + problem.batch) * hidden * size),
    ]


def _grouped(what: str, problem: Any, n: int, k: int) -> Kernel:
    moved = (problem.distinct_experts * n * k + problem.pairs * (n + k)) * problem.itemsize
    flops = 2.0 * problem.pairs * n * k
    return Kernel(what, moved, flops, bandwidth=GEMM_BANDWIDTH["middle"], peak=GROUPED_PEAK, launches=2)


def _experts_gathered(problem: Any) -> list[Kernel]:
    """Both weights gathered for every pair, written out and read again by a batched product: four generated kernels and
    two library calls (counted). Inductor's coordinate_descent_tuning would make a GEMV of gather and product; Hugging
    Face's mode does not set it."""
    size, pairs, hidden, inter = problem.itemsize, problem.pairs, problem.hidden, problem.inter
    w13, w2 = (float(pairs * n * k * size) for n, k in ((2 * inter, hidden), (hidden, inter)))
    return [
        Kernel("gate and up gathered", 2 * w13),
        Kernel("gate and up", w13, bandwidth=GEMM_BANDWIDTH["middle"]),
        Kernel("silu, mul", 3.0 * pairs * inter * size),
        Kernel("down gathered", 2 * w2),
        Kernel("down", w2, bandwidth=GEMM_BANDWIDTH["middle"]),
        Kernel("weights, sum", float((pairs + problem.batch) * hidden * size)),
    ]


def _experts_residual(problem: Any, setting: Setting, device: Device) -> tuple[Kernel, ...]:
    added = _residual_add(float(problem.batch * problem.hidden * problem.itemsize), setting)
    return (*_experts(problem, setting, device), added)


_KERNELS: Mapping[str, Callable[[Any, Setting, Device], tuple[Kernel, ...]]] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "linear": _linear,
    "linear_residual": _linear,
    "linear_qkv": _linear_qkv,
    "linear_silu_mul": _linear_silu_mul,
    "qk_norm_rope": _qk_norm_rope,
    "attention": _attention,
    "attention_cache": _attention_decode_fused,
    "router": _router,
    "experts": _experts,
    "experts_residual": _experts_residual,
}

_BESIDE: Mapping[str, Callable[[Any], tuple[Kernel, ...]]] = {
    "add_rms_norm": lambda p: (Kernel("residual add", 3.0 * p.batch * p.hidden * p.itemsize),),
    "linear_residual": lambda p: (Kernel("residual add", 3.0 * p.batch * p.n * p.itemsize),),
    "experts_residual": lambda p: (Kernel("residual add", 3.0 * p.batch * p.hidden * p.itemsize),),
    "qk_norm_rope": lambda p: tuple(
        Kernel(f"{name} rope", (2.0 * heads + 2) * p.batch * p.head_dim * p.itemsize)
        for name, heads in (("q", p.q_heads), ("k", p.kv_heads))
    ),
    "attention_cache": lambda p: tuple(
        Kernel(f"{name} written", 2.0 * p.batch * p.kv_heads * p.head_dim * p.itemsize) for name in ("K", "V")
    ),
}
