"""Pictures of deltas: where one lives, and how far two agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from selective_peft import plots
from selective_peft.delta import SparseDelta
from selective_peft.delta_tables import updates_of
from selective_peft.drawing import rows_height, save
from selective_peft.naming import count_by_place, places
from selective_peft.updates import Updates

WIDTH = 11.0  # inches
NAMED = 6  # whole tensors that a picture names


def draw(path: Path, delta: SparseDelta, *, title: str) -> None:
    """Writes a PNG: the changed scalars by module and layer, and the sizes of updates if the originals were kept.

    A delta of whole tensors only is drawn with all their scalars.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    told = delta.summary()
    whole, where, updates = told["whole"], told["where"], updates_of(delta)
    what = "Scalars changed one by one"
    if not where:
        where, what = count_by_place(places(whole), list(whole.values())), "Scalars of tensors replaced whole"
    rows = plots.budget_map(where)[0]
    height = max(3.6, 1.4 + rows_height(rows))
    figure = Figure(figsize=(WIDTH, height + 0.5), layout="constrained")
    figure.suptitle(f"{title}: {_counts(told)}", parse_math=False)
    axes: Any = figure.subplots(1, 1 if updates is None else 2, squeeze=False)[0]
    plots.draw_map(axes[0], where, what)
    if updates is not None:
        plots.update_size_by_module(updates, axes[1])
        axes[1].tick_params(labelleft=False)  # its rows are those of the map
    if whole and told["where"]:
        names = ", ".join([*list(whole)[:NAMED], *(["..."] if len(whole) > NAMED else [])])
        figure.supxlabel(f"replaced whole, not in the map: {names}", fontsize=8, wrap=True, parse_math=False)
    save(path, figure)


def _counts(told: dict[str, Any]) -> str:
    parts = [f"{told['scalars']:,} of {told['of']:,} scalars"] if told["of"] else []
    if told["whole"]:
        parts.append(f"{len(told['whole']):,} whole tensor{'s' if len(told['whole']) > 1 else ''}")
    return " and ".join(parts) or "nothing changed"


def draw_pair(path: Path, a: Updates, b: Updates, labels: tuple[str, str]) -> None:
    """Writes a PNG: which scalars both change, and their updates against each other.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    modules = {place.module for place in (*a.places(), *b.places())}
    height = max(4.6, 1.6 + rows_height(sorted(modules)[: plots.MODULES]))
    figure = Figure(figsize=(WIDTH + 2, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    plots.selection_overlap(a, b, left, labels=labels)
    plots.update_correlation(a, b, right, labels=labels)
    save(path, figure)
