"""Lint: each kind of fault is found where it is, and nothing is found in what is sound."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paiton.cache import lint, lint_peers
from paiton.cache.formats.peer_file import Peer
from paiton.cache.lint import lint_rows
from paiton.cache.lint_peers import lint_folder
from paiton.cache.rows import Label
from paiton.search_spaces.arch import device_named
from paiton.search_spaces.registry import space_of

ROOT = Path(__file__).resolve().parents[2]
PEER_CONFIGS = Path(os.environ.get("PAITON_PEER_CONFIGS", ROOT.parent / "shared" / "reference" / "peer_configs"))
needs_peer_configs = pytest.mark.skipif(
    not PEER_CONFIGS.is_dir(), reason=f"no folder of published configs at {PEER_CONFIGS}: set PAITON_PEER_CONFIGS"
)
TILE = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 2}
LADDER = (1, 4, 16, 64, 256, 1024)
H100 = "NVIDIA_H100_80GB_HBM3"


def put(folder: Path, name: str, *, seed: int = 1, keys: tuple[int, ...] = LADDER, **changes: Any) -> None:
    """A sound file, but for `changes` of every config; `seed` tells files apart."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in {**TILE, "GROUP_SIZE_M": seed, **changes}.items() if value is not None}
    path.write_text(json.dumps({str(key): config for key in keys}))


