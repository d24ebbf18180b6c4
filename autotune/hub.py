"""A model's `config.json` by its hub id, through transformers where that is installed."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from ..search_spaces.model_spec import ModelError

PROBE_TIMEOUT_S = 5.0


def resolve_hub(hub_id: str) -> Mapping[str, Any]:
    """The parsed `config.json` of `hub_id` from transformers' cache or the hub; no model code is run.

    Raises ModelError, one line, where transformers is missing or cannot find or read the file.
    """
    try:
        from huggingface_hub.constants import ENDPOINT
        from transformers import PretrainedConfig
    except ImportError:
        raise ModelError(
            f"hub id {hub_id} needs transformers: pip install 'paiton[hf]', or give a path to its config.json"
        ) from None
    # The file itself, not a configuration object: the class would run, and fill in defaults of its own.
    try:
        config, _ = PretrainedConfig.get_config_dict(hub_id, local_files_only=True)
    except (OSError, ValueError, RuntimeError):
        config = {}
    if config:
        return dict(config)
    # Without a network the library retries for half a minute, so ask first.
    if not hub_answers(ENDPOINT):
        raise ModelError(f"hub id {hub_id} is not in the local cache and {ENDPOINT} cannot be reached")
    try:
        config, _ = PretrainedConfig.get_config_dict(hub_id)
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ModelError(f"hub id {hub_id} cannot be resolved: {reason}") from None
    if not config:
        raise ModelError(f"hub id {hub_id} cannot be resolved: it has no config.json")
    return dict(config)


def hub_answers(endpoint: str) -> bool:
    """Whether the hub can be reached; any HTTP answer counts."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
