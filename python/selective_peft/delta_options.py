"""The options of the commands that work on deltas."""

from __future__ import annotations

import argparse
from pathlib import Path

from selective_peft.composing import CONFLICTS
from selective_peft.options import COUNT, share_or_all

DELTA = "a delta: its folder, or the file selective_delta.safetensors"
MODEL = "a folder as save_pretrained writes it, or one safetensors file"
INSPECT = """\
Says what is in a delta: base, method, counts and sizes, where it lives in the model.
Of two deltas: how far they agree, and where they give a scalar different values.

examples:
  selective-peft inspect reviews-tuned/delta --picture delta.png
  selective-peft inspect reviews-tuned/delta films-tuned/delta"""
COMPOSE = """\
Makes one delta of several that are of one base; of one, the same in another form.

examples:
  selective-peft compose reviews-tuned/delta films-tuned/delta --out both --on-conflict last
  selective-peft compose reviews-tuned/delta --out small --compact --no-originals"""
APPLY = """\
Makes the tuned checkpoint of the base's, file by file, with the base's names. No model
is built, and the memory does not grow with it.

example:
  selective-peft apply --base MiniLM --delta reviews-tuned/delta --out tuned"""
REVERT = """\
Makes the base's checkpoint of a tuned one, bit for bit; the delta must have originals.

example:
  selective-peft revert --tuned tuned --delta reviews-tuned/delta --out MiniLM-again"""
MERGE = """\
Makes a plain checkpoint of the tuned model, with its own names and configuration: what
any server and `from_pretrained` load.

example:
  selective-peft merge --base MiniLM --delta reviews-tuned/delta --out merged"""
DIFF = """\
Makes the delta from one checkpoint to another, whatever trained it.

example:
  selective-peft diff --base MiniLM --tuned merged --out delta --compact"""


def add_out(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds --out, a new or an empty folder."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"{what}; new or empty")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds what is printed."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else there")
    group.add_argument("--quiet", action="store_true", help="no table and no progress bar")


def add_conflict(parser: argparse.ArgumentParser) -> None:
    """Adds what several deltas of one scalar mean."""
    parser.add_argument(
        "--on-conflict",
        choices=CONFLICTS,
        default="error",
        help="where several deltas give a scalar different values: refuse, or which one decides (%(default)s)",
    )


def add_form(parser: argparse.ArgumentParser) -> None:
    """Adds how a delta is written."""
    parser.add_argument("--compact", action="store_true", help="positions gap-coded: 1 to 2 bytes each instead of 4")
    parser.add_argument(
        "--no-originals",
        dest="originals",
        action="store_false",
        help="leave out the base's values: smaller, but cannot be undone without the base",
    )


def inspect(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft inspect`."""
    parser.add_argument("deltas", type=Path, nargs="+", metavar="DELTA", help=f"one or two; {DELTA}")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw where it lives, or how far two agree (PNG)"
    )
    parser.add_argument("--top", type=COUNT, default=14, metavar="N", help="rows for modules (%(default)s)")
    add_output(parser)


def compose(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft compose`."""
    parser.add_argument("deltas", type=Path, nargs="+", metavar="DELTA", help=f"of one base; {DELTA}")
    add_out(parser, "folder for the delta")
    add_conflict(parser)
    add_form(parser)
    add_output(parser)


def _patch(parser: argparse.ArgumentParser, source: str, what: str) -> None:
    parser.add_argument(f"--{source}", type=Path, required=True, metavar="DIR", help=f"{what}: {MODEL}")
    parser.add_argument(
        "--delta", type=Path, required=True, nargs="+", metavar="D", help=f"{DELTA}; several are composed first"
    )
    add_out(parser, "folder for the checkpoint")
    add_conflict(parser)
    parser.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="do not compare fingerprints of the weights; names, shapes and dtypes are checked all the same",
    )
    add_output(parser)


def apply(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft apply`."""
    _patch(parser, "base", "the model that the delta changes")


def revert(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft revert`."""
    _patch(parser, "tuned", "the model that has the delta in it")


def merge(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft merge`."""
    _patch(parser, "base", "the model that the delta changes")


def diff(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft diff`."""
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help=f"before: {MODEL}")
    parser.add_argument("--tuned", type=Path, required=True, metavar="DIR", help="after: the same")
    add_out(parser, "folder for the delta")
    parser.add_argument(
        "--whole-above",
        type=share_or_all,
        default=0.5,
        metavar="SHARE",
        help="take a tensor whole if a larger share of it differs (%(default)s)",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="the base may have tensors that the tuned one lacks: another head"
    )
    parser.add_argument("--base-model", metavar="NAME", help="what the base is called (the name of its folder)")
    parser.add_argument("--base-revision", metavar="NAME", help="its commit or branch")
    add_form(parser)
    add_output(parser)


COMMANDS = {
    "inspect": (INSPECT, inspect, "what is in a delta, or how far two agree"),
    "compose": (COMPOSE, compose, "one delta of several"),
    "apply": (APPLY, apply, "put a delta into a checkpoint"),
    "revert": (REVERT, revert, "take it out again"),
    "merge": (MERGE, merge, "a plain checkpoint of the tuned model"),
    "diff": (DIFF, diff, "the delta from one checkpoint to another"),
}  # name -> its description, what adds its options, one line
