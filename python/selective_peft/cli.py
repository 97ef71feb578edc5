"""The command `selective-peft`."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from selective_peft.errors import InputError, first_line
from selective_peft.schedules import SCHEDULES

FAILED, REFUSED = 1, 2
EXTRA = "pip install 'selective-kernels[train]'"
TRAIN = """\
Fine-tunes a Hugging Face model on a CSV or JSONL file of labelled texts, training
only a chosen few of its scalars.

example:
  selective-peft train --model sentence-transformers/all-MiniLM-L6-v2 --data reviews.csv \\
    --text-column text --label-column category --budget 0.5% --output reviews-tuned

The new head of the model is trained whole; the budget is spent on the rest. The
output folder gets metrics.json, report.png and selected.safetensors, which holds
<parameter>.indices, <parameter>.values and the head. It appears when training is
done, or not at all."""
PROFILE = """\
Runs a few steps on random tokens and says where their time and memory go, beside
the machine's read bandwidth.

example:
  selective-peft profile --model sentence-transformers/all-MiniLM-L6-v2 \\
    --batch-size 32 --length 64"""
CODES = "exit codes: 0 done, 1 failed or interrupted while running, 2 something given cannot be used"


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


def _selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("selection")
    group.add_argument(
        "--budget",
        type=budget,
        default=0.005,
        help="scalars to train: a number, or a share such as 0.5%% (%(default)s)",
    )
    group.add_argument(
        "--score-exp",
        type=float,
        default=2.0,
        metavar="EXP",
        help="of the score |gradient| / (|theta| + eps)^exp (%(default)s)",
    )
    group.add_argument("--score-eps", type=POSITIVE, default=1.0, metavar="EPS", help="(%(default)s)")
    group.add_argument(
        "--select-every", type=COUNT, default=1, metavar="K", help="select in every K-th step (%(default)s)"
    )


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder, or name on the Hub; safetensors weights")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results; new or empty")
    group = parser.add_argument_group("data")
    group.add_argument("--data", type=Path, required=True, metavar="FILE", help="training rows: .csv or .jsonl")
    group.add_argument(
        "--task", choices=("classification", "regression"), default="classification", help="(%(default)s)"
    )
    group.add_argument("--text-column", default="text", metavar="NAME", help="(%(default)s)")
    group.add_argument("--text-pair-column", metavar="NAME", help="a second text, such as a passage for a question")
    group.add_argument("--label-column", default="label", metavar="NAME", help="(%(default)s)")
    sides = group.add_mutually_exclusive_group()
    sides.add_argument("--eval-data", type=Path, metavar="FILE", help="evaluation rows, in a file of their own")
    sides.add_argument("--eval-share", type=SHARE, default=0.1, metavar="SHARE", help="or split off (%(default)s)")
    group.add_argument("--group-column", metavar="NAME", help="rows with the same value stay on one side")
    group.add_argument(
        "--max-length", type=COUNT, default=256, metavar="TOKENS", help="longer texts are cut (%(default)s)"
    )
    _selection(parser)
    group = parser.add_argument_group("method")
    group.add_argument("--method", choices=("id3", "d3-static"), default="id3", help="unmask step by step, or at once")
    group.add_argument("--schedule", choices=sorted(SCHEDULES), default="uniform", help="of id3 (%(default)s)")
    group.add_argument("--bias-correction", choices=("global", "per_entry"), default="global", help="(%(default)s)")
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


def _profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder, or name on the Hub; safetensors weights")
    parser.add_argument("--batch-size", type=COUNT, default=16, help="(%(default)s)")
    parser.add_argument("--length", type=COUNT, default=128, metavar="TOKENS", help="(%(default)s)")
    parser.add_argument("--steps", type=_number(int, 3), default=10, help="measured steps (%(default)s)")
    parser.add_argument("--seed", type=SEED, default=0, help="(%(default)s)")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="also write torch.profiler's trace of one step (JSON)"
    )
    _selection(parser)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="selective-peft", description="Selective fine-tuning: train a chosen few scalars of a model.", epilog=CODES
    )
    commands = made.add_subparsers(dest="command", required=True)
    kinds = {
        "train": (TRAIN, _train, "fine-tune a model on labelled texts"),
        "profile": (PROFILE, _profile, "where a step's time and memory go"),
    }
    for name, (description, fill, line) in kinds.items():
        fill(
            commands.add_parser(
                name,
                help=line,
                description=description,
                epilog=CODES,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return made


def main(given: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    options = parser().parse_args(given)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns about forks
    try:
        module = importlib.import_module(
            {"train": "selective_peft.training", "profile": "selective_peft.profiling"}[options.command]
        )
        from rich.console import Console
    except ImportError as error:
        return _say(f"{options.command} needs more packages ({first_line(error)}); {EXTRA}", REFUSED)
    try:
        module.run(options, Console())
    except InputError as error:
        return _say(str(error), REFUSED)
    except KeyboardInterrupt:
        return _say("interrupted; nothing was written", FAILED)
    except (OSError, RuntimeError, MemoryError) as error:
        return _say(f"{options.command} failed: {first_line(error)}", FAILED)
    return 0


def _say(message: str, code: int) -> int:
    print(f"selective-peft: {message}", file=sys.stderr)
    return code
