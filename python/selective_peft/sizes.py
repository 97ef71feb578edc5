"""One run, several sizes: the selected values whenever a share of the budget is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from selective_peft import SelectiveAdamW, results
from selective_peft.output import Output


@dataclass(frozen=True)
class Size:
    """What was written when a share of the budget was spent.

    Attributes:
        share: of the budget.
        file: name in the output folder.
        step: completed steps.
        scalars: selected by then; with coarse schedules more than the share.
        size: of the file, in bytes.
        metrics: on the evaluation part, then.
    """

    share: float
    file: str
    step: int
    scalars: int
    size: int
    metrics: dict[str, float]


@dataclass
class Sizes:
    """Called after each step; writes the values in the first step after which a share of the budget is spent.

    Attributes:
        shares: those to come, ascending.
        saved: those that were reached.
    """

    shares: list[float]
    model: nn.Module
    optimizer: SelectiveAdamW
    whole: frozenset[str]
    output: Output
    about: Mapping[str, str]
    saved: list[Size] = field(default_factory=list)

    def __call__(self, step: int, evaluate: Callable[[], dict[str, float]]) -> None:
        """Saves what is due.

        Args:
            step: number of completed steps.
            evaluate: gives the metrics of the model as it is.
        """
        scalars, budget = self.optimizer.num_selected, self.optimizer.budget
        due = [share for share in self.shares if budget is not None and scalars >= needed(share, budget)]
        if not due:
            return
        self.shares = self.shares[len(due) :]
        values = results.selected_values(self.model, self.optimizer, self.whole)
        found = evaluate()
        for share in due:
            about = {**self.about, "share": str(share), "step": str(step), "selected": str(scalars)}
            name = file_name(share)
            path = self.output.write(name, partial(_write, values=values, about=about))
            self.saved.append(Size(share, name, step, scalars, path.stat().st_size, found))

    def missed(self) -> list[str]:
        """A sentence for each share that no step reached."""
        budget, selected = self.optimizer.budget or 0, self.optimizer.num_selected
        return [
            f"--save-at {share}: not reached, {selected:,} of {needed(share, budget):,} scalars were selected; nothing "
            "was written for it"
            for share in self.shares
        ]


def _write(path: Path, values: Mapping[str, Any], about: Mapping[str, str]) -> None:
    results.write_values(path, values, about)


def needed(share: float, budget: int) -> int:
    """Scalars at which the share of the budget is spent; float noise does not ask for one more."""
    return math.ceil(round(share * budget, 6))


def file_name(share: float) -> str:
    """selected-0.10.safetensors; with more digits if the share has more."""
    return f"selected-{short(share)}.safetensors"


def short(share: float) -> str:
    """A share with two digits after the point, or all of its digits if it has more."""
    two = f"{share:.2f}"
    return two if float(two) == share else str(share)
