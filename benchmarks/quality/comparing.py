"""What the runs say: mean and deviation over seeds, and paired tests over data sets and seeds, as in the paper."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.quality import plan
from benchmarks.quality.jobs import NONE, Job
from benchmarks.quality.plan import Ledger, Preset

OURS = "ID3"
LEAST_PAIRS = 6  # with fewer, no difference can be significant at 0.05


@dataclass(frozen=True)
class Summary:
    """A cell's runs.

    Attributes:
        cell: data set, method and budget; learning rate and seed are 0.
        lr: the one that was chosen.
        accuracies: on the test part, by seed.
        losses: the same; of each example, or of each token of the right answers.
        budget, trained, state_bytes: as in each run.
    """

    cell: Job
    lr: float
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]
    budget: int
    trained: int
    state_bytes: int

    @property
    def mean(self) -> float:
        """Of the accuracies."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation of a sample; NaN for one run."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else math.nan


def summaries(preset: Preset, ledger: Ledger) -> list[Summary]:
    """Of all cells whose runs are all there, in the plan's order."""
    found = []
    for cell in plan.cells(preset):
        jobs = plan.runs(cell, preset, ledger)
        if jobs and all(job in ledger for job in jobs):
            found.append(summary(cell, jobs, ledger))
    return found


def summary(cell: Job, jobs: Sequence[Job], ledger: Ledger) -> Summary:
    """Of a cell, from the runs that are its mean."""
    rows = [ledger[job] for job in jobs]
    accuracies, losses = (tuple(float(row[name]) for row in rows) for name in ("test", "test_loss"))
    numbers = (int(rows[0][name]) for name in ("budget", "trained", "state_bytes"))
    return Summary(cell, jobs[0].lr, accuracies, losses, *numbers)


def of_score(preset: Preset, ledger: Ledger) -> list[Summary]:
    """Of the cells that differ from ID3's on film reviews in exp and eps, as far as their runs are all there."""
    jobs, found = plan.score_runs(preset, ledger), []
    for cell in plan.scores(preset):
        mine = [job for job in jobs if (job.exp, job.eps) == (cell.exp, cell.eps)]
        if mine and all(job in ledger for job in mine):
            found.append(summary(cell, mine, ledger))
    return found


@dataclass(frozen=True)
class Comparison:
    """A method against ID3 at one budget, over pairs of a data set and a seed.

    Attributes:
        pairs: how many.
        difference: mean of ID3's accuracy minus the method's.
        wins, losses: of ID3; the rest are ties.
        p: two-sided p-value of Wilcoxon's signed-rank test; NaN with fewer than LEAST_PAIRS pairs, or if all are ties.
    """

    pairs: int
    difference: float
    wins: int
    losses: int
    p: float


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Paired accuracies; ties take part in the ranking only (Pratt), and the exact distribution is used without them.

    They are ranked as rounded to 1e-5, less than a tenth of what one answer is worth: equal ones have equal ranks.

    Raises:
        ValueError: not as many of the one as of the other, or none.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"theirs: expected {len(ours) or 'some'} accuracies, got {len(theirs)}")
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    ranked = [round(each, 5) for each in differences]
    return Comparison(
        len(differences),
        statistics.fmean(differences),
        sum(each > 0 for each in ranked),
        sum(each < 0 for each in ranked),
        _wilcoxon(ranked),
    )


def _wilcoxon(differences: Sequence[float]) -> float:
    if len(differences) < LEAST_PAIRS or not any(differences):
        return math.nan
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences, zero_method="pratt", method="auto").pvalue)


def against_ours(found: Sequence[Summary], preset: Preset) -> dict[tuple[str, float], Comparison]:
    """Each method at each budget against ID3 at that budget, or at the first one for a method without a budget.

    Only the data sets that both have, the untuned model and the word problems left out: those have another model.
    """
    results = {}
    for method, share in dict.fromkeys((each.cell.method, each.cell.share) for each in found):
        ours, theirs = _paired(found, preset, method, [share])
        if ours:
            results[method, share] = compare(ours, theirs)
    return results


def over_budgets(found: Sequence[Summary], preset: Preset) -> dict[str, Comparison]:
    """Each method with a budget against ID3, all budgets and data sets that both have taken together."""
    results = {}
    for method in dict.fromkeys(each.cell.method for each in found if each.cell.share):
        ours, theirs = _paired(found, preset, method, sorted({each.cell.share for each in found if each.cell.share}))
        if ours:
            results[method] = compare(ours, theirs)
    return results


def _paired(
    found: Sequence[Summary], preset: Preset, method: str, shares: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Accuracies of ID3 and of a method, by budget, data set and seed; none for ID3 itself and the untuned model."""
    encoders = [name for name, task in preset.tasks.items() if not task.causal]
    by = {(each.cell.data, each.cell.method, each.cell.share): each.accuracies for each in found}
    ours: list[float] = []
    theirs: list[float] = []
    for share in shares if method not in (OURS, NONE) else ():
        for data in encoders:
            mine, other = by.get((data, OURS, share or preset.shares[0])), by.get((data, method, share))
            if mine and other:
                ours += mine
                theirs += other
    return ours, theirs
