"""Compares ways to fine-tune a real encoder on real text: `python -m benchmarks.demo`; minutes per way on 2 cores.

all-MiniLM-L6-v2 (22.7M scalars) learns to tell fresh from rotten film reviews. ID3 trains 113,000 of its scalars plus
the new classifier; accuracy is measured on reviews of films that training never saw.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: everything is read from local files

import torch

from benchmarks import training
from benchmarks.report import environment, format_bytes, format_table, write_csv
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
    parser.add_argument("--seeds", type=_positive, default=1, help="runs of each method, from --seed upwards")
    parser.add_argument("--batch-size", type=_positive, default=32)
    parser.add_argument("--max-length", type=_positive, default=64, help="tokens of a review")
    parser.add_argument("--csv", type=Path, help="write the final table here")
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
    return [Method("full", 1), Method("id3", 1), Method("id3", 15), Method("d3-static", 1)]


def rows_of(outcomes: Sequence[Sequence[Outcome]], majority_share: float) -> list[dict[str, str]]:
    """One row per way to answer: the majority, the model as it comes, and each method (its runs differ by seed)."""
    before = [each.accuracy_before for each in outcomes[0]]
    rows = [_row("always the majority", [majority_share]), _row("not fine-tuned (new classifier)", before)]
    for runs in outcomes:
        row = _row(runs[0].method.label, [each.accuracy for each in runs])
        row["trained_scalars"] = str(runs[0].trained)
        row["state_bytes"] = str(runs[0].state_bytes)
        row["forward_backward_seconds"] = f"{statistics.median(each.forward_backward for each in runs):.3f}"
        row["optimizer_seconds"] = f"{statistics.median(each.optimizer for each in runs):.4f}"
        rows.append(row)
    return rows


def _row(name: str, accuracies: Sequence[float]) -> dict[str, str]:
    return {
        "method": name,
        "accuracy": f"{statistics.fmean(accuracies):.3f}",
        "accuracy_std": f"{statistics.stdev(accuracies):.3f}" if len(accuracies) > 1 else "",
        "trained_scalars": "0",
        "state_bytes": "",
        "forward_backward_seconds": "",
        "optimizer_seconds": "",
    }


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """The final table."""
    header = ("method", "accuracy", "trained scalars", "state", "forward+backward s/step", "optimizer s/step")
    lines = [
        (
            row["method"],
            row["accuracy"] + (f" +- {row['accuracy_std']}" if row["accuracy_std"] else ""),
            f"{int(row['trained_scalars']):,}",
            format_bytes(float(row["state_bytes"])) if row["state_bytes"] else "",
            row["forward_backward_seconds"],
            row["optimizer_seconds"],
        )
        for row in rows
    ]
    return format_table(header, lines)


def run(options: argparse.Namespace) -> None:
    """Trains and prints; writes the rows if a file was named.

    Raises:
        MissingData: weights, text or a package is not there.
        ValueError: the optimizer refuses an argument.
    """
    began, stamp = time.perf_counter(), environment()
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
    recipes = [replace(recipe, seed=options.seed + i) for i in range(options.seeds)]
    outcomes = [[training.train(method, each, train, test) for each in recipes] for method in methods(options)]
    rows, scalars = rows_of(outcomes, majority(test)), outcomes[0][0].scalars
    print(f"\n{table(rows)}\n")
    print(
        f"The model has {scalars:,} scalars; two dense float32 moments of AdamW for all of them take "
        f"{format_bytes(8 * scalars)}."
    )
    print(f"Seconds per step are medians over {recipe.steps} steps. All in all: {time.perf_counter() - began:.0f} s.")
    if options.csv:
        settings = {
            "scalars": scalars,
            "steps": recipe.steps,
            "batch_size": recipe.batch_size,
            "budget": recipe.budget,
            "first_seed": options.seed,
            "seeds": options.seeds,
            "test_reviews": len(test),
        }
        write_csv(options.csv, [{**row, **settings, **stamp} for row in rows])
        print(f"written: {options.csv}")


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
