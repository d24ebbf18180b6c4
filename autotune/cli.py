"""The command line `autotune`. Nothing heavy is imported before a command needs it, so that help answers at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from ..version import __version__
from .commands.archs import archs
from .commands.diff import diff
from .commands.doctor import doctor
from .commands.explain import explain
from .commands.export import export
from .commands.import_answers import import_answers
from .commands.lint import lint
from .commands.merge import merge
from .commands.models import models
from .commands.run import run
from .commands.show import show
from .commands.verify import verify
from .commands.warmup import warmup

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="autotune")
def cli() -> None:
    """Tune GPU kernels for large language models, with or without the GPU at hand.

    \b
    Example:
      autotune run --arch gfx942 --model Qwen3-30B-A3B

    Exit status: 0 done, 1 the work failed or found faults, 2 wrong usage, 130 interrupted.
    """


SHARING = (export, import_answers, merge, diff, verify, lint)

for command in (run, show, explain, warmup, archs, models, doctor, *SHARING):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script: errors become one line and an exit status, never a traceback."""
    sys.exit(status_of(arguments))


def status_of(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    from ..cache.errors import DiskFailure, StoreError
    from .worker_pool import WorkerFailed

    try:
        outcome = cli.main(args=arguments, prog_name="autotune", standalone_mode=False)
    except click.exceptions.Abort:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # since click 8.2: text of many lines
            error.show()
            return error.exit_code
        return _fail(error.format_message(), error.exit_code)
    except DiskFailure as error:
        return _fail(str(error), EXIT_FAILED)
    except WorkerFailed as error:
        return _fail(f"{error}; what was finished is kept", EXIT_FAILED)
    except StoreError as error:
        return _fail(str(error), EXIT_USAGE)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        return EXIT_FAILED
    return outcome if isinstance(outcome, int) else 0


def _fail(text: str, status: int) -> int:
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    return status
