"""The options of the commands, and what they may be."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from selective_peft import D3
from selective_peft.errors import InputError
from selective_peft.methods import METHODS
from selective_peft.recipes import RECIPES
from selective_peft.schedules import SCHEDULES

TASKS = ("classification", "regression", "token", "seq2seq", "causal")
BASES = ("full", "lora", "pfeiffer", "houlsby")
BUDGETED = tuple(name for name, method in METHODS.items() if method.budget)
GROWING = tuple(name for name, method in METHODS.items() if method.strategy == "increment")
D3_METHODS = tuple(name for name, method in METHODS.items() if method.score is D3)
Own = Mapping[str, tuple[Collection[str], Any]]  # option -> the choices that have it, its default with them
METHOD_OPTIONS: Own = {
    "budget": (BUDGETED, 0.005),
    "scope": (BUDGETED, "global"),
    "score_exp": (D3_METHODS, 2.0),
    "score_eps": (D3_METHODS, 1.0),
    "save_at": (GROWING, None),
    "schedule": (GROWING, "uniform"),
    "select_every": ((*GROWING, "d3-repeat"), 1),
    "fish_samples": (("fish",), 1024),
    "fish_type": (("fish",), "label"),
    "diff_warmup": (("diff",), None),
    "diff_tuned": (("diff",), None),
}
ADAPTERS = ("pfeiffer", "houlsby")
BASE_OPTIONS: Own = {
    "rank": (("lora",), 8),
    "lora_alpha": (("lora",), None),
    "target_modules": (("lora",), None),
    "adapter_size": (ADAPTERS, 64),
}


def settle(options: argparse.Namespace, chooser: str, own: Own) -> None:
    """Sets the defaults of options that only some choices of another option have; of other choices they are None.

    Args:
        options: in which None means: not given.
        chooser: the other option, such as "method".
        own: names of such options, the choices that have them, their defaults.

    Raises:
        InputError: one is given with a choice that does not have it.
    """
    choice = getattr(options, chooser)
    for name, (choices, default) in own.items():
        if choice in choices:
            if getattr(options, name) is None:
                setattr(options, name, default)
        elif getattr(options, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')}: expected --{chooser} {' or '.join(sorted(choices))} with it, got {choice}"
            )


def _number(
    kind: Callable[[str], float], least: float, *, strictly: bool = False, below: float = math.inf
) -> Callable[[str], float]:
    """A parser of finite numbers >= least (> least if strictly) and < below."""
    bounds = f"{'>' if strictly else '>='} {least}" + (f" and < {below}" if below < math.inf else "")

    def parse(text: str) -> float:
        value = kind(text)
        if not math.isfinite(value) or not least <= value < below or (strictly and value == least):
            raise argparse.ArgumentTypeError(f"expected a number {bounds}, got {text}")
        return value

    parse.__name__ = "integer" if kind is int else "number"  # argparse names it for what is no number at all
    return parse


COUNT, NUMBER = _number(int, 1), _number(int, 0)
POSITIVE, NON_NEGATIVE = _number(float, 0.0, strictly=True), _number(float, 0.0)
SHARE = _number(float, 0.0, strictly=True, below=1.0)
SEED = _number(int, 0, below=2**32)  # what all random generators take


def budget(text: str) -> int | float:
    """A number of scalars, or a share of them: 113000, 113_000, 0.005 or 0.5%.

    Raises:
        argparse.ArgumentTypeError: none of these.
    """
    try:
        value: int | float = int(text)
    except ValueError:
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            value = math.nan
        if not 0.0 < value < 1.0:
            raise argparse.ArgumentTypeError(
                f"expected a number of scalars, or a share of them such as 0.005 or 0.5%, got {text}"
            ) from None
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected 1 scalar or more, got {text}")
    return value


def share_or_all(text: str) -> float:
    """A share in [0, 1].

    Raises:
        argparse.ArgumentTypeError: none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text}")
    return value


def shares(text: str) -> list[float]:
    """Ascending shares in (0, 1], with commas between them: 0.1,0.25,0.5,1.0.

    Raises:
        argparse.ArgumentTypeError: none of these.
    """
    try:
        found = [float(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0.0 < share <= 1.0 for share in found) or sorted(set(found)) != found:
        raise argparse.ArgumentTypeError(f"expected ascending shares > 0 and <= 1 such as 0.1,0.25,0.5,1.0, got {text}")
    return found


def _data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="FILE", help="training rows: .csv or .jsonl")
    source.add_argument(
        "--recipe",
        choices=RECIPES,
        metavar="NAME",
        help="or an experiment of the paper with its data; `selective-peft recipes` lists them",
    )
    group.add_argument("--task", choices=TASKS, default="classification", help="(%(default)s)")
    group.add_argument(
        "--text-column", metavar="NAME", help="(text; of --task causal the prompts, without it there are none)"
    )
    group.add_argument("--text-pair-column", metavar="NAME", help="a second text, such as a passage for a question")
    group.add_argument(
        "--label-column",
        default="label",
        metavar="NAME",
        help="classes, numbers, tags, or texts to write (%(default)s)",
    )
    sides = group.add_mutually_exclusive_group()
    sides.add_argument("--eval-data", type=Path, metavar="FILE", help="evaluation rows, in a file of their own")
    sides.add_argument("--eval-share", type=SHARE, default=0.1, metavar="SHARE", help="or split off (%(default)s)")
    group.add_argument("--group-column", metavar="NAME", help="rows with the same value stay on one side")
    group.add_argument(
        "--max-length", type=COUNT, default=256, metavar="TOKENS", help="longer texts are cut (%(default)s)"
    )


