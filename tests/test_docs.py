"""The documentation is held to the code: links resolve, commands exist, what is promised is named."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_COMMAND = re.compile(r"(?<![\w./-])autotune ([a-z][a-z-]*)((?: +(?!\||#)[^\s`]+)*)")


def _commands() -> dict[str, set[str]]:
    """Every subcommand and the options it takes."""
    from paiton.autotune.cli import cli

    return {
        name: {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}
        | {"--help"}
        for name, command in cli.commands.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    targets = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in targets if not (page.parent / link.split("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    known = _commands()
    unknown = []
    for code in _CODE.findall(page.read_text(encoding="utf-8")):
        for name, arguments in _COMMAND.findall(code):
            if name not in known:
                unknown.append(f"autotune {name}")
                continue
            options = re.findall(r"(?<=\s)--[a-z-]+", arguments)
            unknown += [f"autotune {name} {option}" for option in options if option not in known[name]]
    assert unknown == []


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in _commands() if f"autotune {name}" not in readme] == []


def test_files_named_in_the_documentation_exist() -> None:
    """Paths such as `search_spaces/workload.py`; placeholders in angle brackets and globs are not paths."""
    named = re.compile(r"`((?:search_spaces|kernels_triton|cache|autotune|tests|docs)/[\w./]*)`")
    missing = []
    for page in PAGES:
        for path in named.findall(page.read_text(encoding="utf-8")):
            if not (ROOT / path).exists():
                missing.append(f"{page.name}: {path}")
    assert missing == []


def test_every_make_target_of_the_documentation_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"setup", "run", "test", "check", "clean"} <= targets
    for page in PAGES:
        for code in _CODE.findall(page.read_text(encoding="utf-8")):
            named = set(re.findall(r"\bmake ([a-z]+)", code))
            assert named <= targets, page.name
