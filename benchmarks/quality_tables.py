"""The tables of README and docs/quality.md: accuracy of each method, beside memory and time of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from benchmarks.quality import comparing, plan
from benchmarks.quality.comparing import Summary
from benchmarks.quality.jobs import NONE, Job
from benchmarks.quality.ledger import ORDER
from benchmarks.quality.plan import PRESETS
from benchmarks.quality.report import accuracy, difference
from benchmarks.quality.tasks import Task
from benchmarks.quality.traces import CORRELATION, SHARED
from benchmarks.report import format_bytes

Row = Mapping[str, str]
Load = Callable[[str], list[dict[str, str]]]
Markdown = Callable[[Sequence[str], Sequence[Sequence[str]]], str]

PRESET = PRESETS["full"]
DATA = {"reviews": "film reviews", "boolq": "BoolQ", "asdiv": "ASDiv"}
SHOWN = (
    NONE, "full", "LoRA r=8", "LoRA r=2", "BitFit", "R-Mask", "PaFi", "Fish", "D3, static", "ID3", "ID3, every 15",
    "LoRA r=8 + ID3",
)  # fmt: skip
Known = dict[tuple[str, str, float], Summary]


def _known(load: Load) -> tuple[list[Summary], dict[Job, dict[str, str]]]:
    ledger = {Job.of(row): row for row in load("quality.csv")}
    return comparing.summaries(PRESET, ledger), ledger


def _by(found: Sequence[Summary]) -> Known:
    return {(each.cell.data, each.cell.method, each.cell.share): each for each in found}


def _machine(ledger: Mapping[Job, Row]) -> str:
    machines = dict.fromkeys(f"{row['cpu']}, torch {row['torch']}" for row in ledger.values())
    return "; ".join(machines)


def _runs(ledger: Mapping[Job, Row]) -> str:
    """How far the comparison has come."""
    total = plan.expected(PRESET, ledger)
    return f"{len(ledger)} runs" if len(ledger) == total else f"{len(ledger)} of about {total} runs so far"


def readme_table(load: Load, markdown: Markdown) -> str:
    """The usual budget: accuracy, scalars, state and time of a step."""
    found, ledger = _known(load)
    by, speeds = _by(found), {row["method"]: row for row in load("quality_speed.csv")}
    lines = []
    for method in SHOWN:
        share = next((each.cell.share for each in found if each.cell.method == method), 0.0)
        cells = [by.get((data, method, share)) for data in DATA]
        if any(cells):
            lines.append([method, *map(_accuracy, cells), *_cost(speeds.get(method))])
    title = (
        f"Accuracy in %, mean ± deviation of {PRESET.seeds} seeds, at a budget of {PRESET.shares[0]:.1%} where a "
        "method has one, learning rates tuned alike for all: all-MiniLM-L6-v2 on reviews of unseen films and on BoolQ, "
        f"SmolLM2-135M on word problems; {_machine(ledger)} (`python -m benchmarks.quality --preset full`, "
        f"{_runs(ledger)}, `benchmarks/results/quality.csv`; memory and time on the reviews, "
        "`benchmarks/results/quality_speed.csv`):"
    )
    header = ("", *DATA.values(), "scalars trained", "optimizer state", "optimizer ms", "step, of full")
    return f"{title}\n\n" + markdown(header, lines)


def _accuracy(found: Summary | None) -> str:
    return "" if found is None else accuracy(found)


def _cost(speed: Row | None) -> list[str]:
    if speed is None:
        return ["0", "", "", ""]
    return [
        f"{int(speed['trained']):,}",
        format_bytes(float(speed["state_bytes"])),
        f"{1e3 * float(speed['optimizer_seconds']):.1f}",
        f"{float(speed['ratio_to_full']):.2f}",
    ]


def budgets_table(load: Load, markdown: Markdown) -> str:
    """All methods and budgets, with ID3's lead over each and its p-value."""
    found, ledger = _known(load)
    by, against = _by(found), comparing.against_ours(found, PRESET)
    order = sorted({(each.cell.share, each.cell.method) for each in found}, key=_place)
    lines = []
    for share, method in order:
        cells = [by.get((data, method, share)) for data in DATA]
        rates = ", ".join("" if each is None else f"{each.lr:g}" for each in cells).strip(", ")
        label = f"{method}, {share:.1%}" if share else method
        lines.append([label, *map(_accuracy, cells), *difference(against.get((method, share))), rates])
    title = (
        f"Accuracy in % on the test part, mean ± deviation of {PRESET.seeds} seeds; {_machine(ledger)}; "
        f"{_runs(ledger)} (`benchmarks/results/quality.csv`):"
    )
    header = ("", *DATA.values(), "ID3 leads by", "wins", "p", "learning rates")
    return f"{title}\n\n" + markdown(header, lines)


