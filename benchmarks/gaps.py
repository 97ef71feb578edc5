"""Stores index lists in several ways: `python -m benchmarks.gaps` (`make bench-all`); size, and speed in one thread.

Lists are random positions of a few densities, and what a short run of ID3 selects in a real model: once a list for each
tensor, as a file has them (then a call's own time counts, for such lists are short), and once all in one. Speeds are in
encoded bytes and in offsets per second, and as times the time of copying the list. Time is the thread's own, for what
else a busy machine does would be most of it. First every way must give back what it was given, and the compiled kernels
the reference's bytes.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.codes import CODES, COPY, OURS, Code
from benchmarks.gate import Mismatch
from benchmarks.harness import Contender, Timing, interleave
from benchmarks.report import RESULTS, describe, environment, format_table, write_csv
from benchmarks.reviews import MissingData
from benchmarks.selections import RANDOM, Selected, id3_run, random_positions
from benchmarks.tables import markdown
from selective_kernels import decode_gaps, encode_gaps
from selective_kernels.testing import num_threads

SHARES = (0.001, 0.003, 0.01)
LARGEST_SIZE = 2.0  # bytes per offset
LARGEST_RANDOM = {0.003: 1.30}  # the same for random positions of a density
LEAST_SPEED = 200.0  # MB of code per second
LEAST_OFFSETS = 500_000  # in what is timed at once; shorter lists are taken several times
CHECKED = 20_000  # offsets of a list that the reference decodes, too


def random_bound(selected: Selected) -> float:
    """Bytes per offset that no code can beat on average, if every set of so many positions is as likely as another."""
    bits = 0.0
    for offsets, size in zip(selected.lists, selected.sizes, strict=True):
        n = len(offsets)
        bits += (math.lgamma(size + 1) - math.lgamma(n + 1) - math.lgamma(size - n + 1)) / math.log(2)
    return bits / 8 / selected.count


def check(selected: Selected) -> None:
    """Raises Mismatch if a way to store the lists loses something, or if kernels and reference differ."""
    for code in CODES:
        for i, (offsets, size, columns) in enumerate(_lists(selected)):
            back = code.decode(code.encode(offsets, columns), len(offsets), size, columns)
            if back.dtype is not torch.int32 or not torch.equal(back, offsets):
                raise Mismatch(f"{code.name}: list {i} of {selected.name} does not come back")
    for i, offsets in enumerate(selected.lists):
        part = offsets[:CHECKED]
        stored = encode_gaps(part, backend="cpu")
        same = torch.equal(stored, encode_gaps(part, backend="reference"))
        if not same or not torch.equal(decode_gaps(stored, len(part), 2**31, backend="reference"), part):
            raise Mismatch(f"list {i} of {selected.name}: kernels and reference differ")


def _lists(selected: Selected) -> Iterator[tuple[torch.Tensor, int, int]]:
    return zip(selected.lists, selected.sizes, selected.columns, strict=True)


def contenders(selected: Selected, code: Code, passes: int) -> tuple[list[Contender], int]:
    """Encoding and decoding all lists so many times, and the bytes between."""
    stored = [code.encode(offsets, columns) for offsets, _, columns in _lists(selected)]

    def encode() -> None:
        for _ in range(passes):
            for offsets, _, columns in _lists(selected):
                code.encode(offsets, columns)

    def decode() -> None:
        for _ in range(passes):
            for kept, (offsets, size, columns) in zip(stored, _lists(selected), strict=True):
                code.decode(kept, len(offsets), size, columns)

    made = [Contender(f"{code.name} encode", encode), Contender(f"{code.name} decode", decode)]
    return made, sum(code.nbytes(each) for each in stored)


def thread_seconds(run: Callable[[], object]) -> float:
    """Seconds that this thread computes until `run` returns."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def measure(selected: Selected, rounds: int, stamp: Mapping[str, str]) -> list[dict[str, object]]:
    """A CSV row for each way to store the lists.

    Raises:
        Mismatch: one of them gives another list.
    """
    check(selected)
    passes = max(1, LEAST_OFFSETS // selected.count)
    made = {code.name: contenders(selected, code, passes) for code in CODES}
    quick = [each for code in CODES if not code.slow for each in made[code.name][0]]
    timings = interleave(quick, rounds, warmups=2, timer=thread_seconds)
    for code in CODES:
        if code.slow:  # apart, for in its wake everybody would find cold caches
            timings |= interleave(made[code.name][0], 1, warmups=0, timer=thread_seconds)
    rows = []
    for code in CODES:
        nbytes = made[code.name][1]
        row: dict[str, object] = {
            "lists": selected.name,
            "share": selected.share,
            "n_lists": len(selected.lists),
            "offsets": selected.count,
            "code": code.name,
            "bytes": nbytes,
            "bytes_per_offset": f"{nbytes / selected.count:.4f}",
            "random_bound": f"{random_bound(selected):.4f}",
        }
        for way in ("encode", "decode"):
            mine, copying = timings[f"{code.name} {way}"], timings[f"{COPY} {way}"]
            row |= _speed(way, mine, copying, passes, nbytes, selected.count)
        rows.append({**row, "rounds": len(mine.seconds), "passes": passes, **stamp})
    return rows


def _speed(way: str, mine: Timing, copying: Timing, passes: int, nbytes: int, count: int) -> dict[str, object]:
    return {
        f"{way}_us_median": f"{1e6 * mine.median / passes:.1f}",
        f"{way}_us_min": f"{1e6 * mine.low / passes:.1f}",
        f"{way}_us_max": f"{1e6 * mine.high / passes:.1f}",
        f"{way}_mb_per_s": f"{passes * nbytes / mine.median / 1e6:.1f}",
        f"{way}_million_per_s": f"{passes * count / mine.median / 1e6:.1f}",
        f"{way}_ratio_to_copy": f"{mine.ratio(copying):.2f}",
    }


SPEEDS = [f"{way}_{unit}" for way in ("encode", "decode") for unit in ("mb_per_s", "million_per_s", "ratio_to_copy")]


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows of one selection as a table."""
    header = ("", "bytes each", "enc MB/s", "enc M/s", "x copy", "dec MB/s", "dec M/s", "x copy")
    lines = [[str(row[key]) for key in ("code", "bytes_per_offset", *SPEEDS)] for row in rows]
    return format_table(header, lines)


def verdicts(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """One line per aim: measured, wanted, met or not."""
    lines = []
    for row in rows:
        if row["code"] != OURS:
            continue
        name = f"{100 * float(str(row['share'])):g} %, {row['lists']}, {row['n_lists']} lists"
        scattered = row["lists"] == RANDOM
        largest = LARGEST_RANDOM.get(float(str(row["share"])), LARGEST_SIZE) if scattered else LARGEST_SIZE
        size = float(str(row["bytes_per_offset"]))
        lines.append(f"{name}: {size:.2f} bytes per offset, target <= {largest}: {_met(size <= largest)}")
        for way in ("encode", "decode"):
            speed = float(str(row[f"{way}_mb_per_s"]))
            lines.append(f"{name}: {way} {speed:.0f} MB/s, target > {LEAST_SPEED:.0f}: {_met(speed > LEAST_SPEED)}")
    return lines


def _met(condition: bool) -> str:
    return "met" if condition else "NOT MET"


def page(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows of a result file as a table for a page of the documentation."""
    first = rows[0]
    keys = ("encode_mb_per_s", "encode_million_per_s", "decode_mb_per_s", "decode_million_per_s")
    lines = [
        [
            f"{100 * float(row['share']):g} %, {row['lists']} ({int(row['n_lists']):,} of {int(row['offsets']):,})",
            row["code"],
            f"{float(row['bytes_per_offset']):.2f}",
            f"{float(row['random_bound']):.2f}",
            *(f"{float(row[key]):.0f}" for key in keys),
        ]
        for row in rows
        if row["code"] in (OURS, COPY, "int32 gaps, zlib")
    ]
    title = (
        f"Index lists, encoded and decoded in one thread; {first['cpu']}, medians of {first['rounds']} rounds (zlib: "
        "once), the thread's own time (`python -m benchmarks.gaps`, `benchmarks/results/gaps.csv`):"
    )
    header = ("lists (how many, of how many offsets)", "code", "bytes per offset", "bound for random positions")
    return f"{title}\n\n" + markdown((*header, "encode MB/s", "M offsets/s", "decode MB/s", "M offsets/s"), lines)


def selections(options: argparse.Namespace) -> Iterator[Selected]:
    """What to store."""
    for share in options.share or SHARES:
        yield random_positions(share, options.count)
    if options.steps:
        for share in options.share or SHARES:
            selected = id3_run(share, options.steps)
            yield selected
            yield selected.joined(f"{selected.name}, joined")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gaps", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--share", type=float, action="append", help="default: 0.001, 0.003 and 0.01")
    parser.add_argument("--count", type=int, default=1_000_000, help="random positions")
    parser.add_argument("--steps", type=int, default=25, help="of the run that selects; 0: no run")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--csv", type=Path, default=RESULTS / "gaps.csv")
    parser.add_argument("--page", action="store_true", help="measure nothing, print the CSV file as a Markdown table")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 if a result is wrong, 2 if something is missing. A missed target is reported, it is no error."""
    options = arguments(given)
    if options.page:
        with options.csv.open(newline="", encoding="utf-8") as file:
            print(page(list(csv.DictReader(file))))
        return 0
    rows: list[dict[str, object]] = []
    try:
        for selected in selections(options):  # runs take all threads
            with num_threads(1):
                stamp = environment()
                if not rows:
                    print(describe(stamp))
                title = (
                    f"{selected.name}, {100 * selected.share:g} %: {selected.count:,} in {len(selected.lists)} lists"
                )
                print(f"\n{title}, bound for random ones {random_bound(selected):.3f} bytes", flush=True)
                mine = measure(selected, options.rounds, stamp)
            rows.extend(mine)
            print(screen(mine))
    except Mismatch as error:
        print(f"WRONG RESULT, no time is reported: {error}", file=sys.stderr)
        return 1
    except MissingData as error:
        print(f"benchmarks.gaps: {error}", file=sys.stderr)
        return 2
    print("\nTargets\n" + "\n".join(verdicts(rows)))
    write_csv(options.csv, rows)
    print(f"\nwritten: {options.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
