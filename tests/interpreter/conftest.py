"""bf16 in Triton's interpreter, as the hardware has it.

The interpreter of Triton 3.6 and 3.7 keeps bf16 as the bits in a uint16. Its `tl.dot` multiplies those bits
as integers, and its conversion from fp32 truncates where GPUs round to nearest even. Both are put right here,
so that bf16 kernels can be compared with their references.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter


def _bits_to_fp32(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _fp32_to_bits(values: Any) -> Any:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


@pytest.fixture(scope="session", autouse=True)
def _bf16_as_on_hardware() -> Iterator[None]:
    convert_float = interpreter._convert_float
    create_dot = interpreter.InterpreterBuilder.create_dot

    def convert(data: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if source == tl.bfloat16 and target == tl.float32:
            return _bits_to_fp32(np.asarray(data).view(np.uint16))
        if source == tl.float32 and target == tl.bfloat16:
            return _fp32_to_bits(np.asarray(data))
        return convert_float(data, source, target, rounding_mode)

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16 and b.dtype.scalar == tl.bfloat16:
            product = np.matmul(_bits_to_fp32(a.data), _bits_to_fp32(b.data)) + d.data
            return interpreter.TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)
        return create_dot(self, a, b, d, input_precision, max_num_imprecise_acc)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", convert)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
        yield
