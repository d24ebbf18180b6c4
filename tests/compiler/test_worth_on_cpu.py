"""What stays on a CPU follows the measured table: pattern, element type and size."""

import pytest
import torch

from paiton.compiler.worth_on_cpu import stays_on_cpu


def attention(batch: int, tokens: int, dtype: torch.dtype, mask: torch.Tensor | None = None, keys: int = 64) -> bool:
    q = torch.empty(batch, 8, tokens, 32, dtype=dtype, device="meta")
    k = torch.empty(batch, 8, keys, 32, dtype=dtype, device="meta")
    return stays_on_cpu("attention", (q, k, k, mask, 1.0, False, 0))


def experts(tokens: int, dtype: torch.dtype) -> bool:
    return stays_on_cpu("experts", (torch.empty(tokens, 64, dtype=dtype, device="meta"), None, None, None, None, None))


def test_attention() -> None:
    mask = torch.empty(1, 1, 1, 8, dtype=torch.bool, device="meta")
    assert attention(1, 1, torch.bfloat16)
    assert attention(2, 1, torch.float32)
    assert attention(1, 1, torch.float32, mask, keys=512)
    assert not attention(1, 1, torch.float32, mask, keys=128)
    assert not attention(1, 1, torch.float32)
    assert not attention(2, 16, torch.bfloat16)


@pytest.mark.parametrize(
    ("tokens", "dtype", "stays"),
    [(1, torch.bfloat16, True), (8, torch.bfloat16, False), (64, torch.bfloat16, True), (8, torch.float32, True)],
)
def test_experts(tokens: int, dtype: torch.dtype, stays: bool) -> None:
    assert experts(tokens, dtype) is stays


@pytest.mark.parametrize("pattern", ["rms_norm", "linear", "router", "qk_norm_rope", "attention_cache"])
def test_nothing_else_stays(pattern: str) -> None:
    assert not stays_on_cpu(pattern, (torch.empty(1, 1, 1, 1), None, None, None))
