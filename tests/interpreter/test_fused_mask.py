"""A mask over fused decode attention says alone what is seen, the new token included, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from paiton.kernels_triton.attention_decode_fused import ATTENTION_DECODE_FUSED_SPEC
from paiton.kernels_triton.tolerance import TOLERANCES
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.config import Config

DEVICE = resolve("gfx942")
TOKENS = 41
POSITIONS = (0, 7, 36)

# Of [3, TOKENS]: what stands behind the new token counts, and the new token may be hidden.
MASKS = {
    "causal": lambda keys, own: keys <= own,
    "everything": lambda keys, own: keys >= 0,
    "not the new token": lambda keys, own: keys < own,
    "only the new token": lambda keys, own: keys == own,
    "only behind it": lambda keys, own: keys > own + 2,
    "holes": lambda keys, own: (keys * 7 + own) % 5 < 2,
    "nothing": lambda keys, own: keys < 0,
}


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("name", MASKS)
def test_mask_alone_says_what_is_seen(name: str, splits: int) -> None:
    problem = ATTENTION_DECODE_FUSED_SPEC.space.problem(
        dtype="fp32", batch=3, q_heads=4, kv_heads=2, head_dim=32, window=0, context=TOKENS, qk_norm=1
    )
    inputs = list(ATTENTION_DECODE_FUSED_SPEC.make_inputs(problem, torch_device="cpu", seed=3))
    positions = torch.tensor(POSITIONS)
    inputs[9] = positions
    mask = MASKS[name](torch.arange(TOKENS)[None], positions[:, None]).expand(len(POSITIONS), TOKENS)
    config = Config.of(BLOCK_N=16, SPLITS=splits, num_warps=1, num_stages=1)
    expected = ATTENTION_DECODE_FUSED_SPEC.reference(*inputs, mask)
    actual = ATTENTION_DECODE_FUSED_SPEC.plan(*inputs, mask, config=config, device=DEVICE).run()
    tolerance = TOLERANCES["fp32"]
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance.relative, atol=tolerance.absolute)


def test_window_beside_a_mask_is_refused() -> None:
    problem = ATTENTION_DECODE_FUSED_SPEC.space.problem(
        dtype="fp32", batch=1, q_heads=2, kv_heads=1, head_dim=32, window=4, context=8, qk_norm=0
    )
    inputs = ATTENTION_DECODE_FUSED_SPEC.make_inputs(problem, torch_device="meta", seed=0)
    mask = torch.ones(1, 8, dtype=torch.bool, device="meta")
    config = Config.of(BLOCK_N=16, SPLITS=1, num_warps=1, num_stages=1)
    with pytest.raises(ValueError, match="window 4 beside a mask"):
        ATTENTION_DECODE_FUSED_SPEC.plan(*inputs, mask, config=config, device=DEVICE)
