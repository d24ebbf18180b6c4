"""`autotune doctor`: is this installation sound, and are its answers usable?"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from .options import database_option, database_path_of, json_option, shipped_paths

KNOWN_VARIABLES = ("PAITON_DB", "PAITON_SHIPPED", "PAITON_TEST_GPU", "PAITON_PEER_CONFIGS")


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is sound, and what was found."""

    check: str
    is_sound: bool
    text: str


@click.command(short_help="Check the installation and the database.")
@click.option(
    "--compile",
    "compiles",
    is_flag=True,
    help="Compile every stored answer again and check that it fits its chip.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=None,
    help="Compile workers. [default: the CPUs of this machine]",
)
@click.option(
    "--script",
    "scripts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Also read a script of yours, without running it: does a generate() run uncompiled?",
)
@database_option
@json_option
def doctor(
    compiles: bool, jobs: int | None, scripts: tuple[Path, ...], database: str | None, as_json: bool
) -> int:  # fmt: skip
    """Check packages, compilers, GPU, environment variables and the database. Exit status 1 when something is wrong.

    \b
    Examples:
      autotune doctor
      autotune doctor --compile
      autotune doctor --script serve.py
    """
    findings: list[Finding] = []
    path = database_path_of(database)
    for finding in (*_findings(path), *map(_script, scripts)):
        findings.append(finding)
        if not as_json:
            _say(finding)
    if compiles and path.exists():
        from ..recheck import recheck

        is_sound, text = recheck(path, jobs or len(os.sched_getaffinity(0)))
        findings.append(Finding("stored answers compile", is_sound, text))
        if not as_json:
            _say(findings[-1])
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    return 0 if all(finding.is_sound for finding in findings) else 1


def _say(finding: Finding) -> None:
    mark = click.style("ok   ", fg="green") if finding.is_sound else click.style("FAULT", fg="red")
    click.echo(f"{mark} {finding.check}: {finding.text}")


def _findings(path: Path) -> Iterator[Finding]:
    yield from _packages()
    yield _transformers()
    yield _backend()
    yield _compilers()
    yield _gpu()
    yield from _variables(os.environ)
    yield _database(path)
    yield from _shipped()


def _packages() -> Iterator[Finding]:
    from ...version import __version__
    from ..environment import installed_version

    yield Finding("paiton", True, __version__)
    for package, lowest in (
        ("torch", (2, 11)),
        ("triton", (3, 6)),
        ("optuna", (5, 0)),
        ("sqlalchemy", (2, 0)),
    ):
        found = installed_version(package)
        wanted = ".".join(map(str, lowest))
        is_sound = bool(found) and tuple(int(part) for part in found.split(".")[:2]) >= lowest
        yield Finding(package, is_sound, f"{found or 'not installed'} (needs {wanted} or newer)")


def _transformers() -> Finding:
    from ..environment import installed_version

    lowest = (5, 17)
    found = installed_version("transformers")
    if not found:
        return Finding(
            "transformers", True, "not installed (optional: models by hub id, and the torch.compile backend)"
        )
    is_sound = tuple(int(part) for part in found.split(".")[:2]) >= lowest
    return Finding("transformers", is_sound, f"{found} (needs 5.17 or newer for the torch.compile backend)")


def _backend() -> Finding:
    """Whether torch.compile(..., backend="paiton") finds the backend by itself."""
    from importlib.metadata import entry_points

    found = entry_points(group="torch_dynamo_backends", name="paiton")
    if not found:
        return Finding(
            "backend", True, "no entry point (a checkout that is not installed): call paiton.register() first"
        )
    targets = {entry.value for entry in found}
    if targets != {"paiton.compiler.backend:paiton"}:
        return Finding("backend", False, f'the name "paiton" belongs to {", ".join(sorted(targets))}')
    return Finding(
        "backend", True, 'torch.compile(..., backend="paiton") is found; for generate() use paiton.compile(model)'
    )


def _script(path: Path) -> Finding:
    from ..generate_trap import find_traps

    try:
        traps = find_traps(path)
    except (SyntaxError, UnicodeDecodeError) as error:
        return Finding("script", False, f"{path} cannot be read: {error}")
    return Finding("script", not traps, "; ".join(map(str, traps)) or f"{path}: no generate() that runs uncompiled")


def _compilers() -> Finding:
    from triton.backends import backends

    names = sorted(backends)
    missing = {"amd", "nvidia"} - set(names)
    text = f"Triton can compile for {', '.join(names)}"
    if missing:
        return Finding("compilers", False, f"{text}; missing: {', '.join(sorted(missing))}")
    return Finding("compilers", True, text)


def _gpu() -> Finding:
    from ..local_gpu import find_local_gpu

    gpu = find_local_gpu()
    if gpu is None:
        return Finding("gpu", True, "none of the catalogue: runs are estimated, not measured")
    return Finding("gpu", True, f"{gpu.name} ({gpu.arch_text}): runs for {gpu.device.name} are measured")


def _variables(environ: os._Environ[str]) -> Iterator[Finding]:
    for name in sorted(environ):
        if name.startswith("PAITON_") and name not in KNOWN_VARIABLES:
            near = difflib.get_close_matches(name, KNOWN_VARIABLES, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(KNOWN_VARIABLES)}"
            yield Finding("environment", False, f"{name} is set but means nothing{hint}")
    if environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        yield Finding(
            "environment",
            False,
            "TRITON_INTERPRET is set: kernels would run in Triton's interpreter, not on the GPU",
        )


def _shipped() -> Iterator[Finding]:
    """The files under the user's database, each read as a stranger's."""
    from ...cache.errors import StoreError
    from ...cache.manifest import read_answers

    for path in shipped_paths():
        try:
            yield Finding("shipped database", True, f"{path}: {len(read_answers(path))} answers")
        except StoreError as error:
            yield Finding("shipped database", False, str(error))


def _database(path: Path) -> Finding:
    from collections import Counter

    from ...cache.errors import StoreError
    from ...cache.filesystem import network_filesystem
    from ...cache.store import ConfigStore

    kind = network_filesystem(path)
    if kind is not None:
        return Finding("database", False, f"{path} is on a network file system ({kind}): it can be read, not written")
    if not path.exists():
        return Finding("database", True, f"{path} does not exist yet; the first run makes it")
    try:
        with ConfigStore.open(path, read_only=True) as store:
            rows = store.tuned()
            unfinished = sum(1 for run in store.runs() if run.status.value == "running")
    except StoreError as error:
        return Finding("database", False, str(error))
    labels = Counter(row.label.name.lower() for row in rows)
    text = ", ".join(f"{count} {label}" for label, count in labels.items()) or "no answers"
    killed = f"; {unfinished} runs never ended (killed, or still going)" if unfinished else ""
    return Finding("database", True, f"{path}: {text}{killed}")
