"""RMSNorm over rows, with or without the residual add before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..search_spaces.arch import Device
from ..search_spaces.config import Config
from ..search_spaces.norm import ADD_RMS_NORM, RMS_NORM, NormProblem
from .launch import Launch, Plan, compile_options
from .spec import TORCH_DTYPES, KernelSpec, make_generator, random_tensor

EPS = 1e-6


@triton.jit
def _norm_load(x_ptr, residual_ptr, columns, mask):
    """x, or x + residual rounded to the element type as the stored stream has it; fp32."""
    x = tl.load(x_ptr + columns, mask=mask, other=0.0)
    wide = x.to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + columns, mask=mask, other=0.0)
        wide = (wide + residual.to(tl.float32)).to(x.dtype).to(tl.float32)
    return wide


@triton.jit
def _norm_store(y_ptr, weight_ptr, values, scale, columns, mask):
    """weight * (values * scale rounded to the element type): the two roundings of Hugging Face's RMSNorm."""
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
    normalised = (values * scale).to(weight.dtype).to(tl.float32)
    tl.store(y_ptr + columns, (normalised * weight.to(tl.float32)).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, new_residual_ptr, x_row_stride, residual_row_stride, eps,
    HIDDEN: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One row per program; a row wider than BLOCK_H is read twice, the second time from cache."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_row_stride
    y_ptr += row * HIDDEN
    if residual_ptr is not None:
        residual_ptr += row * residual_row_stride
        new_residual_ptr += row * HIDDEN
    columns = tl.arange(0, BLOCK_H)
    if BLOCK_H >= HIDDEN:
        mask = columns < HIDDEN
        values = _norm_load(x_ptr, residual_ptr, columns, mask)
        if residual_ptr is not None:
            tl.store(new_residual_ptr + columns, values.to(new_residual_ptr.dtype.element_ty), mask=mask)
        scale = tl.rsqrt(tl.sum(values * values) / HIDDEN + eps)
        _norm_store(y_ptr, weight_ptr, values, scale, columns, mask)
    else:
        squares = tl.zeros([BLOCK_H], tl.float32)
        for start in range(0, HIDDEN, BLOCK_H):
            mask = start + columns < HIDDEN
            values = _norm_load(x_ptr, residual_ptr, start + columns, mask)
            if residual_ptr is not None:
                tl.store(
                    new_residual_ptr + start + columns,
                    values.to(new_residual_ptr.dtype.element_ty),
                    mask=mask,
                )
            squares += values * values
        scale = tl.rsqrt(tl.sum(squares) / HIDDEN + eps)
        for start in range(0, HIDDEN, BLOCK_H):
            mask = start + columns < HIDDEN
            # Not read from new_residual: a store of this program need not be visible to its own loads.
            values = _norm_load(x_ptr, residual_ptr, start + columns, mask)
            _norm_store(y_ptr, weight_ptr, values, scale, start + columns, mask)


def _check_rows(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    if tensor.dim() != 2 or tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise ValueError(
            f"{name} is {tuple(tensor.shape)} {tensor.dtype}, "
            f"expected [tokens, hidden] = {tuple(like.shape)} {like.dtype}"
        )
    if tensor.stride(1) != 1:
        raise ValueError(f"{name} has stride {tensor.stride(1)} between columns, expected 1")


def _check_weight(weight: torch.Tensor, x: torch.Tensor) -> None:
    if weight.shape != x.shape[1:] or weight.dtype != x.dtype or not weight.is_contiguous():
        raise ValueError(
            f"weight is {tuple(weight.shape)} {weight.dtype}, expected contiguous {tuple(x.shape[1:])} {x.dtype}"
        )


def plan_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = EPS, *, config: Config, device: Device) -> Plan:
    """Plan of `rms_norm`. Raises ValueError for shapes, dtypes or strides the kernel cannot take."""
    _check_rows("x", x, x)
    _check_weight(weight, x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return Plan((_norm_launch(x, None, weight, y, None, eps, config),), (y,))


def plan_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = EPS,
    *,
    config: Config,
    device: Device,
) -> Plan:
    """Plan of `add_rms_norm`. Raises ValueError for shapes, dtypes or strides the kernel cannot take."""
    _check_rows("x", x, x)
    _check_rows("residual", residual, x)
    _check_weight(weight, x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_residual = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return Plan((_norm_launch(x, residual, weight, y, new_residual, eps, config),), (y, new_residual))


def _norm_launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, y: torch.Tensor,
    new_residual: torch.Tensor | None, eps: float, config: Config,
) -> Launch:  # fmt: skip
    return Launch(
        fn=_rms_norm_kernel,
        grid=(x.shape[0],),
        args={
            "x_ptr": x, "residual_ptr": residual, "weight_ptr": weight, "y_ptr": y,
            "new_residual_ptr": new_residual, "x_row_stride": x.stride(0),
            "residual_row_stride": residual.stride(0) if residual is not None else 0, "eps": float(eps),
        },
        constexprs={"HIDDEN": x.shape[1], "BLOCK_H": config.integer("BLOCK_H")},
        options=compile_options(config),
    )  # fmt: skip


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = EPS, *, config: Config, device: Device
) -> torch.Tensor:
    """y[t] = weight * (x[t] / sqrt(mean(x[t]^2) + eps)): x [T, H] and weight [H] of one dtype -> [T, H].

    The normalised row is computed in fp32 and rounded to the dtype before it meets the weight, as in Hugging
    Face's Qwen3RMSNorm (transformers, models/qwen3/modeling_qwen3.py).
    """
    return plan_rms_norm(x, weight, eps, config=config, device=device).run()[0]


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = EPS,
    *,
    config: Config,
    device: Device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual), the sum rounded to the dtype first; all [T, H]."""
    y, new_residual = plan_add_rms_norm(x, residual, weight, eps, config=config, device=device).run()
    return y, new_residual


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float = EPS) -> tuple[torch.Tensor]:
    """The formula of `rms_norm` in torch, in fp32 between the two roundings."""
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight * normalised.to(x.dtype),)


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = EPS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula of `add_rms_norm` in torch."""
    new_residual = x + residual
    return rms_norm_reference(new_residual, weight, eps)[0], new_residual


def make_rms_norm_inputs(
    problem: NormProblem, *, torch_device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(x, weight, eps) of random values."""
    x, _, weight, eps = make_add_rms_norm_inputs(problem, torch_device=torch_device, seed=seed)
    return x, weight, eps


def make_add_rms_norm_inputs(
    problem: NormProblem, *, torch_device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """(x, residual, weight, eps) of random values."""
    generator = make_generator(torch_device, seed)
    shape = (problem.batch, problem.hidden)
    dtype = TORCH_DTYPES[problem.dtype]
    x = random_tensor(*shape, dtype=dtype, torch_device=torch_device, generator=generator)
    residual = random_tensor(*shape, dtype=dtype, torch_device=torch_device, generator=generator)
    weight = random_tensor(problem.hidden, dtype=dtype, torch_device=torch_device, generator=generator)
    return x, residual, weight, EPS


RMS_NORM_SPEC = KernelSpec(
    name="rms_norm",
    space=RMS_NORM,
    plan=plan_rms_norm,
    reference=rms_norm_reference,
    make_inputs=make_rms_norm_inputs,
)
ADD_RMS_NORM_SPEC = KernelSpec(
    name="add_rms_norm", space=ADD_RMS_NORM, plan=plan_add_rms_norm, reference=add_rms_norm_reference,
    make_inputs=make_add_rms_norm_inputs,
)  # fmt: skip
