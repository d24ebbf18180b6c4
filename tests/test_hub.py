"""Hub ids through a stand-in for transformers: no network, no installation needed."""

import sys
from types import ModuleType
from typing import Any

import pytest

from paiton.autotune.hub import resolve_hub
from paiton.search_spaces.model_spec import ModelError


def _install(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """A `transformers` whose configuration class gives `answer`, or raises it."""

    class PretrainedConfig:
        @staticmethod
        def get_config_dict(hub_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
            if isinstance(answer, Exception):
                raise answer
            return answer, {}

    module = ModuleType("transformers")
    module.PretrainedConfig = PretrainedConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)


def test_the_file_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, {"model_type": "llama"})
    assert resolve_hub("a/b") == {"model_type": "llama"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            OSError("a/b is not a local folder\nand more"),
            "hub id a/b cannot be resolved: a/b is not a local folder",
        ),
        (OSError(), "hub id a/b cannot be resolved: OSError"),
        ({}, "hub id a/b cannot be resolved: it has no config.json"),
    ],
)
def test_what_cannot_be_resolved_is_one_line(
    monkeypatch: pytest.MonkeyPatch, answer: Any, message: str
) -> None:
    _install(monkeypatch, answer)
    with pytest.raises(ModelError) as raised:
        resolve_hub("a/b")
    assert str(raised.value) == message


def test_without_transformers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'paiton\[hf\]'"):
        resolve_hub("a/b")
