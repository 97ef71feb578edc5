"""Sparse deltas: what training changed of a model, to apply to its base and to undo, bit for bit.

A delta is a folder. `selective_delta.safetensors` holds all of it, in the format of `selective_peft.delta_file`;
`selective_config.json` and `README.md` say the same to people and to the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selective_peft import delta_file, making_deltas, patching
from selective_peft.about import About
from selective_peft.changes import Change
from selective_peft.errors import DeltaError
from selective_peft.hub import OnHub
from selective_peft.naming import count_by_place, places
from selective_peft.updates import Updates
from selective_peft.weight_patches import WeightPatch, patches_of


@dataclass(frozen=True, eq=False)
class SparseDelta(OnHub):
    """What makes a tuned model of its base: new values for a few scalars, and whole tensors (a head).

    Attributes:
        changes: by parameter name, as the model without wrappers names it.
        about: base, method, hyper-parameters.
    """

    changes: Mapping[str, Change]
    about: About = field(default_factory=About)

    # ------------------------------------------------------------------ where deltas come from

    @classmethod
    def from_optimizer(
        cls,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        base_model: str | None = None,
        base_revision: str | None = None,
    ) -> SparseDelta:
        """What a selective optimizer has changed of a model so far.

        The base's values come from the optimizer's state, so a resumed run gives the delta to the very first base.
        Reads each changed tensor once for its fingerprint; what training changes beside parameters (running statistics
        of batch normalisation) is not in it, with a warning.

        Args:
            optimizer: a selective one, or Accelerate's wrapper of one.
            model: whose parameters it has; possibly wrapped for several processes or compiled.
            base_model, base_revision: what the model was before, for people and the Hub; without, what its
                configuration says.

        Raises:
            ValueError: the optimizer has made no step, is amid its warm-up, selects afresh in each step ("d3-repeat"),
                or has parameters that are not the model's.
            RuntimeError: a parameter has another size or dtype than in the last step.
            DeltaError: a changed scalar is inf or NaN.
        """
        changes = making_deltas.changes_of(optimizer, model)
        return cls(changes, making_deltas.about_run(optimizer, model, base_model, base_revision))

    @classmethod
    def from_models(
        cls,
        base: nn.Module | Mapping[str, Tensor],
        tuned: nn.Module | Mapping[str, Tensor],
        *,
        base_model: str | None = None,
        base_revision: str | None = None,
        whole_above: float = 0.5,
    ) -> SparseDelta:
        """All that differs, bit for bit, between two models: parameters and buffers, or the tensors of state dicts.

        Args:
            base, tuned: modules or state dicts. What only `tuned` has is taken whole.
            base_model, base_revision: as in `from_optimizer`.
            whole_above: a tensor with a larger share of its scalars changed is taken whole.

        Raises:
            DeltaError: a tensor is missing from `tuned` or has another shape or dtype; tensors that are not float32,
                bfloat16 or float16 differ; a changed value is inf or NaN.
        """
        changes = making_deltas.differences(base, tuned, whole_above)
        return cls(changes, making_deltas.about_difference(tuned, base_model, base_revision))

    # ------------------------------------------------------------------ files

    def save(self, folder: str | Path, *, compact: bool = False, originals: bool = True) -> None:
        """Writes the delta into a folder, which is made if it is not there; its files are replaced one by one.

        Args:
            folder: where to.
            compact: index lists gap-coded, at most 2 bytes per scalar instead of 4 (see `selective_kernels.gaps`).
            originals: keep the base's values, so that the delta can be undone without the base.

        Raises:
            DeltaError: names of tensors collide in the file.
            OSError: it cannot be written.
        """
        delta_file.save(self.changes, self.about, Path(folder), compact=compact, originals=originals)

    @classmethod
    def load(cls, folder: str | Path) -> SparseDelta:
        """Reads and checks a delta: a folder, or the safetensors file in it.

        Raises:
            DeltaError: it is damaged in any bit, of another format or version, or nothing that `save` would write.
            OSError: it cannot be read.
        """
        return cls(*delta_file.load(Path(folder)))

    # ------------------------------------------------------------------ models

    def apply_(self, model: nn.Module, *, check: bool = True) -> None:
        """Makes the tuned model of its base, in place; the result has the tuned model's bits.

        Names, shapes and dtypes are always checked, before anything is written.

        Args:
            model: the base; possibly wrapped or compiled.
            check: compare the fingerprints of the tensors that are changed in part: reads each of them once.

        Raises:
            DeltaError: the model does not fit, is not the base, or the delta is applied already.
        """
        patching.apply_(self.changes, model, check=check)

    def revert_(self, model: nn.Module, *, check: bool = True) -> None:
        """Makes the base of the tuned model, in place; the result has the base's bits.

        Args:
            model: the tuned one.
            check: it has the delta's values, and the base's fingerprints when these are undone.

        Raises:
            DeltaError: the delta has no originals, or the model does not fit; nothing is changed.
        """
        patching.revert_(self.changes, model, check=check)

    def iter_patches(self) -> Iterator[WeightPatch]:
        """The new values tensor by tensor, as inference engines take them into a running model that has the base.

        The patches hold the delta's own tensors, on the CPU and not to be modified. A tensor that the model ties is
        there once, under its first name. Whole tensors have no indices.
        """
        return patches_of(self.changes)

    # ------------------------------------------------------------------ what is in it

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors: positions, new values, originals."""
        return sum(change.nbytes for change in self.changes.values())

    @property
    def has_originals(self) -> bool:
        """Whether it can be undone without the base."""
        return all(change.originals is not None for change in self.changes.values())

    @property
    def fingerprint(self) -> str:
        """Of the base: the changed tensors' names, dtypes, shapes and contents before the change (64 hex digits)."""
        return delta_file.fingerprint(self.changes)

    def summary(self) -> dict[str, Any]:
        """Numbers of the delta, as JSON can hold them.

        "tensors", "scalars" (changed one by one), "of" (scalars of their tensors), "whole" (name -> scalars of each
        whole tensor), "bytes", "originals", "fingerprint", "where" (module -> layer -> scalars changed one by one), and
        what `about` says but for the model's configuration.
        """
        sparse = {name: change for name, change in self.changes.items() if not change.is_whole}
        counts = [change.scalars for change in sparse.values()]
        return {
            "tensors": len(self.changes),
            "scalars": sum(counts),
            "of": sum(change.numel for change in sparse.values()),
            "whole": {name: change.numel for name, change in self.changes.items() if change.is_whole},
            "bytes": self.nbytes,
            "originals": self.has_originals,
            "fingerprint": self.fingerprint,
            "where": count_by_place(places(sparse), counts),
            "base_model": self.about.base_model,
            "base_revision": self.about.base_revision,
            "method": self.about.method,
            "hyperparameters": dict(self.about.hyperparameters),
        }

    def updates(self) -> Updates:
        """The scalars changed one by one, for `selective_peft.analysis` and `plots`.

        Raises:
            DeltaError: the originals were not kept, or only whole tensors are changed.
        """
        sparse = [(name, change) for name, change in self.changes.items() if change.indices is not None]
        if not sparse or any(change.originals is None for _, change in sparse):
            raise DeltaError("delta: expected scalars changed one by one, with their originals, got none")
        return Updates(
            names=tuple(name for name, _ in sparse),
            sizes=tuple(change.numel for _, change in sparse),
            starts=(0, *accumulate(change.scalars for _, change in sparse)),
            offsets=torch.cat([change.indices.long() for _, change in sparse if change.indices is not None]),
            before=torch.cat([change.originals.float() for _, change in sparse if change.originals is not None]),
            after=torch.cat([change.values.float() for _, change in sparse]),
        )

    def __repr__(self) -> str:
        whole = sum(change.is_whole for change in self.changes.values())
        scalars = sum(change.scalars for change in self.changes.values() if not change.is_whole)
        return f"SparseDelta({scalars:,} scalars in {len(self.changes) - whole:,} tensors, {whole:,} whole tensors)"
