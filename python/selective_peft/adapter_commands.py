"""`selective-peft export` and `import`: a delta as an adapter of PEFT, and other formats as a delta."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from rich.console import Console

from selective_peft.base_models import load_base
from selective_peft.delta import SparseDelta
from selective_peft.delta_commands import described
from selective_peft.delta_folders import composed, conflict_row, read_deltas, write_delta
from selective_peft.errors import DeltaError, InputError
from selective_peft.output import check_output
from selective_peft.shira_export import CONFIG, export_shira
from selective_peft.shira_import import adapter_config, import_shira
from selective_peft.showing import facts, show, warning
from selective_peft.summary_import import import_summary

SHOWN = 6  # modules in the table; JSON has all


def run(options: argparse.Namespace, console: Console) -> None:
    """Runs one of these commands.

    Raises:
        InputError: something that was given cannot be used.
        DeltaError: a file is damaged, or they do not fit together.
        OSError: a file cannot be read or written. In all cases nothing is left behind.
    """
    check_output(options.out, "--out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and PEFT, about things that are meant to be so
        {"export": _export, "import": _import}[options.command](options, console)


def _export(options: argparse.Namespace, console: Console) -> None:
    delta, conflicts = composed(read_deltas(options.delta, "--delta"), options.on_conflict)
    began = time.perf_counter()
    dtypes = {change.dtype for change in delta.changes.values()}
    model, _ = load_base(
        options.base,
        model_class=options.model_class,
        config=delta.about.model_config,
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
    )
    done = export_shira(delta, model, options.out, dense=options.dense, check=options.check)
    found = {
        "command": "export",
        "base": str(options.base),
        "deltas": [str(path) for path in options.delta],
        "out": str(options.out),
        "on_conflict": options.on_conflict,
        "conflicts": conflicts,
        "checked": options.check,
        "r": done.r,
        "scalars": dict(done.scalars),
        "pairs": done.pairs,
        "padding": done.padding,
        "whole": dict(done.whole),
        "whole_scalars": done.whole_scalars,
        "nbytes": done.nbytes,
        "seconds": time.perf_counter() - began,
    }
    reasons = [f"{name} ({why})" for name, why in done.whole.items()]
    more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
    rows = {
        "single scalars": f"{sum(done.scalars.values()):,} in {len(done.scalars):,} matrices, r = {done.r}",
        "by two numbers": f"{done.pairs:,} of them" if done.pairs else "",
        "filled up with": f"{done.padding:,} that change nothing",
        "stored whole": f"{done.whole_scalars:,} scalars: {'; '.join([*reasons[:SHOWN], *more])}" if reasons else "",
        **conflict_row(conflicts, options.on_conflict),
        "written": f"{options.out} ({done.nbytes:,} bytes)",
    }
    unchecked = "--no-check: PEFT did not merge it, so nothing says that it gives the tuned model."
    show(console, options, found, facts(rows), *([] if options.check else [warning(unchecked)]))


def _import(options: argparse.Namespace, console: Console) -> None:
    if not options.source.exists():
        raise InputError(f"{options.source}: expected the folder of a SHiRA adapter or a summary's file, found none")
    began = time.perf_counter()
    is_adapter = options.source.is_dir()
    model, new = load_base(
        options.base,
        model_class=options.model_class or (_trained_class(options.source) if is_adapter else None),
        labels=options.labels,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
    )
    read = import_shira if is_adapter else import_summary
    named = {"base_model": options.base_model, "base_revision": options.base_revision}
    try:
        delta: SparseDelta = read(options.source, model, new=new, **named)
    except DeltaError as error:
        if options.labels is not None or not any(name in str(error) for name in new):
            raise
        raise DeltaError(f"{error}; --labels says how many classes the head has") from error
    size = write_delta(delta, options.out, compact=options.compact, originals=options.originals)
    found = {
        "command": "import",
        "source": str(options.source),
        "kind": "shira" if is_adapter else "selective-optimizers",
        "base": str(options.base),
        "out": str(options.out),
        **described(delta),
        "originals": options.originals and delta.has_originals,
        "file_bytes": size,
        "seconds": time.perf_counter() - began,
    }
    told = delta.summary()
    rows = {
        "from": "a SHiRA adapter" if is_adapter else "a summary of selective-optimizers",
        "single scalars": f"{told['scalars']:,} of {told['of']:,}" if told["of"] else "",
        "whole tensors": ", ".join(told["whole"]),
        "written": f"{options.out} ({size:,} bytes)",
    }
    show(console, options, found, facts(rows))


def _trained_class(folder: Path) -> str | None:
    """The class that an adapter says it was trained with."""
    mapping = adapter_config(folder / CONFIG).get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return name if isinstance(name, str) else None
