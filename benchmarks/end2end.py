"""Whole training steps by method: how long forward, backward, selection and update take, on real models and text.

All methods of a model take the same batches in one process, a step each in turn, so that ratios compare steps of the
same round. A step's time is the sum of its parts' medians. Before anything is timed, the selection and update of ours
are checked on the model's own gradients, and every method must train as many scalars as it should and lower the loss.

Ours and dense masking are timed in the middle of a run of 1,000 steps: their first step selects half of the budget, of
0.3 % of the scalars. With select_every=15 a step is the mean over 15, of which one selects. "init" is what adapting the
model and making the optimizer takes, and what the first optimizer step takes beyond a later one.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import learning, peft_methods, pictures, table9, workloads
from benchmarks.bars import Bar, format_bars
from benchmarks.finetuning import FULL, OURS, OURS_RARELY, add_methods, import_late, method_stamp, methods_for
from benchmarks.harness import Contender, Timing, interleave
from benchmarks.learning import Pupil
from benchmarks.phases import Phases, rounds_of, typical
from benchmarks.report import describe, environment, format_table
from benchmarks.reviews import MissingData
from benchmarks.suites import CannotRun
from benchmarks.workloads import Workload

LINE = "seconds per training step of real models: forward, backward, selection, update, by method"
MODELS = {"small": ["tiny-bert", "tiny-llama"], "full": ["minilm-l6", "smollm2-135m"]}
ROUNDS = {"minilm-l6": 7}
FEWER_ROUNDS = 3  # of all other models; fewer would not hold both a step of select_every that selects and one without
WARMUPS = 1
BAR_MODEL = "minilm-l6"
OPTIMIZER_SHARE = 0.05  # of our whole step, at most: selection and update
PARTS = {"forward_ms": "forward", "backward_ms": "backward", "selection_ms": "selection", "update_ms": "update"}
COLUMNS = (
    "model", "scalars", "dtype", "device", "sequences", "tokens", "budget", "method", "trained", "state_bytes",
    "rounds", "ms_median", "ms_min", "ms_max", *PARTS, "optimizer_share", "init_ms", "tokens_per_s", "of_full",
    "of_full_min", "of_full_max", "of_ours", "note",
)  # fmt: skip
Rows = list[dict[str, object]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which methods, and where to find peaks for the paper's Table 9."""
    add_methods(parser)
    table9.add_option(parser, "memory")


def run(options: argparse.Namespace) -> Rows:
    """Checks, measures, prints tables and bars.

    Raises:
        CannotRun: a model is unknown, or data or memory is missing.
        Mismatch: a method does not do what it should.
    """
    device = torch.device(options.device)
    stamp = environment() | method_stamp(device)
    print(describe(stamp), flush=True)
    others = table9.other(options, "memory")
    rows: Rows = []
    for name in options.models or MODELS[options.preset]:
        for dtype in options.dtype or ["float32"]:
            rounds = options.rounds or ROUNDS.get(name, FEWER_ROUNDS)
            if rounds < 2:
                raise CannotRun(f"--rounds: expected 2 or more, got {rounds}")
            try:
                work = workloads.find([name])[0]
                mine = measure(work, dtype, device, methods_for(options.device, options.methods), rounds)
            except MissingData as error:
                raise CannotRun(str(error)) from error
            print(f"\n{screen(mine)}", flush=True)
            rows += mine
    print(table9.screen(rows, others))
    if judged := bars(rows):
        print(f"\n{format_bars(judged)}")
    return [{**row, **stamp} for row in rows]


def measure(work: Workload, dtype: str, device: torch.device, methods: Sequence[str], rounds: int) -> Rows:
    """Rows of one model, in the order of the methods.

    Raises:
        CannotRun: the models do not fit into memory.
        MissingData: weights or text are not there.
        Mismatch: a method does not do what it should.
    """
    import_late()
    base = work.model(getattr(torch, dtype), device)
    scalars = sum(param.numel() for param in base.parameters())
    learning.check_room(methods, scalars, getattr(torch, dtype).itemsize, device)
    batches = work.batches(WARMUPS + rounds, device)
    budget = learning.check_ours(base, work, batches)
    frozen = copy.deepcopy(base)  # what adapters share and freeze
    pupils: dict[str, Pupil] = {}
    notes: dict[str, str] = {}
    with tqdm(total=len(methods) + WARMUPS + rounds, desc=work.name, leave=False) as bar:
        for method in methods:
            model = frozen if method in peft_methods.METHODS else base
            made = learning.ready(method, model, work, batches, device, WARMUPS)
            if isinstance(made, Pupil):
                pupils[method] = made
            else:
                notes[method] = made
            bar.update()
        contenders = [Contender(name, each.trainee.step, each.trainee.prepare) for name, each in pupils.items()]
        interleave(contenders, rounds, WARMUPS, bar.update)
    rows: Rows = []
    shared = {"model": work.name, "scalars": scalars, "dtype": dtype, "device": device.type, "budget": budget}
    shared |= {"sequences": work.sequences, "tokens": work.tokens}
    timings = {name: _timing(each, rounds) for name, each in pupils.items()}
    for method in methods:
        row: dict[str, object] = dict.fromkeys(COLUMNS, "") | shared | {"method": method}
        if method in pupils:
            row |= _numbers(pupils[method], rounds, timings[method], work)
            ratios = timings[method].ratios(timings[FULL])
            row["of_full"] = f"{timings[method].ratio(timings[FULL]):.4f}"
            row |= {"of_full_min": f"{min(ratios):.4f}", "of_full_max": f"{max(ratios):.4f}"}
            row["of_ours"] = f"{timings[method].ratio(timings[OURS]):.4f}" if OURS in timings else ""
        rows.append(row | {"note": notes.get(method, "")})
    return rows


