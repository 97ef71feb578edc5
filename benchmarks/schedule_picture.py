"""Draws docs/budgets.png: how schedules spend a budget, and what select_every makes of it.

    python -m benchmarks.schedule_picture

Everything in it comes from the tables that optimizers follow; nothing is measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from selective_peft.schedules import SCHEDULES, quota, tabulate

from benchmarks import pictures

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "budgets.png"
BUDGET, STEPS = 10_000, 100
EVERY = (1, 15, 40)
COLORS = (pictures.OURS, *pictures.RIVALS)


def spent(schedule: str, *, static: bool = False, select_every: int = 1) -> list[int]:
    """How many scalars are selected after each of `STEPS` steps, if there are always enough to select."""
    table = tabulate(schedule, STEPS, BUDGET, static=static)
    selected: list[int] = []
    for step in range(STEPS):
        before = selected[-1] if selected else 0
        selected.append(before + quota(table, step, before, select_every))
    return selected


def schedules() -> dict[str, list[int]]:
    """Every schedule and the static strategy."""
    return {"static": spent("uniform", static=True)} | {name: spent(name) for name in SCHEDULES}


def updates(selected: list[int]) -> float:
    """Updates of single scalars in a run, as a share of those of a static selection."""
    return sum(selected) / (BUDGET * STEPS)


def draw(path: Path) -> None:
    """Writes the picture, a PNG."""
    figure = pictures.new_figure("How a budget is spent", [], 3, 13.0, 4.2)
    lines, bars, stairs = figure.axes
    runs = schedules()
    pictures.set_title(lines, "schedule=")
    _curves(lines, runs)
    pictures.set_title(bars, "updates of scalars in a run, as a share of static's")
    shares = [updates(run) for run in runs.values()]
    drawn = bars.barh(list(runs), shares, color=COLORS[: len(runs)])
    bars.bar_label(drawn, [f"{share:.3f}" for share in shares], padding=4, color=pictures.TEXT, fontsize=9)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.15)
    bars.grid(visible=False, axis="y")
    pictures.set_title(stairs, 'select_every= (schedule="uniform")')
    _curves(stairs, {str(every): spent("uniform", select_every=every) for every in EVERY})
    pictures.save(figure, path)


def _curves(axes: Axes, runs: dict[str, list[int]]) -> None:
    colors = dict(zip(runs, COLORS, strict=False))
    steps = np.arange(1, STEPS + 1)
    for name, run in runs.items():
        axes.step(steps / STEPS, np.array(run) / BUDGET, where="post", color=colors[name], linewidth=1.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("share of total_steps", color=pictures.TEXT, fontsize=9)
    axes.set_ylabel("share of the budget that is selected", color=pictures.TEXT, fontsize=9)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    pictures.legend(axes, colors)


if __name__ == "__main__":
    draw(PICTURE)
    print(f"written: {PICTURE}")
