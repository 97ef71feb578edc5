"""How the commands say what they did: a table or JSON on stdout, a progress bar on stderr."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from selective_peft.results import to_json


def show(console: Console, options: argparse.Namespace, found: Mapping[str, Any], *lines: RenderableType) -> None:
    """Prints JSON if it is asked for, nothing if that is, else tables and lines.

    Args:
        console: for stdout.
        options: with `json` and `quiet`.
        found: all that is known, for JSON.
        lines: the same for people.
    """
    if options.json:
        print(to_json(found, ascii_only=True), flush=True)  # so that any terminal and pipe takes it
    elif not options.quiet:
        for line in lines:
            console.print(line, highlight=False)


def facts(rows: Mapping[str, str]) -> Table:
    """Names at the left, what they are at the right; rows without anything are left out."""
    grid = Table(show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            grid.add_row(name, clean(value))
    return grid


def clean(text: str) -> str:
    """Text from a file as rich shows it: no markup, and nothing that steers the terminal."""
    return escape("".join(sign if sign.isprintable() else "?" for sign in text))


def warning(words: str) -> str:
    """A line that is to be noticed."""
    return f"[yellow]{clean(words)}[/yellow]"


@contextmanager
def progress_bar(options: argparse.Namespace) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, which is gone in the end; none if stderr is no terminal, or for `json` and `quiet`.

    Yields:
        What is to be told: bytes done, bytes in all, what is being done.
    """
    console = Console(stderr=True)
    hidden = not console.is_terminal or options.json or options.quiet
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=hidden, expand=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
