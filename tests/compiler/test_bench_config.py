"""The GPU benchmark's models without a network: transformers' config of a built-in name is that very model."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from paiton.search_spaces.hf_config import parse_config
from paiton.search_spaces.presets import preset_named


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "gpu" / "bench_generate.py"
    spec = importlib.util.spec_from_file_location("bench_generate", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Qwen3-32B", "QwQ-32B"])
def test_a_built_in_name(bench: ModuleType, name: str) -> None:
    wanted = preset_named(name)
    assert wanted is not None
    found = parse_config(bench.config_of(name).to_dict(), name)
    # The width of the dense layers that a mixture does not have is no part of the model.
    assert replace(found, source="", inter=wanted.inter, family=wanted.family) == replace(wanted, source="")
