"""`selective-peft recipes`: the paper's experiments, as a table for people, for documents or as JSON."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from selective_peft.recipes import RECIPES, Recipe
from selective_peft.results import to_json

HEADINGS = ("recipe", "data", "model", "metric", "batch", "lr", "exp, eps", "budgets", "epochs", "tokens")


def cells(name: str, recipe: Recipe) -> tuple[str, ...]:
    """A row of the table. Of several values the one that is taken has a star."""
    chosen, paper = recipe.chosen, recipe.paper
    base = "" if "base" not in chosen else f" + {chosen['base']} r={chosen['rank']}"
    return (
        name,
        str(recipe.source),
        f"{chosen['model']}{base}",
        recipe.metric,
        str(paper["batch_size"]),
        _starred(recipe.lrs, recipe.lr),
        f"{paper['score_exp']:g}, {paper['score_eps']:g}",
        _starred(recipe.budgets, chosen["budget"]),
        f"{chosen['epochs']:g}",
        str(chosen["max_length"]),
    )


def _starred(values: tuple[int | float, ...], taken: int | float) -> str:
    shown = (f"{value:,}" if isinstance(value, int) else f"{value:g}" for value in values)
    return "; ".join(
        f"{text}*" if value == taken and len(values) > 1 else text for text, value in zip(shown, values, strict=True)
    )


def markdown() -> str:
    """The table of docs/recipes.md."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(cells(*item) for item in RECIPES.items())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def run(options: argparse.Namespace, console: Console) -> None:
    """Prints what is asked for."""
    if options.json:
        print(to_json({name: recipe.describe() for name, recipe in RECIPES.items()}, ascii_only=True))
    elif options.markdown:
        print(markdown(), end="")
    else:
        table = Table(show_header=True, header_style="bold")
        for heading in HEADINGS:
            table.add_column(heading, no_wrap=heading == "recipe", overflow="fold")
        for item in RECIPES.items():
            table.add_row(*cells(*item))
        console.print(table, highlight=False)
