"""The kernel digest: follows the meaning of the source, equal in every Python version."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from paiton.kernels_triton import digest
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.registry import KERNEL_NAMES

SOURCE = '''
LIMIT = 3


def plan(x, *, scale=1.5):
    """What it does."""
    # why it does it
    return [helper(x)[: LIMIT, None], {"a": -scale}, "text", None]


def helper(x):
    return x if x > 0 else not x
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a module of a source text that counts as ours, so that the digest follows its helpers."""
    made = 0

    def make(source: str) -> ModuleType:
        nonlocal made
        made += 1
        path = tmp_path / f"made{made}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("planned", path)
        assert spec is not None and spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    monkeypatch.setattr(digest, "_OUR_PACKAGE", "planned")
    return make


def test_blind_to_comments_and_form(module) -> None:
    other = (
        SOURCE.replace('    """What it does."""\n', "")
        .replace("# why it does it", "#")
        .replace("(x, *, ", "(\n  x, *, ")
    )
    assert other != SOURCE
    assert digest.source_digest(module(other).plan) == digest.source_digest(module(SOURCE).plan)


@pytest.mark.parametrize(
    ("old", "new"),
    [("LIMIT = 3", "LIMIT = 4"), ("x > 0", "x >= 0"), ("scale=1.5", "scale=1.25"), ("LIMIT, None", "LIMIT"),
     ('"text", None', '"text"'), ('"text"', '"other"'), ("1.5", "'1.5'")],
)  # fmt: skip
def test_follows_the_meaning(module, old: str, new: str) -> None:
    assert old in SOURCE
    assert digest.source_digest(module(SOURCE.replace(old, new)).plan) != digest.source_digest(module(SOURCE).plan)


def test_is_the_same_in_every_python(module) -> None:
    # Written down under Python 3.11; the versions in between differ in ast.dump of the very same source.
    assert digest.source_digest(module(SOURCE).plan) == "828030ad0971ecf4"


def test_does_not_see_fields_that_a_python_version_adds(module, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest.source_digest(module(SOURCE).plan)
    monkeypatch.setattr(ast.FunctionDef, "_fields", (*ast.FunctionDef._fields, "added_list", "added_optional"))
    monkeypatch.setattr(ast.FunctionDef, "added_list", [], raising=False)
    assert digest.source_digest(module(SOURCE).plan) == before


def test_every_kernel_has_its_own() -> None:
    found = {name: spec_of(name).digest for name in KERNEL_NAMES}
    assert all(len(text) == 16 and int(text, 16) for text in found.values())
    assert len({*found.values()}) == len(found), found
