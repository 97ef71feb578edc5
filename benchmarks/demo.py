"""Fine-tunes a real encoder on real text on the CPU: `python -m benchmarks.demo` (`make demo`); minutes on 2 cores.

all-MiniLM-L6-v2 (22.7M scalars) learns to tell fresh from rotten film reviews. ID3 trains 113,000 of its scalars plus
the new classifier; accuracy is measured on reviews of films that training never saw.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: everything is read from local files

import torch

from benchmarks import training
from benchmarks.report import format_bytes, format_table
from benchmarks.reviews import MissingData, load, majority, split_by_movie
from benchmarks.training import METHODS, Method, Outcome
from selective_kernels import dispatch


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--method", choices=METHODS, default="id3")
    parser.add_argument("--all", action="store_true", help="all methods one after the other, one table")
    parser.add_argument("--select-every", type=_positive, default=1, help="select only every so many steps")
    parser.add_argument("--steps", type=_positive, default=150)
    parser.add_argument("--budget", type=_positive, default=113_000, help="scalars to train besides the classifier")
    parser.add_argument("--lr", type=float, help="learning rate; default 1e-3, full fine-tuning 5e-5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=_positive, default=32)
    parser.add_argument("--max-length", type=_positive, default=64, help="tokens of a review")
    return parser.parse_args(given)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text}")
    return value


def methods(options: argparse.Namespace) -> list[Method]:
    """What to run."""
    if not options.all:
        return [Method(options.method, options.select_every)]
    return [Method("id3", 1), Method("id3", 15), Method("d3-static", 1), Method("full", 1)]


def table(outcomes: list[Outcome], majority_share: float) -> str:
    """The final table."""
    header = ("method", "accuracy", "trained scalars", "state", "forward+backward s/step", "optimizer s/step")
    rows = [("always the majority", f"{majority_share:.3f}", "0", "", "", "")]
    rows.append(("not fine-tuned", f"{outcomes[0].accuracy_before:.3f}", "0", "", "", ""))
    for each in outcomes:
        rows.append(
            (
                each.method.label,
                f"{each.accuracy:.3f}",
                f"{each.trained:,}",
                format_bytes(each.state_bytes),
                f"{each.forward_backward:.3f}",
                f"{each.optimizer:.4f}",
            )
        )
    return format_table(header, rows)


def run(options: argparse.Namespace) -> None:
    """Trains and prints.

    Raises:
        MissingData: weights, text or a package is not there.
        ValueError: the optimizer refuses an argument.
    """
    began = time.perf_counter()
    train, test = split_by_movie(load())
    films = len({review.movie for review in train}), len({review.movie for review in test})
    print(f"Reviews: {len(train):,} of {films[0]} films to train, {len(test):,} of {films[1]} other films to test.")
    print(f"Kernels: {dispatch.resolve('cpu')}, {torch.get_num_threads()} threads.")
    recipe = training.Recipe(
        steps=options.steps,
        budget=options.budget,
        lr=options.lr,
        seed=options.seed,
        batch_size=options.batch_size,
        max_length=options.max_length,
    )
    outcomes = training.compare(methods(options), recipe, train, test)
    first = outcomes[0]
    print(f"\n{table(outcomes, majority(test))}\n")
    print(
        f"The model has {first.scalars:,} scalars; two dense float32 moments of AdamW for all of them take "
        f"{format_bytes(8 * first.scalars)}."
    )
    print(f"Seconds per step are medians over {recipe.steps} steps. All in all: {time.perf_counter() - began:.0f} s.")


def main() -> int:
    """Exit code: 0, or 2 after one sentence about what is missing or wrong."""
    try:
        run(arguments())
    except (MissingData, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
