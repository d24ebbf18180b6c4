"""The guards of the house: what is declared, what an import costs, and that each guard bites."""

import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import paiton

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("search_spaces", "kernels_triton", "cache", "compiler", "autotune")
NOT_PACKAGES = {"tests", "docs", "build", "dist"}


def _pyproject_list(key: str) -> list[str]:
    """One list of strings of pyproject.toml, read as text: Python 3.10 has no TOML reader."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^{key} = (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    assert found, f"pyproject.toml has no list {key!r}"
    return list(ast.literal_eval(found.group(1)))


def _package_folders() -> list[Path]:
    """Every folder of the package that holds an `__init__.py`, the root included."""
    folders = [ROOT]
    for init in sorted(ROOT.rglob("__init__.py")):
        inside = init.relative_to(ROOT).parts[:-1]
        if inside and inside[0] not in NOT_PACKAGES and not any(part.startswith(".") for part in inside):
            folders.append(init.parent)
    return folders


def _package_files() -> list[Path]:
    return [file for folder in _package_folders() for file in sorted(folder.glob("*.py"))]


def _run(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_declared_packages_are_the_folders_with_an_init() -> None:
    folders = [".".join(("paiton", *folder.relative_to(ROOT).parts)) for folder in _package_folders()]
    assert sorted(_pyproject_list("packages")) == sorted(folders)


def test_every_python_folder_of_the_package_has_an_init() -> None:
    """A folder without one works from the checkout and is missing from the wheel."""
    tracked = {file.parent for floor in FLOORS for file in (ROOT / floor).rglob("*.py")}
    assert sorted(folder for folder in tracked if not (folder / "__init__.py").exists()) == []


def test_the_root_says_its_version_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", paiton.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{paiton.__version__}]" in changelog
    try:
        installed = version("paiton")
    except ImportError:
        pytest.skip("paiton runs from the checkout, without an installed distribution to compare with")
    assert installed == paiton.__version__


def test_importing_paiton_imports_nothing_heavy() -> None:
    heavy = ("torch", "triton", "numpy", "optuna", "sqlalchemy", "transformers", "click", "rich")
    code = f"import sys, paiton; dir(paiton); print([m for m in {heavy!r} if m in sys.modules])"
    done = _run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def test_public_names_are_listed_and_an_unknown_one_is_refused() -> None:
    assert {"ConfigStore", "tune", "__version__"} <= set(dir(paiton))
    with pytest.raises(AttributeError, match="has no attribute 'tunes'"):
        _ = paiton.tunes


def test_no_machine_path_is_committed() -> None:
    listed = _run("git", "ls-files", "-z")
    if listed.returncode != 0:
        pytest.skip("not a git checkout: there is no list of committed files")
    # /home/u is a made-up home in tests.
    machine_path = re.compile(r"(?<![\w.$}/:-])/(?:root|home(?!/u\b)|work|Users|mnt|scratch)/[\w.-]+")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if file.is_file() and not file.is_symlink():
            text = file.read_text(encoding="utf-8", errors="ignore")
            found += [f"{name}: {match.group()}" for match in machine_path.finditer(text)]
    assert found == []


def test_functions_beside_the_kernels_are_fully_annotated() -> None:
    """mypy lets `kernels_triton` define bare functions for the kernels' sake; nothing else may use that."""
    bare = []
    for file in (ROOT / "kernels_triton").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            if any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            unannotated = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if unannotated or node.returns is None:
                bare.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert bare == []


def _copy_of_the_package(folder: Path) -> Path:
    """A copy of the package called `paiton`, to be damaged: imports resolve to it and not to the checkout."""
    copy = folder / "paiton"
    for file in [ROOT / "pyproject.toml", *_package_files()]:
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return copy


def _lint_imports(copy: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from importlinter.cli import lint_imports; sys.exit(lint_imports('pyproject.toml', no_cache=True))"
    )
    return _run(sys.executable, "-c", code, str(copy.parent), cwd=copy)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("search_spaces/intruder.py", "import torch"),
        ("search_spaces/intruder.py", "from ..kernels_triton import intruder"),
        ("cache/intruder.py", "import torch"),
        ("cache/intruder.py", "import optuna"),
        ("cache/intruder.py", "from .. import kernels_triton"),
        ("kernels_triton/intruder.py", "from .. import cache"),
        ("kernels_triton/intruder.py", "from .. import autotune"),
        ("cache/lookup.py", "import sqlalchemy"),
    ],
)
def test_a_deliberate_violation_breaks_the_contracts(tmp_path: Path, file: str, line: str) -> None:
    copy = _copy_of_the_package(tmp_path)
    intruder = copy / file
    for needed in ("kernels_triton/intruder.py", "cache/lookup.py"):
        (copy / needed).touch()
    assert _lint_imports(copy).returncode == 0
    before = intruder.read_text(encoding="utf-8") if intruder.exists() else ""
    intruder.write_text(f"{before}\n{line}\n", encoding="utf-8")
    broken = _lint_imports(copy)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert "BROKEN" in broken.stdout


@pytest.mark.parametrize("name", FLOORS)
def test_a_bare_import_of_a_floor_breaks_ruff(tmp_path: Path, name: str) -> None:
    (tmp_path / "user.py").write_text(f"import {name}\n\nprint({name})\n", encoding="utf-8")
    config = str(ROOT / "pyproject.toml")
    done = _run(sys.executable, "-m", "ruff", "check", "--no-cache", "--config", config, str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"TID251 `{name}` is banned" in done.stdout


def test_the_import_contracts_name_every_floor() -> None:
    """A floor that exists is guarded: the optional brackets in the layers are for floors not built yet."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts = text[text.index("[tool.importlinter]") :]
    needed = {"cache": '"paiton.cache"', "compiler": '"paiton.compiler"'}
    missing = [floor for floor, name in needed.items() if (ROOT / floor).exists() and name not in contracts]
    assert missing == []
