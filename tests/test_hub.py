"""Hub ids through a stand-in for transformers: no network, no installation needed."""

import sys
from types import ModuleType
from typing import Any

import pytest

from paiton.autotune import hub
from paiton.search_spaces.model_spec import ModelError


def _install(monkeypatch: pytest.MonkeyPatch, cached: Any, online: Any, reachable: bool = True) -> None:
    """A `transformers` that gives or raises `cached` without, `online` with the network."""

    class PretrainedConfig:
        @staticmethod
        def get_config_dict(hub_id: str, local_files_only: bool = False) -> tuple[dict[str, Any], Any]:
            answer = cached if local_files_only else online
            if isinstance(answer, Exception):
                raise answer
            return answer, {}

    library = ModuleType("transformers")
    library.PretrainedConfig = PretrainedConfig  # type: ignore[attr-defined]
    constants = ModuleType("huggingface_hub.constants")
    constants.ENDPOINT = "https://hub.example"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", library)
    monkeypatch.setitem(sys.modules, "huggingface_hub", ModuleType("huggingface_hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    monkeypatch.setattr(hub, "hub_answers", lambda endpoint: reachable)


NOT_CACHED = OSError("not cached")


@pytest.mark.parametrize("reachable", [True, False])
def test_a_cached_file_needs_no_network(monkeypatch: pytest.MonkeyPatch, reachable: bool) -> None:
    _install(monkeypatch, {"model_type": "llama"}, OSError("asked the network"), reachable)
    assert hub.resolve_hub("a/b") == {"model_type": "llama"}


def test_the_file_of_the_hub_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, NOT_CACHED, {"model_type": "llama"})
    assert hub.resolve_hub("a/b") == {"model_type": "llama"}


@pytest.mark.parametrize(
    ("online", "reachable", "message"),
    [
        (OSError("no such repository\nmore"), True, "hub id a/b cannot be resolved: no such repository"),
        (OSError(), True, "hub id a/b cannot be resolved: OSError"),
        ({}, True, "hub id a/b cannot be resolved: it has no config.json"),
        ({}, False, "hub id a/b is not in the local cache and https://hub.example cannot be reached"),
    ],
)
def test_what_cannot_be_resolved_is_one_line(
    monkeypatch: pytest.MonkeyPatch, online: Any, reachable: bool, message: str
) -> None:
    _install(monkeypatch, NOT_CACHED, online, reachable)
    with pytest.raises(ModelError) as raised:
        hub.resolve_hub("a/b")
    assert str(raised.value) == message


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "not a url"])
def test_an_endpoint_that_does_not_answer(endpoint: str) -> None:
    assert not hub.hub_answers(endpoint)


def test_without_transformers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'paiton\[hf\]'"):
        hub.resolve_hub("a/b")