def _selection(
    parser: argparse.ArgumentParser, spent: float | None, exp: float | None, eps: float | None, every: int | None
) -> None:
    """The defaults; None where they depend on the method."""
    group = parser.add_argument_group("selection")
    group.add_argument(
        "--budget", type=budget, default=spent, help="scalars to train: a number, or a share such as 0.5%% (0.005)"
    )
    group.add_argument(
        "--score-exp",
        type=float,
        default=exp,
        metavar="EXP",
        help="of the score |gradient| / (|theta| + eps)^exp (2.0)",
    )
    group.add_argument("--score-eps", type=POSITIVE, default=eps, metavar="EPS", help="(1.0)")
    group.add_argument(
        "--select-every",
        type=COUNT,
        default=every,
        metavar="K",
        help="growing methods select in every K-th step (1)",
    )


def _method(parser: argparse.ArgumentParser) -> None:
    names = list(METHODS)
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        choices=names,
        default="id3",
        metavar="NAME",
        help=f"{', '.join(names)} (%(default)s); `selective-peft methods` says what they do",
    )
    group.add_argument("--schedule", choices=sorted(SCHEDULES), help="of growing methods (uniform)")
    group.add_argument("--fish-samples", type=COUNT, metavar="N", help="rows that fish looks at (1024)")
    group.add_argument(
        "--fish-type", choices=("label", "expected"), help="fish: the row's label, or the model's (label)"
    )
    other = group.add_mutually_exclusive_group()
    other.add_argument("--diff-warmup", type=COUNT, metavar="STEPS", help="dense steps of diff (10 %% of the steps)")
    other.add_argument("--diff-tuned", metavar="MODEL", help="or a tuned model: diff ranks by the difference to it")
    group.add_argument("--scope", choices=("global", "tensor"), help="one budget, or a part for each tensor (global)")
    group.add_argument(
        "--train-fully", nargs="+", default=[], metavar="PATTERN", help="parameters to train whole, beside the budget"
    )
    group.add_argument("--exclude", nargs="+", default=[], metavar="PATTERN", help="parameters to leave as they are")
    group.add_argument(
        "--save-at", type=shares, metavar="SHARES", help="save when these shares of the budget are spent: 0.1,0.5,1.0"
    )
    group.add_argument("--bias-correction", choices=("global", "per_entry"), default="global", help="(%(default)s)")


def _base(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("base")
    group.add_argument("--base", choices=BASES, default="full", help="what the budget is spent on (%(default)s)")
    group.add_argument("--rank", type=COUNT, metavar="R", help="of lora (8)")
    group.add_argument("--lora-alpha", type=POSITIVE, metavar="A", help="(twice the rank)")
    group.add_argument(
        "--target-modules",
        nargs="+",
        metavar="NAME",
        help="where lora goes, or all-linear (PEFT's choice for the model)",
    )
    group.add_argument("--adapter-size", type=COUNT, metavar="SIZE", help="of pfeiffer and houlsby (64)")


def _training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=COUNT, help="optimizer steps")
    length.add_argument("--epochs", type=POSITIVE, default=1.0, help="or passes over the data (%(default)s)")
    group.add_argument("--batch-size", type=COUNT, default=16, help="rows per forward pass (%(default)s)")
    group.add_argument("--accumulation", type=COUNT, default=1, help="forward passes per step (%(default)s)")
    group.add_argument("--lr", type=POSITIVE, default=1e-3, help="falls linearly to 0 (%(default)s)")
    group.add_argument("--warmup", type=NUMBER, default=0, metavar="STEPS", help="of the learning rate (%(default)s)")
    group.add_argument("--weight-decay", type=NON_NEGATIVE, default=0.0, help="of selected scalars (%(default)s)")
    group.add_argument("--max-grad-norm", type=POSITIVE, help="clip by the norm over the selected scalars")
    group.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="mixed precision (%(default)s)"
    )
    group.add_argument("--evaluations", type=COUNT, default=5, metavar="N", help="during training (%(default)s)")
    group.add_argument("--seed", type=SEED, default=0, help="of head, split and order of rows (%(default)s)")


def train(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft train`."""
    parser.add_argument("--model", help="folder, or name on the Hub; safetensors weights")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results; new or empty")
    _data(parser)
    _selection(parser, None, None, None, None)
    _method(parser)
    _base(parser)
    _training(parser)


def profile(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft profile`."""
    parser.add_argument("--model", required=True, help="folder, or name on the Hub; safetensors weights")
    parser.add_argument("--batch-size", type=COUNT, default=16, help="(%(default)s)")
    parser.add_argument("--length", type=COUNT, default=128, metavar="TOKENS", help="(%(default)s)")
    parser.add_argument("--steps", type=_number(int, 3), default=10, help="measured steps (%(default)s)")
    parser.add_argument("--seed", type=SEED, default=0, help="(%(default)s)")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="also write torch.profiler's trace of one step (JSON)"
    )
    _selection(parser, 0.005, 2.0, 1.0, 1)
