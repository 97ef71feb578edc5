"""The command `selective-peft`."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence

from selective_peft import adapter_options, delta_options, recipe_options
from selective_peft import options as known
from selective_peft.errors import DeltaError, InputError, first_line

FAILED, REFUSED = 1, 2
EXTRA = "pip install 'selective-kernels[train]'"
TRAIN = """\
Fine-tunes a Hugging Face model on a CSV or JSONL file of labelled texts, training
only a chosen few of its scalars. Tasks: one class or number for a text, a tag for
each word, a text for a text (seq2seq), or the continuation of a prompt (causal).

example:
  selective-peft train --model sentence-transformers/all-MiniLM-L6-v2 --data reviews.csv \\
    --text-column text --label-column category --budget 0.5% --output reviews-tuned

an experiment of the paper, with its data and settings (`selective-peft recipes`):
  selective-peft train --recipe glue/rte --output rte-tuned

The new head of the model is trained whole; the budget is spent on the rest. The
output folder gets metrics.json, pictures and delta/, which makes the tuned model of
its base and can be undone (`selective-peft merge`, `inspect`); and an adapter, if
--base is one. It appears when training is done, or not at all."""
PROFILE = """\
Runs a few steps on random tokens and says where their time and memory go, beside
the machine's read bandwidth.

example:
  selective-peft profile --model sentence-transformers/all-MiniLM-L6-v2 \\
    --batch-size 32 --length 64"""
RECIPES = """\
Lists the paper's experiments, which `selective-peft train --recipe` reruns.

example:
  selective-peft train --recipe glue/rte --lr 3e-4 --output rte-tuned"""
METHODS = "Lists the methods of `selective-peft train --method`."
MODULES = {
    "train": "selective_peft.training",
    "recipes": "selective_peft.recipe_listing",
    "methods": "selective_peft.catalogue",
    "profile": "selective_peft.profiling",
    "inspect": "selective_peft.inspecting",
    **dict.fromkeys(("compose", "diff"), "selective_peft.delta_commands"),
    **dict.fromkeys(("apply", "revert", "merge"), "selective_peft.checkpoint_commands"),
    **dict.fromkeys(("export", "import"), "selective_peft.adapter_commands"),
}
CODES = "exit codes: 0 done, 1 failed or interrupted while running, 2 something given cannot be used"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="selective-peft", description="Selective fine-tuning: train a chosen few scalars of a model.", epilog=CODES
    )
    commands = made.add_subparsers(dest="command", required=True)
    kinds = {
        "train": (TRAIN, recipe_options.train, "fine-tune a model on labelled texts"),
        "recipes": (RECIPES, recipe_options.recipes, "what --recipe can be"),
        "methods": (METHODS, lambda _: None, "what --method can be"),
        "profile": (PROFILE, known.profile, "where a step's time and memory go"),
        **delta_options.COMMANDS,
        **adapter_options.COMMANDS,
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names may have signs that the terminal lacks
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns about forks
    try:
        if options.command == "train":
            recipe_options.complete(options, (sys.argv[1:] if given is None else given)[1:])
        module = importlib.import_module(MODULES[options.command])
        from rich.console import Console

        module.run(options, Console())
    except ImportError as error:  # of what only some commands and options need
        return _say(f"{options.command} needs more packages ({first_line(error)}); {EXTRA}", REFUSED)
    except (InputError, DeltaError) as error:
        return _say(str(error), REFUSED)
    except KeyboardInterrupt:
        return _say("interrupted; nothing was written", FAILED)
    except (OSError, RuntimeError, MemoryError) as error:
        return _say(f"{options.command} failed: {first_line(error)}", FAILED)
    return 0


def _say(message: str, code: int) -> int:
    line = "".join(sign if sign.isprintable() else " " for sign in message)  # names in files may hold anything
    print(f"selective-peft: {line}", file=sys.stderr)
    return code
