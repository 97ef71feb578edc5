"""`selective-peft methods`: what `--method` can be."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from selective_peft import methods


def run(_: argparse.Namespace, console: Console) -> None:
    """Prints a table."""
    table = Table(show_header=True, header_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("")
    for name, line in methods().items():
        table.add_row(name, line)
    console.print(table, highlight=False)