@pytest.mark.parametrize(
    ("peer", "name", "changes", "kinds"),
    [
        (Peer.VLLM, f"E=8,N=64,device_name={H100}", {}, []),
        (Peer.VLLM, f"E=8,N=64,device_name={H100},dtype=fp8_w8a8,block_shape=[128,128]", {"BLOCK_SIZE_K": 128}, []),
        (Peer.VLLM, f"E=8,N=64,device_name={H100},dtype=bf16", {}, ["dead-name"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100},dtype=int8_w8a8", {}, ["dead-name"]),
        (Peer.SGLANG, f"triton_3_6_0/E=8,N=64,device_name={H100},dtype=int8_w8a8", {}, []),
        (Peer.SGLANG, f"triton_3_6_0/E=8,N=64,device_name={H100},dtype=fp8_w8a16", {}, ["dead-name"]),
        (Peer.VLLM, "E=8,N=64,device_name=NVIDIA_H200_NVL", {}, ["dead-name"]),
        (Peer.VLLM, "E=8,N=64,device_name=NVIDIA_GH200", {}, []),
        (Peer.SGLANG, "triton_3_6_0/E=8,N=64,device_name=NVIDIA_H200_NVL", {}, []),
        (Peer.SGLANG, "triton_3_6_0/E=8,N=64,device_name=", {}, ["dead-name"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100},dtype=fp8_w8a8,block_shape=[0,128]", {}, ["dead-name"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100},block_shape=[128, 128]", {}, ["dead-name"]),
        (Peer.SGLANG, f"triton_3_6_0+rocm/E=8,N=64,device_name={H100}", {}, ["unreadable"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100}", {"evil": 1}, ["unreadable"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100}", {"keys": (512,)}, ["sparse"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100}", {"keys": (256, 512, 1024, 2048, 4096, 8192)}, ["sparse"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100}", {"keys": (1, 4, 16, 64, 512, 1024)}, ["sparse"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100}", {"keys": (4, 1, 16, 64, 256, 1024)}, ["unsorted"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100},dtype=fp8_w8a8,block_shape=[128,64]", {"BLOCK_SIZE_K": 128},
         ["block-k"]),
        (Peer.VLLM, "E=8,N=64,device_name=AMD_Instinct_MI300X", {"matrix_instr_nonkdim": 32}, ["nonkdim"]),
        (Peer.VLLM, "E=8,N=64,device_name=AMD_Instinct_MI300X", {"matrix_instr_nonkdim": 16, "kpack": 2}, []),
        (Peer.VLLM, "E=8,N=64,device_name=AMD_Instinct_MI355X", {"kpack": 2}, ["kpack"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100},dtype=int4_w4a16", {}, ["split-k"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100},dtype=int4_w4a16", {"SPLIT_K": 1}, []),
        (Peer.SGLANG, f"triton_3_6_0/E=8,N=64,device_name={H100}", {"num_warps": None}, ["implicit"]),
        (Peer.VLLM, f"E=8,N=64,device_name={H100}", {"BLOCK_SIZE_N": 256, "BLOCK_SIZE_K": 256}, []),
        (Peer.VLLM, f"E=8,N=64,device_name={H100}", {"BLOCK_SIZE_N": 256, "BLOCK_SIZE_K": 256, "num_stages": 4},
         ["shared-memory"]),
        (Peer.VLLM, "E=8,N=64,device_name=NVIDIA_L40S", {"BLOCK_SIZE_N": 256, "BLOCK_SIZE_K": 256}, ["shared-memory"]),
        (Peer.VLLM, "E=8,N=64,device_name=AMD_Instinct_MI300X", {"BLOCK_SIZE_M": 256, "BLOCK_SIZE_K": 128},
         ["shared-memory"]),
        (Peer.VLLM, "E=8,N=64,device_name=AMD_Instinct_MI355X", {"BLOCK_SIZE_M": 256, "BLOCK_SIZE_K": 128}, []),
        (Peer.VLLM, "E=8,N=64,device_name=Intel(R)_Arc", {"BLOCK_SIZE_M": 256, "BLOCK_SIZE_K": 256}, []),
    ],
)  # fmt: skip
def test_one_file(tmp_path: Path, peer: Peer, name: str, changes: dict[str, Any], kinds: list[str]) -> None:
    put(tmp_path, name, **changes)
    found = lint_folder(peer, tmp_path)
    assert [each.kind for each in found] == kinds
    assert all(each.kind in lint_peers.EXPLANATIONS and each.where == f"{name}.json" for each in found)


def test_copies_and_files_that_were_not_tuned_again(tmp_path: Path) -> None:
    for device in ("AMD_Instinct_MI350X", "AMD_Instinct_MI355X"):
        put(tmp_path / "vllm", f"E=8,N=64,device_name={device}")
    (copy,) = lint_folder(Peer.VLLM, tmp_path / "vllm")
    assert (copy.kind, copy.detail) == ("copy", "equal to that of AMD_Instinct_MI355X")
    for version, suffix, seed in (("3_2_0", "", 1), ("3_4_0", "", 8), ("3_10_0", "", 1), ("3_10_0", "_down", 1)):
        put(tmp_path / "sglang", f"triton_{version}/E=8,N=64,device_name={H100}{suffix}", seed=seed)
    found = lint_folder(Peer.SGLANG, tmp_path / "sglang")
    assert [(each.kind, each.where.split("/")[0], "_down" in each.where) for each in found] == [
        ("not-retuned", "triton_3_10_0", False),
        ("not-retuned", "triton_3_10_0", True),
    ]
    assert "equal to 3.2.0 (" in found[0].detail


@needs_peer_configs
def test_findings_in_the_published_files() -> None:
    vllm, sglang = (lint_folder(peer, PEER_CONFIGS / peer.value) for peer in (Peer.VLLM, Peer.SGLANG))
    assert Counter(each.kind for each in vllm) == {"block-k": 11, "copy": 2, "sparse": 1, "dead-name": 1}
    assert Counter(each.kind for each in sglang) == {"not-retuned": 3, "implicit": 2, "sparse": 2}
    assert all(each.detail and each.kind in lint_peers.EXPLANATIONS for each in (*vllm, *sglang))
    (dead,) = [each.where for each in vllm if each.kind == "dead-name"]
    assert dead == "E=128,N=8960,device_name=NVIDIA_H100_80GB_HBM3,dtype=bf16.json"
    assert "triton_3_6_0/E=128,N=768,device_name=NVIDIA_H200.json" in {each.where for each in sglang}


def legal(build: Any, batch: int, device: str = "MI300X", **values: Any) -> Any:
    space = space_of("moe_down")
    sizes = {"experts": 128, "hidden": 2048, "inter": 768, "top_k": 8}
    config = space.default_config(space.problem(dtype="bf16", batch=batch, **sizes), device_named(device)).json()
    return build.measured(build.cell(batch=batch, device=device), config_json=config, us_median=20.0 + batch, **values)


def test_a_sound_database_has_no_findings(build: Any) -> None:
    assert lint_rows([legal(build, batch) for batch in (1, 2, 4, 8, 32)], digests={"moe_down": "d1"}) == []


def test_findings_in_a_database(build: Any) -> None:
    base = [legal(build, batch) for batch in (1, 2, 4, 8, 64)]
    rows = [
        replace(base[0], config_json='{"BLOCK_M":3}'),
        replace(base[1], us_default=1.0),
        replace(base[2], us_p10=1.0, us_p90=2.0),
        base[3],
        replace(base[4], cell=replace(base[4].cell, kernel_digest="old")),
        legal(build, 64),
    ]
    found = lint_rows(rows, digests={"moe_down": "d1"})
    assert Counter(each.kind for each in found) == {"config": 1, "slower": 1, "spread": 1, "stale": 1, "sparse": 1}
    assert all(each.kind in lint.EXPLANATIONS for each in found)
    assert [each.detail for each in found if each.kind == "sparse"] == ["nothing between batches 8..64"]


def test_copied_answers_of_another_device(build: Any) -> None:
    rows = [legal(build, batch) for batch in (1, 2, 4, 8)]
    copied = [replace(row, cell=replace(row.cell, device="MI325X")) for row in rows]
    (found,) = lint_rows([*rows, *copied])
    assert (found.kind, found.detail) == ("copy", "equal to MI325X")
    priors = [replace(row, label=Label.PRIOR) for row in copied]
    assert lint_rows([*rows, *priors]) == []
