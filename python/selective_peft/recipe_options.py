"""The options of `selective-peft train --recipe`: what the recipe says, and what the user says instead."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selective_peft import options as known
from selective_peft.errors import InputError
from selective_peft.options import BASE_OPTIONS, METHOD_OPTIONS
from selective_peft.recipes import RECIPES, Recipe

GENERATED = ("test_before", "beams", "new_tokens", "test_batch_size")  # of tests whose answers are generated
OWN = ("data_folder", "eval_split", *GENERATED)  # options that only recipes have
FIXED = ("task", "data", "eval_data", "group_column")  # what a recipe says and nobody else
NOT_ASKED = object()


def train(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft train`."""
    known.train(parser)
    group = parser.add_argument_group("recipe (all other options change what it says)")
    group.add_argument(
        "--data-folder", type=Path, metavar="FOLDER", help="its data, if they are not to be loaded from the Hub"
    )
    group.add_argument("--eval-split", metavar="NAME", help="evaluate on another split than the recipe's")
    group.add_argument("--beams", type=known.COUNT, metavar="N", help="of the search for texts in tests")
    group.add_argument("--new-tokens", type=known.COUNT, metavar="N", help="that these texts may have")
    group.add_argument("--test-batch-size", type=known.COUNT, metavar="N", help="texts that are written at once")
    group.add_argument("--test-before", action="store_true", help="write them before training, too, for comparison")


def recipes(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft recipes`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything there is to them, as JSON")
    form.add_argument("--markdown", action="store_true", help="the table of docs/recipes.md")


@dataclass(frozen=True)
class Chosen:
    """A recipe and where a run's options come from.

    Attributes:
        name: of the recipe.
        paper, recipe, user: options -> values, from the paper, chosen by the recipe, given by the user.
    """

    name: str
    paper: Mapping[str, Any]
    recipe: Mapping[str, Any]
    user: Mapping[str, Any]

    def report(self) -> dict[str, Any]:
        """For metrics.json: its name, the source of its data, and which value comes from where."""
        parts = {"paper": self.paper, "recipe": self.recipe, "user": self.user}
        plain = {
            where: {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
            for where, values in parts.items()
        }
        return {"name": self.name, "source": str(self.content.source), **plain}

    @property
    def content(self) -> Recipe:
        """The recipe itself."""
        return RECIPES[self.name]


def complete(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Sets what a recipe says and the user did not; `options.chosen` becomes its `Chosen`, or None without one.

    Args:
        options: of `selective-peft train`.
        words: of the command line, after "train".

    Raises:
        InputError: an option that does not go with a recipe, or only with one; or no model is named.
    """
    user = _given(words)
    options.chosen = None
    if options.recipe is None:
        for name in OWN:
            if name in user:
                raise InputError(f"{_flag(name)}: expected --recipe with it, got none")
        if options.model is None:
            raise InputError("--model: expected one, or a --recipe, which names one; got neither")
        return
    recipe = RECIPES[options.recipe]
    _check(options.recipe, recipe, user)
    method = user.get("method", "id3")
    base = user.get("base", recipe.chosen.get("base", "full"))
    said = {name: value for name, value in recipe.defaults(method, base).items() if _has(name, method, base)}
    if "steps" in user:
        said.pop("epochs", None)
    if "lr" not in said and "lr" not in user:
        raise InputError(
            f"--lr: expected one, since the paper has none for full fine-tuning in {options.recipe}, got none"
        )
    taken = {name: value for name, value in said.items() if name not in user}
    for name, value in taken.items():
        setattr(options, name, value)
    grid = {"lr", "budget"}  # the paper's, at the recipe's point
    paper = {name: value for name, value in taken.items() if name in recipe.paper or name in grid}
    chosen = {name: value for name, value in taken.items() if name not in paper}
    shown = {name: value for name, value in user.items() if name not in ("recipe", "output")}
    options.chosen = Chosen(options.recipe, paper, chosen, shown)


def _check(name: str, recipe: Recipe, user: Mapping[str, Any]) -> None:
    refused = [*FIXED, *(() if recipe.evaluation is None else ("eval_share",))]
    refused += () if recipe.answer else GENERATED
    refused += () if recipe.evaluation else ("eval_split",)
    for option in refused:
        if option in user:
            raise InputError(f"{_flag(option)}: expected none with --recipe {name}, got {user[option]}")


def _has(option: str, method: str, base: str) -> bool:
    """Whether an option goes with the method and the base."""
    of_method, of_base = METHOD_OPTIONS.get(option), BASE_OPTIONS.get(option)
    return (of_method is None or method in of_method[0]) and (of_base is None or base in of_base[0])


def _given(words: Sequence[str]) -> dict[str, Any]:
    """Options that stand on the command line, and their values."""
    parser = argparse.ArgumentParser(add_help=False)
    train(parser)
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args(words)), NOT_ASKED))
    return {name: value for name, value in vars(parser.parse_args(words)).items() if value is not NOT_ASKED}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def announce(chosen: Chosen | None) -> list[str]:
    """What comes from where, a line each; nothing without a recipe."""
    if chosen is None:
        return []
    lines = {"from the paper": chosen.paper, f"from the recipe {chosen.name}": chosen.recipe, "given": chosen.user}
    return [
        f"{where}: {', '.join(f'{name} {_shown(value)}' for name, value in sorted(values.items()))}"
        for where, values in lines.items()
        if values
    ]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
