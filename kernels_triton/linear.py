"""Skinny dense projections for decode: plain, with SiLU * mul, and q, k, v in one launch."""

from __future__ import annotations

import torch

from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.linear import (
    LINEAR,
    LINEAR_QKV,
    LINEAR_SILU_MUL,
    LinearProblem,
    LinearQkvProblem,
    LinearSiluMulProblem,
)
from .launch import Launch, Plan, compile_options
from .linear_kernels import _linear_kernel, _linear_reduce_kernel
from .spec import TORCH_DTYPES, KernelSpec, make_generator, random_tensor

Tensor = torch.Tensor

LOADS_IN_FLIGHT = 16
"""16-byte loads a thread of the FMA form may issue before it uses the first: 64 registers on any GPU."""
REDUCE_BLOCK = 1024


def _ceil_div(value: int, block: int) -> int:
    return -(-value // block)


def _check_x(x: Tensor) -> None:
    if x.dim() != 2 or x.stride(1) != 1 or x.dtype not in TORCH_DTYPES.values():
        raise ValueError(
            f"x is {tuple(x.shape)} {x.dtype} with strides {x.stride()}, "
            f"expected [tokens, k] of bf16, fp16 or fp32 with contiguous rows"
        )


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    """Weights and biases: contiguous, of x's dtype and device."""
    if tuple(tensor.shape) != shape or tensor.dtype != x.dtype or tensor.device != x.device:
        raise ValueError(
            f"{name} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, "
            f"expected {shape} {x.dtype} on {x.device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}, expected contiguous")


def _check_residual(residual: Tensor, x: Tensor, columns: int) -> None:
    if residual.shape != (x.shape[0], columns) or residual.dtype != x.dtype or residual.stride(1) != 1:
        raise ValueError(
            f"residual is {tuple(residual.shape)} {residual.dtype} with strides {residual.stride()}, "
            f"expected {(x.shape[0], columns)} {x.dtype} with contiguous rows"
        )


def plan_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *,
    config: Config, device: Device,
) -> Plan:  # fmt: skip
    """Plan of `linear`. Raises ValueError for shapes, dtypes or strides the kernel cannot take."""
    _check_x(x)
    n = weight.shape[0]
    _check("weight", weight, (n, x.shape[1]), x)
    if bias is not None:
        _check("bias", bias, (n,), x)
    if residual is not None:
        _check_residual(residual, x, n)
    pointers = {"w_ptr": weight, "bias_ptr": bias, "residual_ptr": residual}
    return _plan(x, pointers, n, 0, config, device)


def plan_linear_silu_mul(x: Tensor, gate_weight: Tensor, up_weight: Tensor, *, config: Config, device: Device) -> Plan:
    """Plan of `linear_silu_mul`. Raises ValueError for shapes, dtypes or strides the kernel cannot take."""
    _check_x(x)
    n = gate_weight.shape[0]
    _check("gate_weight", gate_weight, (n, x.shape[1]), x)
    _check("up_weight", up_weight, (n, x.shape[1]), x)
    return _plan(x, {"w_ptr": gate_weight, "up_ptr": up_weight}, n, 0, config, device)


def plan_linear_qkv(
    x: Tensor, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor,
    q_bias: Tensor | None = None, k_bias: Tensor | None = None, v_bias: Tensor | None = None, *,
    config: Config, device: Device,
) -> Plan:  # fmt: skip
    """Plan of `linear_qkv`. Raises ValueError for shapes, dtypes or strides the kernel cannot take."""
    _check_x(x)
    n_q, n_kv, k = q_weight.shape[0], k_weight.shape[0], x.shape[1]
    _check("q_weight", q_weight, (n_q, k), x)
    _check("k_weight", k_weight, (n_kv, k), x)
    _check("v_weight", v_weight, (n_kv, k), x)
    biases = {"q_bias": (q_bias, n_q), "k_bias": (k_bias, n_kv), "v_bias": (v_bias, n_kv)}
    given = [name for name, (bias, _) in biases.items() if bias is not None]
    if given and len(given) != len(biases):
        raise ValueError(f"only {', '.join(given)} given, expected the biases of q, k and v or none")
    for name, (bias, columns) in biases.items():
        if bias is not None:
            _check(name, bias, (columns,), x)
    pointers = {
        "w_ptr": q_weight, "k_weight_ptr": k_weight, "v_weight_ptr": v_weight,
        "bias_ptr": q_bias, "k_bias_ptr": k_bias, "v_bias_ptr": v_bias,
    }  # fmt: skip
    return _plan(x, pointers, n_q, n_kv, config, device)


