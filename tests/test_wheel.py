"""The built wheel in a clean environment, used beside a user's own `cache.py` and `autotune.py`

The checkout cannot show what a wheel lacks: a package missing from the list works in editable mode.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_PACKAGES = {"tests", "docs", "build", "dist"}
HOSTILE = 'raise RuntimeError("the user\'s own file was imported in place of ours")\n'


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run without PYTHONPATH, which would lead back to the checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    litter = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.db")
    shutil.copytree(ROOT, source, ignore=litter)
    for stray in (".venv/lib/stray.py", "scratch/stray.py", "stray/__init__.py"):
        (source / stray).parent.mkdir(parents=True)
        (source / stray).touch()
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder))
    built = _run(sys.executable, "-m", "pip", "wheel", *options, str(source), cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("paiton-*.whl")
    return found


@pytest.fixture(scope="module")
def clean_env(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of executables of an environment with the wheel; the dependencies are this environment's.

    A folder named in a .pth file goes on sys.path without its own .pth files being read: an editable
    installation of paiton in this environment stays invisible there.
    """
    home = tmp_path_factory.mktemp("clean") / "env"
    venv.create(home, with_pip=False)
    layout = {"base": str(home), "platbase": str(home)}
    own = Path(sysconfig.get_path("purelib", "posix_prefix", vars=layout))
    theirs = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (own / "dependencies.pth").write_text("\n".join(theirs) + "\n", encoding="utf-8")
    python = str(home / "bin" / "python")
    options = ("--no-deps", "--no-index", "--force-reinstall")
    installed = _run(sys.executable, "-m", "pip", "--python", python, "install", *options, str(wheel), cwd=home)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return home / "bin"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A user's folder with files named as our floors are."""
    for name in ("autotune", "cache", "compiler", "kernels_triton", "search_spaces"):
        (tmp_path / f"{name}.py").write_text(HOSTILE, encoding="utf-8")
    return tmp_path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"paiton/py.typed"}
    for file in ROOT.rglob("*.py"):
        inside = file.relative_to(ROOT)
        packaged = (file.parent / "__init__.py").exists() and inside.parts[0] not in NOT_PACKAGES
        if packaged and not any(part.startswith(".") for part in inside.parts):
            expected.add(f"paiton/{inside.as_posix()}")
    assert {name for name in names if name.endswith(".py") or name == "paiton/py.typed"} == expected
    assert [name for name in names if not name.startswith("paiton/")] == []


def test_the_installed_package_is_imported_beside_hostile_files(clean_env: Path, hostile: Path) -> None:
    modules = ["search_spaces.workload", "cache.store", "cache.lookup", "kernels_triton", "autotune.tune"]
    script = hostile / "user.py"
    script.write_text(
        "import importlib, paiton\n"
        f"modules = [paiton, *(importlib.import_module('paiton.' + name) for name in {modules!r})]\n"
        "print(*(module.__file__ for module in modules), sep='\\n')\n",
        encoding="utf-8",
    )
    done = _run(str(clean_env / "python"), str(script), cwd=hostile)
    files = done.stdout.splitlines()
    assert len(files) == 1 + len(modules), done.stderr
    assert [file for file in files if not file.startswith(str(clean_env.parent))] == []


def test_the_console_script_answers_beside_hostile_files(clean_env: Path, hostile: Path) -> None:
    # The second form has the hostile folder first on sys.path, the first has not.
    forms = [
        [str(clean_env / "autotune")],
        [str(clean_env / "python"), "-c", "from paiton.autotune.cli import main; main()"],
    ]
    for form in forms:
        for arguments, answer in ((["--help"], "Usage:"), (["archs"], "gfx942")):
            done = _run(*form, *arguments, cwd=hostile)
            assert done.returncode == 0, done.stderr
            assert answer in done.stdout
