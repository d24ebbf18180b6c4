"""The backend's options: what is read, what is refused and what the message suggests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paiton.compiler.options import BadOption, Options, read_options

PATTERNS = ("rms_norm", "attention", "linear")


def test_nothing_given_is_the_defaults() -> None:
    assert read_options() == Options()


def test_every_option_is_read() -> None:
    given = {
        "paiton.strict": True,
        "paiton.lower": "aot_eager",
        "paiton.disable_patterns": ["attention"],
        "paiton.dump": "graphs",
        "paiton.sites": "all",
    }
    assert read_options(given, patterns=PATTERNS) == Options(
        strict=True, lower="aot_eager", disable_patterns=frozenset({"attention"}), dump=Path("graphs"), sites="all"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"paiton.strickt": True}, "unknown option paiton.strickt; did you mean paiton.strict"),
        ({"paiton.zzz": 1}, r"\(known: paiton.disable_patterns, paiton.dump, paiton.lower, .*paiton.strict\)"),
        ({"paiton.strict": "yes"}, "True or False, not 'yes'"),
        ({"paiton.lower": "jit"}, "one of inductor, aot_eager, eager, not 'jit'"),
        ({"paiton.sites": "some"}, "one of faster, all"),
        ({"paiton.disable_patterns": ["atention"]}, "no pattern 'atention'; did you mean attention"),
        ({"paiton.disable_patterns": "attention"}, "a list of names"),
        ({"paiton.disable_patterns": 3}, "a list of names"),
        ({"paiton.dump": 3}, "path of a folder"),
        ({"paiton.mode": 3}, "a mode of torch.compile"),
    ],
)
def test_a_wrong_option_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        read_options(given, patterns=PATTERNS)


def test_a_mode_is_what_inductor_makes_of_it() -> None:
    wanted = torch._inductor.list_mode_options("reduce-overhead")
    assert read_options(mode="reduce-overhead").inductor == wanted
    assert read_options({"paiton.mode": "reduce-overhead"}).inductor == wanted
    assert wanted == {"triton.cudagraphs": True}
    assert read_options(mode="default").inductor == {}


def test_inductor_options_stand_beside_a_mode_and_win() -> None:
    found = read_options({"paiton.mode": "max-autotune-no-cudagraphs", "max_autotune": False, "epilogue-fusion": False})
    assert found.inductor["max_autotune"] is False
    assert found.inductor["epilogue_fusion"] is False


def test_modes_that_contradict_each_other_are_refused() -> None:
    assert read_options({"paiton.mode": "default"}, "default").inductor == {}
    with pytest.raises(BadOption, match="contradict"):
        read_options({"paiton.mode": "max-autotune"}, "reduce-overhead")


def test_torch_says_what_is_wrong_with_its_own() -> None:
    with pytest.raises(RuntimeError, match="Unrecognized mode=nonsense"):
        read_options(mode="nonsense")
    with pytest.raises(RuntimeError, match="Unexpected optimization option no_such_thing"):
        read_options({"no_such_thing": 1})
    with pytest.raises(RuntimeError, match="Unexpected type of attr max_autotune"):
        read_options({"max_autotune": "yes"})