_POINTERS = (
    "w_ptr", "up_ptr", "k_weight_ptr", "v_weight_ptr", "bias_ptr", "k_bias_ptr", "v_bias_ptr", "residual_ptr",
)  # fmt: skip


def _plan(x: Tensor, pointers: dict[str, Tensor | None], n: int, n_kv: int, config: Config, device: Device) -> Plan:
    """One launch over [rows, n + 2 n_kv]; with a split of k a second one sums the splits.

    A reduction in a launch of its own, not by the last program to arrive: that needs counters that are zero at
    every start, and shared ones would break two streams that run the same layer at once.
    """
    rows, k = x.shape
    columns = n + 2 * n_kv
    block_m, block_n, block_k = (config.integer(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    splits = config.integer("SPLIT_K")
    steps = _ceil_div(_ceil_div(k, block_k), splits)
    vector = 16 // x.element_size()
    tiles = _ceil_div(n, block_n) + 2 * _ceil_div(n_kv, block_n)
    out = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    silu_mul = pointers.get("up_ptr") is not None
    lanes = vector * config.integer("num_warps") * device.arch.wave_size
    loads_per_step = max(1, (block_n * (1 + silu_mul) + block_m) * block_k // lanes)
    target = out
    if splits > 1:
        width = 2 * columns if silu_mul else columns
        target = torch.empty(splits, rows, width, dtype=torch.float32, device=x.device)
    residual = pointers.get("residual_ptr")
    main = Launch(
        fn=_linear_kernel,
        grid=(_ceil_div(rows, block_m) * tiles * splits,),
        args={
            "x_ptr": x, **{name: pointers.get(name) for name in _POINTERS}, "out_ptr": target, "num_rows": rows,
            "x_row_stride": x.stride(0), "residual_row_stride": 0 if residual is None else residual.stride(0),
        },
        constexprs={
            "N": n, "N_KV": n_kv, "K": k, "DOT": config.integer("DOT"), "BLOCK_M": block_m, "BLOCK_N": block_n,
            "BLOCK_K": block_k, "SPLIT_K": splits, "STEPS": steps, "VECTOR": vector,
            "UNROLL": min(steps, max(1, LOADS_IN_FLIGHT // loads_per_step)),
            "EVEN": n % block_n == 0 and n_kv % block_n == 0 and k == steps * splits * block_k,
            "XCDS": device.xcds if config.integer("XCD_REMAP", 0) else 1,
        },
        options=compile_options(config),
    )  # fmt: skip
    if splits == 1:
        return Plan((main,), (out,))
    reduce = Launch(
        fn=_linear_reduce_kernel,
        grid=(rows, _ceil_div(columns, REDUCE_BLOCK)),
        args={"workspace_ptr": target, "out_ptr": out, "num_rows": rows},
        constexprs={"N": columns, "SPLIT_K": splits, "SILU_MUL": silu_mul, "BLOCK": REDUCE_BLOCK},
        options={"num_warps": 4},
    )
    return Plan((main, reduce), (out,))


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *,
    config: Config, device: Device,
) -> Tensor:  # fmt: skip
    """y = x W^T + bias + residual: x [M, K], W [N, K] (Hugging Face layout), bias [N], residual and y [M, N].

    Accumulated in fp32 and rounded once. The forms follow kernels for skinny GEMM in vLLM (wvSplitK) and aiter.
    """
    return plan_linear(x, weight, bias, residual, config=config, device=device).run()[0]


def linear_silu_mul(x: Tensor, gate_weight: Tensor, up_weight: Tensor, *, config: Config, device: Device) -> Tensor:
    """y = silu(x Wg^T) * (x Wu^T): x [M, K], both weights [N, K] -> [M, N], in fp32 until the one rounding."""
    return plan_linear_silu_mul(x, gate_weight, up_weight, config=config, device=device).run()[0]


def linear_qkv(
    x: Tensor, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor,
    q_bias: Tensor | None = None, k_bias: Tensor | None = None, v_bias: Tensor | None = None, *,
    config: Config, device: Device,
) -> Tensor:  # fmt: skip
    """[x Wq^T + bq | x Wk^T + bk | x Wv^T + bv]: weights [N_q, K], [N_kv, K], [N_kv, K] -> [M, N_q + 2 N_kv]."""
    plan = plan_linear_qkv(x, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, config=config, device=device)
    return plan.run()[0]


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> tuple[Tensor]:
    """The formula of `linear` in fp32."""
    y = x.float() @ weight.float().T
    if bias is not None:
        y = y + bias.float()
    if residual is not None:
        y = y + residual.float()
    return (y.to(x.dtype),)


def linear_silu_mul_reference(x: Tensor, gate_weight: Tensor, up_weight: Tensor) -> tuple[Tensor]:
    """The formula of `linear_silu_mul` in fp32."""
    gate, up = x.float() @ gate_weight.float().T, x.float() @ up_weight.float().T
    return ((torch.nn.functional.silu(gate) * up).to(x.dtype),)


def linear_qkv_reference(
    x: Tensor, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor,
    q_bias: Tensor | None = None, k_bias: Tensor | None = None, v_bias: Tensor | None = None,
) -> tuple[Tensor]:  # fmt: skip
    """The formula of `linear_qkv` in fp32."""
    parts = ((q_weight, q_bias), (k_weight, k_bias), (v_weight, v_bias))
    return (torch.cat([linear_reference(x, weight, bias)[0] for weight, bias in parts], dim=1),)


class _Maker:
    """Random inputs of one problem: activations of order 1, weights scaled so that outputs are of order 1."""

    def __init__(self, dtype: str, torch_device: str, seed: int) -> None:
        self._dtype = TORCH_DTYPES[dtype]
        self._torch_device = torch_device
        self._generator = make_generator(torch_device, seed)

    def tensor(self, *shape: int, scale: float = 1.0) -> Tensor:
        return random_tensor(
            *shape, dtype=self._dtype, torch_device=self._torch_device, generator=self._generator, scale=scale
        )

    def weight(self, n: int, k: int) -> Tensor:
        return self.tensor(n, k, scale=k**-0.5)


def make_linear_inputs(
    problem: LinearProblem, *, torch_device: str, seed: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(x, weight, bias or None, residual or None)."""
    make = _Maker(problem.dtype, torch_device, seed)
    x, weight = make.tensor(problem.batch, problem.k), make.weight(problem.n, problem.k)
    bias = make.tensor(problem.n) if problem.bias else None
    return x, weight, bias, make.tensor(problem.batch, problem.n) if problem.residual else None


def make_linear_silu_mul_inputs(
    problem: LinearSiluMulProblem, *, torch_device: str, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(x, gate_weight, up_weight)."""
    make = _Maker(problem.dtype, torch_device, seed)
    x = make.tensor(problem.batch, problem.k)
    return x, make.weight(problem.n, problem.k), make.weight(problem.n, problem.k)


def make_linear_qkv_inputs(problem: LinearQkvProblem, *, torch_device: str, seed: int) -> tuple[Tensor | None, ...]:
    """(x, q_weight, k_weight, v_weight) and the three biases or None."""
    make = _Maker(problem.dtype, torch_device, seed)
    columns = (problem.n_q, problem.n_kv, problem.n_kv)
    x = make.tensor(problem.batch, problem.k)
    weights = [make.weight(n, problem.k) for n in columns]
    biases = [make.tensor(n) if problem.bias else None for n in columns]
    return (x, *weights, *biases)


LINEAR_SPEC = KernelSpec(
    name="linear", space=LINEAR, plan=plan_linear, reference=linear_reference, make_inputs=make_linear_inputs
)
LINEAR_SILU_MUL_SPEC = KernelSpec(
    name="linear_silu_mul", space=LINEAR_SILU_MUL, plan=plan_linear_silu_mul,
    reference=linear_silu_mul_reference, make_inputs=make_linear_silu_mul_inputs,
)  # fmt: skip
LINEAR_QKV_SPEC = KernelSpec(
    name="linear_qkv", space=LINEAR_QKV, plan=plan_linear_qkv, reference=linear_qkv_reference,
    make_inputs=make_linear_qkv_inputs,
)  # fmt: skip
