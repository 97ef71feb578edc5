"""The paper's figures on these data: `python -m benchmarks.quality.figures` draws docs/quality-*.png."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from benchmarks import RESULTS, ROOT
from benchmarks.pictures import OURS, RIVALS, TEXT, legend, new_figure, save, set_title
from benchmarks.quality import comparing
from benchmarks.quality.comparing import Summary
from benchmarks.quality.jobs import EPS, EXP
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.plan import PRESETS, Preset
from benchmarks.quality.traces import FULL
from benchmarks.suites import read_csv

DATA = "reviews"  # which all budgets are run on
STRATEGIES = {"ID3": OURS, "D3, static": RIVALS[1], "D3, repeat": RIVALS[0]}
RANKED_BY = {"ID3": OURS, "PaFi, increment": RIVALS[2], "PaFi": RIVALS[3], "R-Mask": RIVALS[4]}
DOCS = ROOT / "docs"
Rows = Sequence[Mapping[str, str]]


def by_budget(preset: Preset, ledger: Ledger, path: Path) -> None:
    """Increment against static and repeat, and against the score of PaFi, over budgets (paper, Fig. 4 and 5)."""
    found = [each for each in comparing.summaries(preset, ledger) if each.cell.data == DATA]
    seeds = f"film reviews: accuracy on the test part, mean ± deviation of {preset.seeds} seeds"
    figure = new_figure(f"Strategies and scores by budget\n{seeds}", list(ledger.values())[:1], 2, 10, 4.4)
    panels = {"when scalars are selected": STRATEGIES, "what ranks them": RANKED_BY}
    for axes, (title, methods) in zip(figure.axes, panels.items(), strict=True):
        for i, (method, color) in enumerate(methods.items()):
            shift = 1 + 0.03 * (i - len(methods) / 2)  # or the bars would lie on each other
            _line(axes, [each for each in found if each.cell.method == method], shift, color)
        _level_of_full(axes, found)
        set_title(axes, title)
        axes.set_xscale("log")
        axes.set_xticks(sorted(preset.shares), [f"{share:.1%}" for share in sorted(preset.shares)], color=TEXT)
        axes.minorticks_off()
        axes.set_xlabel("budget", color=TEXT)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1%}"))
        legend(axes, methods)
    lows, highs = zip(*(axes.get_ylim() for axes in figure.axes), strict=True)
    for axes in figure.axes:
        axes.set_ylim(min(lows), max(highs))
    save(figure, path)


def _line(axes: Axes, found: Sequence[Summary], shift: float, color: str) -> None:
    points = sorted(found, key=lambda each: each.cell.share)
    if not points:
        return
    axes.errorbar(
        [each.cell.share * shift for each in points],
        [each.mean for each in points],
        [each.deviation for each in points],
        color=color, marker="o", markersize=4, linewidth=1.6, elinewidth=1, capsize=2,
    )  # fmt: skip


def _level_of_full(axes: Axes, found: Sequence[Summary]) -> None:
    """Full fine-tuning as a line."""
    level = next((each.mean for each in found if each.cell.method == FULL), None)
    if level is not None:
        axes.axhline(level, color=TEXT, linestyle="--", linewidth=1)
        axes.text(1.005, level, FULL, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=TEXT)


def scores(preset: Preset, ledger: Ledger, path: Path) -> None:
    """Accuracy by exp and eps of the D3 score (paper, Fig. 6)."""
    usual = [each for each in comparing.summaries(preset, ledger) if _is_usual(each, preset)]
    found = [*usual, *comparing.of_score(preset, ledger)]
    figure = new_figure("D3 score: exponent and eps", list(ledger.values())[:1], 1, 7, 3.6)
    axes = figure.axes[0]
    colors = {f"eps = {eps:g}": color for eps, color in zip(preset.epss, RIVALS, strict=False)}
    for eps, color in zip(preset.epss, colors.values(), strict=False):
        points = sorted(
            (each for each in found if each.cell.eps == eps or not each.cell.exp), key=lambda each: each.cell.exp
        )
        shift = 0.02 * list(preset.epss).index(eps)
        axes.errorbar(
            [each.cell.exp + shift for each in points],
            [each.mean for each in points],
            [each.deviation for each in points],
            color=color, marker="o", markersize=4, linewidth=1.4, elinewidth=1, capsize=2,
        )  # fmt: skip
    axes.set_xticks(preset.exps, [f"{exp:g}" for exp in preset.exps], color=TEXT)
    axes.set_xlabel("exponent (0: the gradient alone)", color=TEXT)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1%}"))
    set_title(axes, f"film reviews, budget {preset.shares[0]:.1%}: accuracy on the test part, {preset.seeds} seeds")
    legend(axes, colors)
    save(figure, path)


def _is_usual(found: Summary, preset: Preset) -> bool:
    cell = found.cell
    return (cell.data, cell.method, cell.share, cell.exp, cell.eps) == (DATA, "ID3", preset.shares[0], EXP, EPS)


def selection(rows: Rows, path: Path) -> None:
    """Tensor sparsity and entropy of the selection over a run (paper, Fig. 7)."""
    figure = new_figure("Where the selection goes", rows[:1], 2, 10, 3.8)
    runs = list(dict.fromkeys(row["run"] for row in rows))
    colors = dict(zip(runs, (OURS, *RIVALS), strict=False))
    for axes, column, title in (
        (figure.axes[0], "tensor_sparsity", "tensors with nothing selected"),
        (figure.axes[1], "entropy", "entropy over tensors (nats)"),
    ):
        for run, color in colors.items():
            mine = [row for row in rows if row["run"] == run]
            steps = [int(row["step"]) for row in mine]
            axes.plot(steps, [float(row[column]) for row in mine], color=color, linewidth=1.6)
        set_title(axes, title)
        axes.set_xlabel("step", color=TEXT)
        axes.set_ylim(bottom=0.0)
    figure.axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    legend(figure.axes[0], colors)
    save(figure, path)


def updates(rows: Rows, path: Path) -> None:
    """Mean size of the update by module and by layer, beside full fine-tuning's (paper, Fig. 8)."""
    figure = new_figure("Updates beside full fine-tuning's", rows[:1], 2, 11, 4.6)
    runs = list(dict.fromkeys(row["run"] for row in rows))
    colors = dict(zip(runs, (TEXT, OURS, *RIVALS), strict=False))
    for axes, measure in zip(figure.axes, ("mean update by module", "mean update by layer"), strict=True):
        mine = [row for row in rows if row["measure"] == measure]
        places = list(dict.fromkeys(row["place"] for row in mine))
        for run, color in colors.items():
            points = [(places.index(row["place"]), float(row["value"])) for row in mine if row["run"] == run]
            points = [(place, value) for place, value in points if value > 0]
            axes.plot([value for _, value in points], [place for place, _ in points], "o", color=color, markersize=5)
        axes.set_yticks(range(len(places)), [place or "in none" for place in places], color=TEXT)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("mean size of the update of a changed scalar", color=TEXT)
        set_title(axes, measure.removeprefix("mean update "))
    legend(figure.axes[0], colors)
    save(figure, path)


def main(given: list[str] | None = None) -> int:
    """Exit code: 0, or 2 if a result file is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.figures", description="Draws result files.")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--folder", type=Path, default=DOCS, help="for the pictures")
    options = parser.parse_args(given)
    files = {name: options.results / f"{name}.csv" for name in ("quality", "quality_steps", "quality_updates")}
    if missing := [str(path) for path in files.values() if not path.exists()]:
        print(f"python -m benchmarks.quality.figures: expected {', '.join(missing)}, got no such file", file=sys.stderr)
        return 2
    preset, ledger = PRESETS[options.preset], Ledger(files["quality"])
    by_budget(preset, ledger, options.folder / "quality-budgets.png")
    scores(preset, ledger, options.folder / "quality-scores.png")
    selection(read_csv(files["quality_steps"]), options.folder / "quality-selection.png")
    updates(read_csv(files["quality_updates"]), options.folder / "quality-updates.png")
    print(f"written: {options.folder}/quality-budgets.png, -scores.png, -selection.png, -updates.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
