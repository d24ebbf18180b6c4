"""What a caller may ask of the backend: `torch.compile(..., options={"paiton.…": …})`, and Inductor's own options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREFIX = "paiton."
KNOWN = ("disable_patterns", "dump", "lower", "mode", "sites", "strict")
LOWERINGS = ("inductor", "aot_eager", "eager")
SITES = ("faster", "all")


class BadOption(ValueError):
    """An option of ours that does not exist, or a value it cannot have."""


@dataclass(frozen=True)
class Options:
    """The options of one call of torch.compile.

    strict: raise instead of falling back. lower: what compiles the rewritten graph. disable_patterns: patterns not to
    look for. dump: a folder for the graphs before and after. sites: "faster" keeps a site only where our operation is
    expected to win, "all" keeps every one. inductor: the patches of Inductor's config, from its options and the mode.
    """

    strict: bool = False
    lower: str = "inductor"
    disable_patterns: frozenset[str] = frozenset()
    dump: Path | None = None
    sites: str = "faster"
    inductor: Mapping[str, Any] = field(default_factory=dict)


def read_options(
    options: Mapping[str, Any] | None = None, mode: str | None = None, *, patterns: Iterable[str] = ()
) -> Options:
    """Options as torch.compile hands them over. `patterns` are the names that disable_patterns may have.

    Torch refuses `mode` and `options` together, so `paiton.mode` stands for the mode beside other options. Raises
    BadOption for ours; for a wrong mode or a wrong option of Inductor's, torch's own RuntimeError.
    """
    given = dict(options or {})
    own = {name.removeprefix(PREFIX): given.pop(name) for name in list(given) if name.startswith(PREFIX)}
    for name in own:
        if name not in KNOWN:
            raise BadOption(f"unknown option {PREFIX}{name}{_instead(name, KNOWN, PREFIX)}")
    named_mode = _one_mode(mode, own.get("mode"))
    return Options(
        strict=_boolean("strict", own.get("strict", False)),
        lower=_one_of("lower", own.get("lower", "inductor"), LOWERINGS),
        disable_patterns=_patterns(own.get("disable_patterns", ()), tuple(patterns)),
        dump=_folder(own.get("dump")),
        sites=_one_of("sites", own.get("sites", "faster"), SITES),
        inductor=_inductor_patches(named_mode, given),
    )


def _one_mode(mode: str | None, own: Any) -> str | None:
    if own is not None and not isinstance(own, str):
        raise BadOption(f"{PREFIX}mode is a mode of torch.compile such as 'reduce-overhead', not {own!r}")
    if own is not None and mode is not None and own != mode:
        raise BadOption(f"mode={mode!r} and {PREFIX}mode={own!r} contradict each other")
    return own if own is not None else mode


def _inductor_patches(mode: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """What torch.compile(backend="inductor") would make of a mode and options, with its checks and messages."""
    if not (options or (mode and mode != "default")):
        return {}
    from torch import _TorchCompileInductorWrapper

    return dict(_TorchCompileInductorWrapper(mode, options, dynamic=None).config)


def _boolean(name: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise BadOption(f"{PREFIX}{name} is True or False, not {given!r}")
    return given


def _one_of(name: str, given: Any, allowed: tuple[str, ...]) -> str:
    if given not in allowed:
        raise BadOption(f"{PREFIX}{name} is one of {', '.join(allowed)}, not {given!r}")
    return str(given)


def _folder(given: Any) -> Path | None:
    if given is None:
        return None
    if not isinstance(given, (str, Path)):
        raise BadOption(f"{PREFIX}dump is the path of a folder, not {given!r}")
    return Path(given)


def _patterns(given: Any, known: tuple[str, ...]) -> frozenset[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BadOption(f"{PREFIX}disable_patterns is a list of names, not {given!r}")
    names = frozenset(str(each) for each in given)
    for name in sorted(names):
        if known and name not in known:
            raise BadOption(f"{PREFIX}disable_patterns: no pattern {name!r}{_instead(name, known)}")
    return names


def _instead(name: str, known: tuple[str, ...], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, 1)
    suggestion = f"; did you mean {prefix}{near[0]}?" if near else ""
    return f"{suggestion} (known: {', '.join(prefix + each for each in sorted(known))})"