def lead_table(load: Load, markdown: Markdown) -> str:
    """ID3's lead over each method with a budget, all budgets taken together."""
    found, _ = _known(load)
    against = comparing.over_budgets(found, PRESET)
    lines = [
        [method, *difference(against[method]), str(against[method].pairs)]
        for method in sorted(against, key=ORDER.__getitem__)
    ]
    return markdown(("", "ID3 leads by", "wins", "p", "pairs"), lines)


def _place(key: tuple[float, str]) -> tuple[float, int]:
    return key[0], ORDER[key[1]]


def scores_table(load: Load, markdown: Markdown) -> str:
    """Accuracy on film reviews by exponent and eps, ID3 at the usual budget."""
    found, ledger = _known(load)
    usual = [each for each in found if (each.cell.data, each.cell.method) == ("reviews", "ID3")]
    usual = [each for each in usual if each.cell.share == PRESET.shares[0]]
    cells = {(each.cell.exp, each.cell.eps): each for each in [*usual, *comparing.of_score(PRESET, ledger)]}
    if not cells:
        return "These runs have not been made yet."
    lines = []
    for exp in PRESET.exps:
        row = [cells.get((exp, eps if exp else 1.0)) for eps in PRESET.epss]
        lines.append([f"exp = {exp:g}", *map(_accuracy, row)])
    return markdown(("", *(f"eps = {eps:g}" for eps in PRESET.epss)), lines)


def problems_table(load: Load, markdown: Markdown) -> str:
    """Word problems: right numbers, and the loss of the right answers, which tells more where few are right."""
    found, _ = _known(load)
    lines = [
        [
            each.cell.method,
            accuracy(each),
            f"{fmean(each.losses):.3f} ± {stdev(each.losses):.3f}",
            f"{each.trained:,}",
            format_bytes(each.state_bytes) if each.trained else "",
        ]
        for each in found
        if PRESET.tasks[each.cell.data].causal
    ]
    return markdown(
        ("", "exact match, %", "loss per token of the answers", "scalars trained", "optimizer state"), lines
    )


def rates_table(load: Load, markdown: Markdown) -> str:
    """The learning rate that won, by method, data set and budget."""
    found, _ = _known(load)
    columns = dict.fromkeys((data, share) for data, task in PRESET.tasks.items() for share in _shares(task))
    won = {(each.cell.method, each.cell.data, each.cell.share): f"{each.lr:g}" for each in found}
    lines = []
    for method in dict.fromkeys(each.cell.method for each in sorted(found, key=lambda each: ORDER[each.cell.method])):
        cells = [won.get((method, data, share), won.get((method, data, 0.0), "")) for data, share in columns]
        if method != NONE:
            lines.append([method, *cells])
    return markdown(("", *(f"{DATA[data]}, {share:.1%}" for data, share in columns)), lines)


def _shares(task: Task) -> Sequence[float]:
    return sorted(PRESET.shares) if task.budgets else PRESET.shares[:1]


def updates_table(load: Load, markdown: Markdown) -> str:
    """How far the updates of film reviews' runs follow full fine-tuning's."""
    found = {(row["run"], row["measure"]): row["value"] for row in load("quality_updates.csv") if not row["place"]}
    lines = []
    for run in dict.fromkeys(run for run, measure in found if measure == SHARED):
        lines.append([run, f"{int(found[run, SHARED]):,}", f"{float(found[run, CORRELATION]):.2f}"])
    return markdown(("", "scalars that full fine-tuning changed, too", "correlation of the updates"), lines)


TABLES = {
    "methods by budget": budgets_table,
    "lead over budgets": lead_table,
    "exponent and eps": scores_table,
    "word problems": problems_table,
    "updates": updates_table,
}
CHOOSING = {"learning rates": rates_table}
