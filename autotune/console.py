"""The console that commands print tables to."""

from __future__ import annotations

from rich.console import Console

PIPE_WIDTH = 160
"""Columns where the output is no terminal: wide enough for every table, so that files and pipes lose nothing."""


def make_console(pipe_width: int = PIPE_WIDTH) -> Console:
    """Standard output, as wide as the terminal, or `pipe_width` columns into a file or pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=pipe_width)
