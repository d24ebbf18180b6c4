"""Roofline: the time below which no kernel can come, from a chip's published peaks."""

from __future__ import annotations

from .chip import Device
from .problem import Problem
from .registry import space_of
from .work import Work


def roofline_us(work: Work, device: Device, dtype: str) -> float:
    """The least time for work: published bandwidth or published peak of the dtype, the longer one."""
    peak = device.peak_tflops.get(dtype, device.peak_tflops["fp32"])
    return max(work.bytes / (device.hbm_gbps * 1e3), work.flops / (peak * 1e6))


def hbm_floor_us(problem: Problem, device: Device) -> float:
    """Roofline time of a problem: no kernel that reads its data from HBM can be faster."""
    return roofline_us(space_of(problem.kernel).work(problem), device, problem.dtype)
