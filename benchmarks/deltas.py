"""Times what is done with deltas of live models, and how large they are: `python -m benchmarks.deltas`.

A model of real shapes, of which a real selection (two steps of ID3 on random gradients) has changed a share of the
scalars. Rivals do the same with whole state dicts, as is usual today. First it is checked that each way gives the same
bits.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from selective_peft import SelectiveAdamW, SparseDelta, swap_
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.gate import Mismatch
from benchmarks.harness import Contender, Timing, interleave
from benchmarks.report import RESULTS, describe, environment, format_bytes, format_table, write_csv
from benchmarks.shapes import GRAD_STD, MODELS, PARAM_STD, random_tensors, total
from selective_kernels.testing import raw_bits

FORMS = {
    "delta, plain": {},
    "delta, compact": {"compact": True},
    "delta, compact, no originals": {"compact": True, "originals": False},
}


def build(name: str, dtype: torch.dtype, seed: int) -> nn.Module:
    """A module whose parameters have a model's names and shapes."""
    root = nn.Module()
    tensors = random_tensors(MODELS[name], PARAM_STD, dtype, seed)
    for full, tensor in zip(MODELS[name], tensors, strict=True):
        module = root
        *path, last = full.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(tensor))
    return root


def tune(base: nn.Module, share: float, seed: int) -> tuple[nn.Module, SelectiveAdamW]:
    """A copy of which a share is changed, and the optimizer that did it."""
    model = copy.deepcopy(base)
    optimizer = SelectiveAdamW(model.named_parameters(), lr=1e-3, budget=share, total_steps=2)
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    for step in range(2):
        dtype = next(model.parameters()).dtype
        for param, grad in zip(
            model.parameters(), random_tensors(shapes, GRAD_STD, dtype, 1000 * seed + step), strict=True
        ):
            param.grad = grad
        optimizer.step()
    model.zero_grad()
    return model, optimizer


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's parameters."""
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def check(model: nn.Module, expected: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises Mismatch unless a model has these bits."""
    for name, param in model.named_parameters():
        if not torch.equal(raw_bits(param.detach()), raw_bits(expected[name])):
            raise Mismatch(f"{what}: {name} has other bits")


class Case:
    """Two tasks of one base, their deltas in memory and in files, and a live model that holds one of them."""

    def __init__(self, name: str, dtype: torch.dtype, share: float, folder: Path) -> None:
        self.base = build(name, dtype, 0)
        self.first, self.optimizer = tune(self.base, share, 1)
        self.second, other = tune(self.base, share, 2)
        self.a = SparseDelta.from_optimizer(self.optimizer, self.first)
        self.b = SparseDelta.from_optimizer(other, self.second)
        self.states = [state_of(model) for model in (self.base, self.first, self.second)]
        self.live = copy.deepcopy(self.first)
        self.folder = folder
        for form, options in FORMS.items():
            self.a.save(folder / form, **options)
        save_file(self.states[1], folder / "whole.safetensors")

    def sizes(self) -> dict[str, int]:
        """Bytes of each form of the first task on disk."""
        found = {form: (self.folder / form / "selective_delta.safetensors").stat().st_size for form in FORMS}
        return {**found, "whole model": (self.folder / "whole.safetensors").stat().st_size}

    def gate(self) -> None:
        """Each way gives the bits that it should.

        Raises:
            Mismatch: one does not.
        """
        base, first, second = self.states
        model = copy.deepcopy(self.base)
        for form in FORMS:
            delta = SparseDelta.load(self.folder / form)
            delta.apply_(model)
            check(model, first, form)
            self.a.revert_(model)
            check(model, base, f"{form}, taken out")
        swap_(self.live, self.a, self.b)
        check(self.live, second, "swap")
        self.live.load_state_dict(first)
        check(self.live, first, "load_state_dict")

    def contenders(self) -> list[Contender]:
        """What is timed; whatever changes the live model finds the first task in it."""
        base, first, second = self.states
        scratch = self.folder / "scratch"

        def put(state: Mapping[str, torch.Tensor]) -> Callable[[int], object]:
            return lambda _: self.live.load_state_dict(state)

        return [
            Contender("from_optimizer", partial(SparseDelta.from_optimizer, self.optimizer, self.first)),
            Contender("save", partial(self.a.save, scratch)),
            Contender("save, compact", partial(self.a.save, scratch, compact=True)),
            Contender("load", partial(SparseDelta.load, self.folder / "delta, plain")),
            Contender("load, compact", partial(SparseDelta.load, self.folder / "delta, compact")),
            Contender("apply_", partial(self.a.apply_, self.live), put(base)),
            Contender("apply_, unchecked", partial(self.a.apply_, self.live, check=False), put(base)),
            Contender("revert_", partial(self.a.revert_, self.live), put(first)),
            Contender("swap_", partial(swap_, self.live, self.a, self.b), put(first)),
            Contender("swap_, unchecked", partial(swap_, self.live, self.a, self.b, check=False), put(first)),
            Contender("whole: load_state_dict", partial(self.live.load_state_dict, second)),
            Contender("whole: save_file", partial(save_file, first, self.folder / "scratch.safetensors")),
            Contender("whole: load_file", partial(load_file, self.folder / "whole.safetensors")),
        ]


RIVALS = {"save": "whole: save_file", "load": "whole: load_file"}  # by the first word; else load_state_dict


def rows_of(
    case: Case, name: str, dtype: str, share: float, timings: Mapping[str, Timing], stamp: Mapping[str, str]
) -> list[dict[str, object]]:
    """A CSV row for each thing timed, then one for each size."""
    changed = sum(change.scalars for change in case.a.changes.values())
    common = {"model": name, "scalars": total(MODELS[name]), "dtype": dtype, "share": share, "changed": changed}
    rows: list[dict[str, object]] = []
    for what, timing in timings.items():
        rival = RIVALS.get(what.split(",")[0], "whole: load_state_dict")
        row: dict[str, object] = {
            "what": what,
            "ms_median": f"{1e3 * timing.median:.3f}",
            "ms_min": f"{1e3 * timing.low:.3f}",
            "ms_max": f"{1e3 * timing.high:.3f}",
            "rival": rival,
            "of_rival": f"{timing.ratio(timings[rival]):.4f}",
            "bytes": "",
            "bytes_per_changed": "",
        }
        rows.append({**common, **row, **stamp})
    sizes = case.sizes()
    for form, size in sizes.items():
        row = dict.fromkeys(("what", "ms_median", "ms_min", "ms_max", "rival", "of_rival"), "")
        row |= {"what": form, "rival": "whole model", "of_rival": f"{size / sizes['whole model']:.5f}"}
        rows.append({**common, **row, "bytes": size, "bytes_per_changed": f"{size / changed:.3f}", **stamp})
    return rows


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows of one case as a table."""
    lines = []
    for row in rows:
        shown = format_bytes(float(str(row["bytes"]))) if row["bytes"] else f"{row['ms_median']} ms"
        spread = f"{row['ms_min']} - {row['ms_max']}" if row["ms_min"] else f"{row['bytes_per_changed']} B per scalar"
        lines.append([str(row["what"]), shown, spread, f"{row['of_rival']} x {row['rival']}"])
    return format_table(("", "median or size", "min - max", "of the rival"), lines)


def main(given: Sequence[str] | None = None) -> int:
    """Checks, measures, prints, writes a CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deltas", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["minilm-l6", "bert-base"])
    parser.add_argument("--share", type=float, default=0.003, help="of the scalars, default 0.003")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--csv", type=Path, default=RESULTS / "deltas.csv")
    options = parser.parse_args(given)
    stamp, rows = environment(), list[dict[str, object]]()
    print(describe(stamp), flush=True)
    for name in options.models:
        for dtype in ("float32", "bfloat16"):
            with tempfile.TemporaryDirectory() as folder, tqdm(total=options.rounds + 1, leave=False) as bar:
                case = Case(name, getattr(torch, dtype), options.share, Path(folder))
                case.gate()
                timings = interleave(case.contenders(), options.rounds, 1, bar.update)
                found = rows_of(case, name, dtype, options.share, timings, stamp)
            print(f"\n{name}, {dtype}, {found[0]['changed']:,} of {found[0]['scalars']:,} scalars changed")
            print(screen(found), flush=True)
            rows += found
            write_csv(options.csv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
