"""One run, several sizes: a delta whenever a share of the budget is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from selective_peft import SelectiveAdamW, SparseDelta
from selective_peft.delta_file import FILE
from selective_peft.output import Output


@dataclass(frozen=True)
class Size:
    """What was written when a share of the budget was spent.

    Attributes:
        share: of the budget.
        folder: of the delta, in the output folder.
        step: completed steps.
        scalars: selected by then; with coarse schedules more than the share.
        size: of the delta's file, in bytes.
        metrics: on the evaluation part, then.
    """

    share: float
    folder: str
    step: int
    scalars: int
    size: int
    metrics: dict[str, float]


@dataclass
class Sizes:
    """Called after each step; writes the delta in the first step after which a share of the budget is spent.

    Attributes:
        shares: those to come, ascending.
        delta: what training has changed so far; its hyper-parameters are to say what is given, too.
        saved: those that were reached.
    """

    shares: list[float]
    optimizer: SelectiveAdamW
    delta: Callable[[Mapping[str, Any]], SparseDelta]
    output: Output
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
        found = evaluate()
        for share in due:
            name = folder_name(share)
            path = self.output.write(name, self.delta({"share": share}).save)
            self.saved.append(Size(share, name, step, scalars, (path / FILE).stat().st_size, found))

    def missed(self) -> list[str]:
        """A sentence for each share that no step reached."""
        budget, selected = self.optimizer.budget or 0, self.optimizer.num_selected
        return [
            f"--save-at {share}: not reached, {selected:,} of {needed(share, budget):,} scalars were selected; nothing "
            "was written for it"
            for share in self.shares
        ]


def needed(share: float, budget: int) -> int:
    """Scalars at which the share of the budget is spent; float noise does not ask for one more."""
    return math.ceil(round(share * budget, 6))


def folder_name(share: float) -> str:
    """delta-0.10; with more digits if the share has more."""
    return f"delta-{short(share)}"


def short(share: float) -> str:
    """A share with two digits after the point, or all of its digits if it has more."""
    two = f"{share:.2f}"
    return two if float(two) == share else str(share)
