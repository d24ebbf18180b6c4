"""From what a user types after `--model` to a ModelSpec."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .hf_config import parse_config, shown
from .model_spec import ModelError, ModelSpec
from .presets import PRESETS, preset_named

MAX_CONFIG_BYTES = 1 << 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_model(text: str, resolve_hub: Callable[[str], Mapping[str, Any]] | None = None) -> ModelSpec:
    """The model that `text` names: a preset, a `config.json`, a folder with one, or a hub id.

    A preset wins over a folder of the same name; write `./name` for the folder. Hub ids are asked of
    `resolve_hub`, which answers with the parsed `config.json` or raises ModelError; without it they are
    unknown. Raises ModelError, one line that names the value and what would be accepted.
    """
    wanted = text.strip()
    model = preset_named(wanted)
    if model is not None:
        return model
    path = Path(os.path.expanduser(wanted))
    if wanted and (_exists(path) or _looks_like_a_path(wanted)):
        return read_config(path)
    if resolve_hub is not None and _HUB_ID.fullmatch(wanted):
        return parse_config(resolve_hub(wanted), wanted, f"hub {wanted}")
    names = {each.name.lower(): each.name for each in PRESETS}
    near = difflib.get_close_matches(wanted.lower(), names, n=3, cutoff=0.4) or [PRESETS[0].name.lower()]
    raise ModelError(
        f"unknown model {shown(text)}, nearest presets: {', '.join(names[each] for each in near)}; "
        "accepted are a preset, a path to a config.json or its folder, or a hub id such as Qwen/Qwen3-32B"
    )


def read_config(path: Path) -> ModelSpec:
    """The model of a `config.json`, or of a folder that holds one. Raises ModelError."""
    file = path / "config.json" if _exists(path) and path.is_dir() else path
    where = shown(str(file), limit=240)
    try:
        if not file.is_file():
            raise ModelError(f"no file {where}; expected a config.json, or a folder that holds one")
        with file.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError(f"cannot read {where}: {error.strerror or type(error).__name__}") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ModelError(f"{where} is larger than {MAX_CONFIG_BYTES} bytes, too large for a config.json")
    try:
        config = json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ModelError(f"{where} is nested too deeply for a config.json") from None
    except ValueError as error:
        raise ModelError(f"{where} is not JSON: {_first_line(error)}") from None
    name = file.parent.name if file.name == "config.json" else file.stem
    name = _plain(name) or "model"
    try:
        return parse_config(config, name, f"file {file.name}")
    except ModelError as error:
        raise ModelError(f"{where}: {str(error).removeprefix(f'{name}: ')}") from None


def _exists(path: Path) -> bool:
    """Whether there is something at `path`; a name the system refuses is nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _looks_like_a_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.endswith((".json", "/"))


def _plain(name: str) -> str:
    return re.sub(r"[^\w.@+-]", "_", name)[:80]


def _first_line(error: Exception) -> str:
    return shown(str(error)).strip("'\"")
