"""What came out, as a table for the screen."""

from __future__ import annotations

import math

from benchmarks.quality import comparing
from benchmarks.quality.comparing import Comparison, Summary
from benchmarks.quality.plan import Ledger, Preset
from benchmarks.report import format_bytes, format_table


def accuracy(found: Summary) -> str:
    """Mean and deviation in percent."""
    spread = "" if math.isnan(found.deviation) else f" ± {100 * found.deviation:.1f}"
    return f"{100 * found.mean:.1f}{spread}"


def difference(found: Comparison | None) -> list[str]:
    """ID3's lead in percentage points, wins and losses, and the p-value."""
    if found is None:
        return ["", "", ""]
    p = "" if math.isnan(found.p) else f"{found.p:.3f}"
    return [f"{100 * found.difference:+.1f}", f"{found.wins}:{found.losses}", p]


def table(preset: Preset, ledger: Ledger) -> str:
    """All cells whose runs are all there, by budget; empty if there are none."""
    found = comparing.summaries(preset, ledger)
    against = comparing.against_ours(found, preset)
    rows = []
    for share in (*sorted({each.cell.share for each in found}),):
        for method in dict.fromkeys(each.cell.method for each in found if each.cell.share == share):
            mine = {each.cell.data: each for each in found if (each.cell.method, each.cell.share) == (method, share)}
            first = next(iter(mine.values()))
            cells = [accuracy(mine[data]) if data in mine else "" for data in preset.tasks]
            size = [f"{first.trained:,}", format_bytes(first.state_bytes)] if first.trained else ["0", ""]
            label = f"{method}, {share:.1%}" if share else method
            rows.append([label, *cells, *difference(against.get((method, share))), *size])
    header = ("", *preset.tasks, "ID3 leads by", "wins", "p", "trained", "state")
    return format_table(header, rows) if rows else ""
