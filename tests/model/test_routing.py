"""Rows per expert under uniform routing."""

import math

import numpy as np
import pytest

from paiton.search_spaces.model import routing
from paiton.search_spaces.model.routing import row_blocks


def test_a_plain_gemm_is_one_expert_with_every_row() -> None:
    assert row_blocks(1, 1, 1, 16) == (1.0, 1.0, 1.0)
    assert row_blocks(64, 1, 1, 16) == (4.0, 1.0, 16.0)
    assert row_blocks(65, 1, 1, 64) == (2.0, 1.0, 32.5)


def test_one_token_touches_top_k_experts() -> None:
    blocks = row_blocks(1, 128, 8, 16)
    assert blocks.active == pytest.approx(8.0)
    assert blocks.blocks == pytest.approx(8.0)
    assert blocks.useful_rows == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "block_m"), [(7, 16, 2, 16), (100, 8, 2, 16), (300, 128, 8, 32)]
)
def test_agrees_with_drawn_routings(tokens: int, experts: int, top_k: int, block_m: int) -> None:
    generator = np.random.default_rng(0)
    rows = generator.binomial(tokens, top_k / experts, size=(20000, experts))
    expected = row_blocks(tokens, experts, top_k, block_m)
    assert expected.blocks == pytest.approx(np.ceil(rows / block_m).sum(axis=1).mean(), rel=0.01)
    assert expected.active == pytest.approx((rows > 0).sum(axis=1).mean(), rel=0.01)


@pytest.mark.parametrize("block_m", [16, 64, 256])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (128, 8), (512, 10)])
def test_normal_law_joins_the_exact_table(experts: int, top_k: int, block_m: int) -> None:
    exact = routing._exact(4999, top_k / experts, block_m)
    assert routing._normal(4999, top_k / experts, block_m) == pytest.approx(exact, rel=2e-3)


def test_many_tokens_fill_their_blocks() -> None:
    blocks = row_blocks(65536, 8, 2, 256)
    assert blocks.active == pytest.approx(8.0)
    assert blocks.blocks == pytest.approx(65536 * 2 / 256, rel=0.03)
    assert blocks.blocks >= 65536 * 2 / 256
    assert math.isfinite(row_blocks(1 << 20, 128, 8, 16).blocks)