def _timing(pupil: Pupil, rounds: int) -> Timing:
    trainee = pupil.trainee
    return rounds_of(trainee.steps[-rounds:], trainee.selects[-rounds:], trainee.fitted.select_every)


def _numbers(pupil: Pupil, rounds: int, timing: Timing, work: Workload) -> dict[str, object]:
    trainee, fitted = pupil.trainee, pupil.trainee.fitted
    parts: Phases = typical(trainee.steps[-rounds:], trainee.selects[-rounds:], fitted.select_every)
    return {
        "trained": fitted.trained(),
        "state_bytes": fitted.state_bytes(),
        "rounds": rounds,
        "ms_median": f"{1e3 * parts.whole:.3f}",
        "ms_min": f"{1e3 * timing.low:.3f}",
        "ms_max": f"{1e3 * timing.high:.3f}",
        **{column: f"{1e3 * getattr(parts, name):.3f}" for column, name in PARTS.items()},
        "optimizer_share": f"{parts.optimizer / parts.whole:.5f}",
        "init_ms": f"{1e3 * (pupil.made + max(0.0, pupil.first_step - parts.optimizer)):.3f}",
        "tokens_per_s": f"{work.sequences * work.tokens / parts.whole:.1f}",
    }


def bars(rows: Sequence[Mapping[str, object]]) -> list[Bar]:
    """What must hold of ours on real models, float32: a step faster than full AdamW's; on MiniLM a share of it, too."""
    found = []
    for row in rows:
        wanted = row["method"] in (OURS, OURS_RARELY) and row["dtype"] == "float32" and row["ms_median"]
        if not wanted or not workloads.is_real(row["model"]):
            continue
        place = f"{row['model']}, {row['method']}"
        if row["model"] == BAR_MODEL:
            share = float(str(row["optimizer_share"]))
            found.append(Bar(f"{place}: selection and update of a step", share, OPTIMIZER_SHARE))
        spread = (
            f"{float(str(row['of_full_min'])):.2f} to {float(str(row['of_full_max'])):.2f} over {row['rounds']} rounds"
        )
        found.append(Bar(f"{place}: whole step of full AdamW's ({spread})", float(str(row["of_full"])), 1.0))
    return found


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows of one model and dtype as a table."""
    header = (
        "", "trained", "ms", "min - max", *PARTS.values(), "optimizer %", "tokens/s", "x full", "x ours", "init ms", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        if not row["ms_median"]:
            lines.append([str(row["method"]), *[""] * (len(header) - 2), str(row["note"])])
            continue
        numbers = [f"{float(str(row[column])):.1f}" for column in ("ms_median", "ms_min", "ms_max", *PARTS)]
        lines.append(
            [
                str(row["method"]),
                f"{row['trained']:,}",
                numbers[0],
                f"{numbers[1]} - {numbers[2]}",
                *numbers[3:],
                f"{100 * float(str(row['optimizer_share'])):.1f}",
                f"{float(str(row['tokens_per_s'])):,.0f}",
                f"{float(str(row['of_full'])):.2f}",
                f"{float(str(row['of_ours'])):.2f}" if row["of_ours"] else "",
                f"{float(str(row['init_ms'])):.0f}",
                "",
            ]
        )
    first = rows[0]
    title = (
        f"{first['model']} ({first['scalars']:,} scalars), {first['dtype']}, batches of {first['sequences']} x "
        f"{first['tokens']} tokens, budget {first['budget']:,}"
    )
    return format_table(header, lines, title)


def plot(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """A stacked bar for each method, a panel for each model and dtype; what could not be run is left out."""
    measured = [row for row in rows if row["ms_median"]]
    keys = list(dict.fromkeys((row["model"], row["dtype"]) for row in measured))
    figure = pictures.new_figure("Time of a training step", measured, len(keys), 6.5 * len(keys), 5.2)
    for axes, key in zip(figure.axes, keys, strict=True):
        mine = [row for row in measured if (row["model"], row["dtype"]) == key]
        stacks = {row["method"]: {name: float(row[column]) for column, name in PARTS.items()} for row in mine}
        pictures.stacked_bars(axes, stacks, _milliseconds)
        shape = f"{mine[0]['sequences']} x {mine[0]['tokens']} tokens"
        pictures.set_title(axes, f"{key[0]} ({int(mine[0]['scalars']):,} scalars), {key[1]}, {shape}")
    pictures.save(figure, path)


def _milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.3g} ms"
