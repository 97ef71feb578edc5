"""What the suite of operations says: CSV rows, tables, and which bars are held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.bars import Bar
from benchmarks.harness import Timing
from benchmarks.op_problem import Made, Point, Problem
from benchmarks.report import format_table

OURS = "ours"
READ_BAR, LARGE = 1.2, 20_000_000  # times one read, for models of more scalars
SCAN_BAR = 20.0  # times faster than the fastest way to make all scores and rank them
Row = Mapping[str, object]


def rows_of(
    op: str, point: Point, problem: Problem, made: Made, timings: Mapping[str, Timing], probed: Mapping[str, int],
    stamp: Mapping[str, str],
) -> list[dict[str, object]]:  # fmt: skip
    """A CSV row for ours and for each rival; times in milliseconds.

    "percent_of_bound" compares bytes per second with the probe of the same round, "speedup" is the rival's time over
    ours in the same round; both are medians over rounds.
    """
    bound, limit = timings[made.bound], probed[made.bound]
    rows = []
    for contender in made.contenders:
        timing = timings[contender.name]
        speedups = sorted(timing.ratios(timings[OURS])) if contender.name != OURS else []
        rows.append(
            {
                "op": op,
                "axis": point.axis,
                "model": point.model,
                "scalars": sum(param.numel() for param in problem.params),
                "tensors": len(problem.params),
                "dtype": point.dtype,
                "selected": problem.index.count,
                "k": problem.k,
                "device": problem.device.type,
                "backend": point.backend,
                "what": contender.name,
                "rounds": len(timing.seconds),
                "ms_median": f"{1e3 * timing.median:.4f}",
                "ms_min": f"{1e3 * timing.low:.4f}",
                "ms_max": f"{1e3 * timing.high:.4f}",
                "bytes": made.nbytes,
                "gb_per_s": f"{made.nbytes / timing.median / 1e9:.3f}",
                "bound": made.bound,
                "bound_gb_per_s": f"{limit / bound.median / 1e9:.2f}",
                "percent_of_bound": f"{100 * made.nbytes / limit / timing.ratio(bound):.2f}",
                "speedup": f"{timing.ratio(timings[OURS]):.3f}" if speedups else "",
                "speedup_min": f"{speedups[0]:.3f}" if speedups else "",
                "speedup_max": f"{speedups[-1]:.3f}" if speedups else "",
                **stamp,
                "threads": point.threads,
                "isa": point.isa,
            }
        )
    return rows


def label(row: Row) -> str:
    """In what a row differs from the base."""
    axis = row["axis"]
    if axis == "base":
        return f"base: {row['model']}, {row['dtype']}, {_count(row, 'selected')} selected, k {_count(row, 'k')}"
    if axis == "N":
        return f"{row['model']} ({_count(row, 'scalars')} scalars)"
    if axis in ("k", "selected"):
        return f"{axis} {_count(row, str(axis))}"
    if axis == "threads":
        return f"{row['threads']} thread{'' if str(row['threads']) == '1' else 's'}"
    return f"{row[str(axis)]}" + (f" on {row['model']}" if axis == "backend" else "")


def _count(row: Row, key: str) -> str:
    return f"{int(str(row[key])):,}"


def points_of(rows: Sequence[Row], op: str) -> list[tuple[Row, list[Row]]]:
    """Ours at each point of an operation, and the rivals there."""
    found: list[tuple[Row, list[Row]]] = []
    for row in rows:
        if row["op"] == op and row["what"] == OURS:
            found.append((row, []))
        elif row["op"] == op:
            found[-1][1].append(row)
    return found


def screen(rows: Sequence[Row], op: str) -> str:
    """The rows of one operation as a table: a line per point, a column per rival."""
    points = points_of(rows, op)
    rivals = list(dict.fromkeys(str(row["what"]) for _, each in points for row in each))
    bound = points[0][0]["bound"]
    header = (op, "ms", "min - max", "GB/s", f"% of {bound}", *(f"x {rival}" for rival in rivals))
    lines = []
    for ours, others in points:
        speedups = {str(row["what"]): f"{float(str(row['speedup'])):.1f}" for row in others}
        low, high = (f"{float(str(ours[key])):.3f}" for key in ("ms_min", "ms_max"))
        numbers = [f"{float(str(ours[key])):.{digits}f}" for key, digits in (("ms_median", 3), ("gb_per_s", 1))]
        percent = f"{float(str(ours['percent_of_bound'])):.0f}"
        lines.append([label(ours), numbers[0], f"{low} - {high}", numbers[1], percent, *map(speedups.get, rivals)])
    return format_table(header, [[cell or "" for cell in line] for line in lines])


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Reading is what a scan may cost, and nothing may be slower than the best that PyTorch offers; for large models.

    Args:
        rows: of the suite, in its order.
    """
    large = [row for row in rows if int(str(row["scalars"])) > LARGE and row["axis"] in ("base", "N")]
    found = []
    for op in dict.fromkeys(str(row["op"]) for row in large):
        for ours, others in points_of(large, op):
            where = f"{op}, {ours['model']}, {ours['dtype']}"
            if op == "scan+topk" and ours["dtype"] == "float32":
                both = 2 * int(str(ours["scalars"])) * 4
                times = 100 / float(str(ours["percent_of_bound"])) * int(str(ours["bytes"])) / both
                found.append(Bar(f"{where}: time of reading parameters and gradients", times, READ_BAR, unit=" x"))
            least = SCAN_BAR if op == "scan+topk" else 1.0
            for rival in sorted(others, key=lambda row: float(str(row["speedup"])))[:1]:
                speedup = float(str(rival["speedup"]))
                found.append(Bar(f"{where}: speed-up over {rival['what']}", speedup, least, least=True, unit=" x"))
    return found
