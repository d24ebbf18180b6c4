"""Models as deep as the real ones, with tiny matrices: every site of every layer, and the counts named."""

from __future__ import annotations

import pytest
import torch

from paiton.compiler.options import Options
from paiton.compiler.passes import rewrite
from paiton.compiler.site import Status

from .bench_rewrite import captured
from .test_models import sites_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Dynamo warns of functools.lru_cache in transformers


@pytest.mark.parametrize(
    ("family", "layers", "decode"),
    [("qwen3_moe", 48, True), ("qwen3", 64, True), ("qwen2", 64, False)],
)
def test_every_site_of_a_deep_model(family: str, layers: int, decode: bool) -> None:
    module, dynamo_s = captured(family, layers, decode=decode)
    with torch.no_grad():
        done = rewrite(module, Options(sites="all"))
    assert {site.status for site in done.sites} == {Status.REPLACED, Status.JOINED}
    counts: dict[str, int] = {}
    for site in done.sites:
        if site.status is Status.REPLACED:
            counts[site.pattern] = counts.get(site.pattern, 0) + 1
    assert counts == sites_of(family, layers, is_static_decode=decode)
    print(
        f"{family}, {layers} layers: {done.nodes_before} -> {done.nodes_after} nodes, {len(done.sites)} sites, "
        f"rewrite {done.seconds:.2f} s, Dynamo {dynamo_s:.2f} s"
    )
