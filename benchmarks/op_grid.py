"""Which combinations the suite of operations measures: a base, and one thing varied at a time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.op_problem import Point, shapes_of
from benchmarks.suites import CannotRun
from selective_kernels import _native, dispatch
from selective_kernels.testing import isa_paths

INDEXING = ("base", "N", "selected", "dtype", "threads", "isa", "backend")
AXES = {  # what an operation's time can depend on
    "scan+topk": ("base", "N", "k", "selected", "dtype", "threads", "isa", "backend"),
    "update": INDEXING,
    "merge": ("base", "k", "selected", "threads", "backend"),
    "gather": INDEXING,
    "scatter": INDEXING,
    "swap": INDEXING,
}
ALONE = ("isa", "backend")  # axes that rivals do not depend on
THOROUGH = ("base", "N")  # axes along which rivals that take seconds take part
ALL_AXES = AXES["scan+topk"]
MODELS = {"small": ("1m", "64k"), "full": ("minilm-l6", "1m", "bert-base")}  # the first is the base
DTYPES = {"small": ("float32", "bfloat16"), "full": ("float32", "bfloat16", "float16")}
SELECTED = (0.003, 0.0, 0.03)  # shares of all scalars
K = (3e-6, 3e-5, 3e-3)  # a step of a run of 1,000 steps, of one of 100, and the whole budget at once
SMALLEST = "1m"  # the reference backend on a GPU, which sorts on the host, is measured on this


def points(options: argparse.Namespace) -> list[Point]:
    """The combinations that options ask for, the base first.

    Args:
        options: preset, device, dtype, models and axes, as the command line has them.

    Raises:
        CannotRun: there are no kernels for the device, or no model of a name.
    """
    backend = dispatch.resolve(options.device)
    if backend == "reference":
        raise CannotRun(f"no kernels for {options.device} here, nothing is timed:\n{dispatch.available()}")
    models = options.models or MODELS[options.preset]
    for model in models:
        try:
            shapes_of(model)
        except ValueError as error:
            raise CannotRun(str(error)) from error
    dtypes = options.dtype or DTYPES[options.preset]
    isa = str(_native.cpu().isa()) if backend == "cpu" else ""
    base = Point("base", models[0], dtypes[0], SELECTED[0], K[0], torch.get_num_threads(), isa, backend)
    wanted = options.axes or ALL_AXES
    return [point for point in [base, *_varied(base, models, dtypes)] if point.axis in wanted]


def _varied(base: Point, models: Sequence[str], dtypes: Sequence[str]) -> list[Point]:
    found = [replace(base, axis="N", model=model) for model in models[1:]]
    found += [replace(base, axis="k", k=k) for k in K[1:]]
    found += [replace(base, axis="selected", selected=share) for share in SELECTED[1:]]
    found += [replace(base, axis="dtype", dtype=dtype) for dtype in dtypes[1:]]
    if base.backend == "cpu":
        found += [replace(base, axis="threads", threads=1 << i) for i in range((base.threads - 1).bit_length())]
        found += [replace(base, axis="isa", isa=isa) for isa in isa_paths() if isa != base.isa]
    else:
        found.append(replace(base, axis="backend", model=SMALLEST, backend="reference"))
    return found


def takes(op: str, point: Point) -> bool:
    """Whether an operation is measured at a point; only a scan has something to do where nothing is selected."""
    return point.axis in AXES[op] and (point.selected > 0.0 or op == "scan+topk")
