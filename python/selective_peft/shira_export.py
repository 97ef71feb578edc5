"""A delta as a SHiRA adapter of the PEFT library, which adds sparse numbers to the weights of linear maps.

SHiRA fixes how many scalars a matrix has: r * (inputs + outputs), one r for all. Places without a change are filled
with -0.0, which changes no weight, not even the sign of a zero. Each place stands there once, as PEFT has it, too, but
where two numbers have to be added to get the new value.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from selective_peft.changes import Change
from selective_peft.delta import SparseDelta
from selective_peft.delta_card import based_on, code, front_matter
from selective_peft.errors import DeltaError, first_line
from selective_peft.making_deltas import state_of
from selective_peft.naming import tied_names, unwrapped
from selective_peft.output import Output, check_output
from selective_peft.patching import Targets, check_base
from selective_peft.rawbytes import raw
from selective_peft.shira_plan import Entries, ShiraPlan, plan_shira, within

PREFIX = "base_model.model."  # of names in PEFT's files
WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"


@dataclass(frozen=True)
class Exported:
    """What is in an adapter.

    Attributes:
        r: SHiRA's.
        scalars: by module, how many of its matrix are changed.
        pairs: of these, how many take two numbers, in all.
        padding: places without a change, in all.
        whole: by module that is stored whole, why.
        whole_scalars: of these, in all.
        nbytes: size of the file.
    """

    r: int
    scalars: Mapping[str, int]
    pairs: int
    padding: int
    whole: Mapping[str, str]
    whole_scalars: int
    nbytes: int


def export_shira(
    delta: SparseDelta, model: nn.Module, out: str | Path, *, dense: bool = True, check: bool = True
) -> Exported:
    """Writes a delta as a SHiRA adapter: `PeftModel.from_pretrained(base, out).merge_and_unload()` is the tuned model.

    Single scalars of `nn.Linear` matrices stay single scalars, 12 bytes each and those that fill it up. What SHiRA
    cannot hold is stored whole, with its module (PEFT's `modules_to_save`): embeddings, norms, biases and their linear
    maps, `Conv1D`, tied weights, and matrices with more changes than an `r` for all has room for. An adapter fits the
    base in the precision of the delta only.

    Args:
        delta: of this model.
        model: the base, as the delta names its tensors (with the head, if it has one); it is not modified.
        out: a new or an empty folder.
        dense: store modules whole where that is needed; else such a delta is refused.
        check: load the adapter with PEFT into a copy of the model, merge it, and compare every bit.

    Raises:
        DeltaError: the model is not the delta's base, the adapter cannot hold the delta, or PEFT makes another model of
            it.
        ImportError: `check` needs the package peft.
        InputError: `out` is not empty or cannot be written to.
        OSError: the same, later. In all cases nothing is left behind.
    """
    folder, bare = Path(out), unwrapped(model)
    check_output(folder, "out")
    check_base(Targets(state_of(bare), delta.changes), delta.changes)
    plan = plan_shira(delta.changes, bare, dense=dense)
    tuned = _Tuned(delta.changes, bare)
    content = save(dict(_tensors(plan, tuned)), {"format": "pt"})
    with Output(folder) as output:
        output.write(WEIGHTS, lambda path: _write(path, content))
        output.write(CONFIG, lambda path: _write(path, _config(delta, bare, plan).encode()))
        output.write(CARD, lambda path: _write(path, _card(delta).encode()))
        if check:
            output.fill(lambda staged: _check_merged(staged, bare, tuned))
        output.publish()
    whole = sum(tensor.numel() for name, tensor in tuned.items() if any(within(name, each) for each in plan.covered))
    scalars = {name: each.scalars for name, each in plan.sparse.items()}
    numbers = sum(len(each.indices) for each in plan.sparse.values())
    places = plan.r * sum(each.per_rank for each in plan.sparse.values())
    pairs = numbers - sum(scalars.values())
    return Exported(plan.r, scalars, pairs, places - numbers, plan.reasons, whole, len(content))


class _Tuned(Mapping[str, Tensor]):
    """The tuned model's tensors, each made when it is asked for."""

    def __init__(self, changes: Mapping[str, Change], model: nn.Module) -> None:
        ties = tied_names(model)
        self._state: dict[str, Any] = dict(model.state_dict(keep_vars=True))
        self._changes = {each: change for name, change in changes.items() for each in (name, *ties.get(name, ()))}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name].detach()
        if name in self._changes:
            return self._changes[name].substituted(tensor, self._changes[name].values)
        copied: Tensor = tensor.cpu().contiguous()
        return copied

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def _tensors(plan: ShiraPlan, tuned: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for module, entries in plan.sparse.items():
        places, numbers = _filled(entries, plan.r * entries.per_rank)
        inputs = entries.shape[1]
        rows_columns = torch.stack([places // inputs, places % inputs]).to(torch.int32)
        yield f"{PREFIX}{module}.shira_weight", numbers
        yield f"{PREFIX}{module}.shira_indices", rows_columns
    for name in tuned:
        if any(within(name, module) for module in plan.covered):
            yield PREFIX + name, tuned[name].clone()  # safetensors refuses shared memory


def _filled(entries: Entries, count: int) -> tuple[Tensor, Tensor]:
    """So many places, int64 and ascending, and what is added there: the first free ones get -0.0."""
    used = entries.indices.long()
    free = torch.ones(count, dtype=torch.bool, device="cpu")  # of these first ones at most len(used) are taken
    free[used[used < count]] = False
    empty = free.nonzero().view(-1)[: count - len(used)]
    places, order = torch.cat([used, empty]).sort(stable=True)
    numbers = torch.cat([entries.numbers, torch.full((len(empty),), -0.0, dtype=torch.float32, device="cpu")])
    return places, numbers[order]


def _config(delta: SparseDelta, model: nn.Module, plan: ShiraPlan) -> str:
    """`adapter_config.json`. The modules are given by one pattern: PEFT takes single names for ends of names, too."""
    kind = type(model)
    content = {
        "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
        "base_model_name_or_path": delta.about.base_model or None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_weights": True,
        "mask_type": "selective",  # the places are in the file; "random" would draw some first
        "modules_to_save": list(plan.whole) or None,
        "peft_type": "SHIRA",
        "r": plan.r,
        "random_seed": None,
        "revision": delta.about.base_revision or None,
        "target_modules": "|".join(re.escape(name) for name in plan.sparse),
        "task_type": None,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _card(delta: SparseDelta) -> str:
    about = delta.about
    lines = [*front_matter("peft", about.base_model, ["shira", "selective-kernels"]), "# SHiRA adapter", ""]
    lines += [f"What fine-tuning by {code(about.method)} changed of {based_on(about)}.", ""]
    lines += ["```python", "from peft import PeftModel", ""]
    lines += ['model = PeftModel.from_pretrained(base, "path/to/this/folder").merge_and_unload()', "```", ""]
    return "\n".join(lines)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _check_merged(folder: Path, model: nn.Module, tuned: Mapping[str, Tensor]) -> None:
    """Raises DeltaError unless PEFT makes the tuned model of a copy of the base."""
    from peft import PeftModel

    try:
        merged = PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).merge_and_unload().state_dict()
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise DeltaError(
            f"model: expected one that PEFT puts the adapter into, it says: {first_line(error)}"
        ) from error
    for name, expected in tuned.items():
        found = merged.get(name)
        found = None if found is None else found.detach().cpu().contiguous()
        if found is None or found.dtype != expected.dtype or raw(found) != raw(expected):
            raise DeltaError(f"{name}: expected the tuned tensor after PEFT merged the adapter, got another")
