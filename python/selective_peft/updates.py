"""What a run changed: which scalars, when each was selected, its value before and after."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from selective_kernels import gather
from selective_peft.naming import Place, places
from selective_peft.optimizer import SelectiveOptimizer
from selective_peft.rawbytes import BITS, bits, from_bits


@dataclass(frozen=True, eq=False)
class Updates:
    """The changed scalars of a model, sorted by (tensor, offset); all tensors are on the CPU.

    Attributes:
        names: of all selective tensors with at least one scalar, selected or not.
        sizes: scalars of each.
        starts: `len(names) + 1` numbers; tensor i owns the entries `starts[i]` to `starts[i + 1]`.
        offsets: int64, shape (entries,): flat row-major offset of each entry in its tensor, ascending within one.
        before, after: float32, shape (entries,): its value at selection and now, as the model held it.
        chosen: int32, shape (entries,): the step, from 0, that selected it; None for a run that is not known step by
            step.
        steps: completed steps; 0 if `chosen` is None.

    Raises:
        ValueError: these do not fit together.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    offsets: Tensor
    before: Tensor
    after: Tensor
    chosen: Tensor | None = None
    steps: int = 0

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names: expected at least one name, each once, got {self.names}")
        if len(self.sizes) != len(self.names) or min(self.sizes) < 1:
            raise ValueError(f"sizes: expected {len(self.names)} numbers above 0, got {self.sizes}")
        dtypes = {"offsets": torch.int64, "before": torch.float32, "after": torch.float32, "chosen": torch.int32}
        for name, dtype in dtypes.items():
            array = getattr(self, name)
            if array is not None and (array.dtype != dtype or array.shape != (len(self.offsets),)):
                given = f"{array.dtype} {tuple(array.shape)}"
                raise ValueError(f"{name}: expected {dtype}, shape ({len(self.offsets)},), got {given}")
        lengths = torch.tensor(self.starts, device="cpu").diff()
        if self.starts[0] != 0 or self.starts[-1] != len(self.offsets) or bool((lengths < 0).any()):
            raise ValueError(f"starts: expected to ascend from 0 to {len(self.offsets)}, got {self.starts}")
        if len(lengths) != len(self.names):
            raise ValueError(f"starts: expected {len(self.names) + 1} numbers, got {len(self.starts)}")
        owners = self.owners()
        inside = (self.offsets >= 0) & (self.offsets < torch.tensor(self.sizes, device="cpu")[owners])
        if not bool(inside.all()) or bool(((owners.diff() == 0) & (self.offsets.diff() <= 0)).any()):
            raise ValueError("offsets: expected ascending positions inside their tensors")
        if self.chosen is None:
            if self.steps:
                raise ValueError(f"steps: expected 0 without `chosen`, got {self.steps}")
        elif len(self.chosen) and not 0 <= int(self.chosen.min()) <= int(self.chosen.max()) < self.steps:
            raise ValueError(f"chosen: expected numbers in [0, {self.steps}), the steps")

    @classmethod
    def from_optimizer(cls, optimizer: SelectiveOptimizer) -> Updates:
        """What a selective optimizer has selected and changed so far.

        Left out are groups with `selective=False`, and parameters that are frozen (`requires_grad=False`) as far as
        nothing of theirs is selected. O(selected scalars) time and memory.

        Raises:
            ValueError: the optimizer has not made a step yet, has nothing to select from (method "full"), or selects
                afresh in each step ("d3-repeat") and does not remember; `from_models` serves for these two.
            RuntimeError: a parameter has another size or dtype than in the last step.
        """
        if not optimizer.begun:
            raise ValueError("optimizer: expected one that has made a step, got one before its first")
        if optimizer._settings.repeats:
            raise ValueError("optimizer: expected a selection that only grows, got 'repeat'; use Updates.from_models")
        table, selection = optimizer._bind()  # the model may be on another device by now
        starts = selection.index.starts
        slices = [slice(start, end) for start, end in pairwise(starts)]
        original = selection.arrays["original"].cpu()
        before = [from_bits(original[piece], dtype).float() for piece, dtype in zip(slices, table.dtypes, strict=True)]
        lengths = torch.tensor(starts, device="cpu").diff().tolist()
        kept = [i for i, n in enumerate(lengths) if n or (table.numels[i] and table.params[i].requires_grad)]
        if not kept:
            raise ValueError("optimizer: expected tensors to select from, got none; use Updates.from_models")
        return cls(
            names=tuple(table.names[i] for i in kept),
            sizes=tuple(table.numels[i] for i in kept),
            starts=(0, *accumulate(lengths[i] for i in kept)),
            offsets=selection.index.valid.cpu().long(),
            before=torch.cat(before),
            after=gather(table, selection.index).cpu(),
            chosen=selection.arrays["chosen"][: selection.count].cpu().clone(),
            steps=max(selection.step, min(selection.count, 1)),  # right after a warm-up they count as of the first one
        )

    @classmethod
    def from_models(
        cls,
        before: nn.Module | Mapping[str, Tensor],
        after: nn.Module | Mapping[str, Tensor],
        names: Collection[str] | None = None,
    ) -> Updates:
        """All scalars whose bits differ between two models, such as those before and after full fine-tuning.

        Of a module the parameters count, of a state dict the floating-point tensors; tied ones once. The record takes
        16 bytes per changed scalar.

        Args:
            before, after: float32, bfloat16 or float16 each.
            names: which tensors to compare; without, those of a module if one is given, else all of both state dicts.

        Raises:
            ValueError: the two do not have the same tensors with the same shapes and dtypes, or they share memory.
        """
        old, new = _tensors(before), _tensors(after)
        if names is None:
            modules = [each for each in (after, before) if isinstance(each, nn.Module)]
            names = list(_tensors(modules[0]) if modules else {**old, **new})
        for what, tensors in (("before", old), ("after", new)):
            if set(names) - set(tensors):
                raise ValueError(f"{what}: expected the tensors {sorted(set(names) - set(tensors))}, they are missing")
        pairs = {name: _flat_pair(name, old[name], new[name]) for name in _once(new, names)}
        offsets = [(bits(x) != bits(y)).nonzero().reshape(-1) for x, y in pairs.values()]
        return cls(
            names=tuple(pairs),
            sizes=tuple(len(x) for x, _ in pairs.values()),
            starts=(0, *accumulate(len(each) for each in offsets)),
            offsets=torch.cat([torch.empty(0, dtype=torch.int64, device="cpu"), *offsets]),
            before=_take([x for x, _ in pairs.values()], offsets),
            after=_take([y for _, y in pairs.values()], offsets),
        )

    @property
    def counts(self) -> list[int]:
        """Entries of each tensor."""
        return [end - start for start, end in pairwise(self.starts)]

    def owners(self) -> Tensor:
        """Number of the tensor of each entry, int64, shape (entries,)."""
        return torch.repeat_interleave(
            torch.arange(len(self.starts) - 1, device="cpu"), torch.tensor(self.starts, device="cpu").diff()
        )

    def places(self) -> list[Place]:
        """Module and layer of each tensor."""
        return places(self.names)

    def offsets_of(self, name: str) -> Tensor:
        """The offsets of a tensor's entries, ascending; empty for a tensor that is not here."""
        return self.offsets[self.slice_of(name)]

    def slice_of(self, name: str) -> slice:
        """Where a tensor's entries are; empty for a tensor that is not here."""
        if name not in self.names:
            return slice(0, 0)
        i = self.names.index(name)
        return slice(self.starts[i], self.starts[i + 1])


def _tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        return dict(model.named_parameters())
    return {name: tensor for name, tensor in model.items() if tensor.is_floating_point()}


def _once(tensors: Mapping[str, Tensor], names: Collection[str]) -> list[str]:
    """The names, each tensor once and without those that hold nothing, in the order of `tensors`."""
    wanted = set(names)
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in tensors.items():
        if name in wanted and tensor.numel():
            first.setdefault((tensor.data_ptr(), tensor.shape), name)
    return list(first.values())


def _flat_pair(name: str, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    expected, given = (f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (before, after))
    if expected != given:
        raise ValueError(f"after[{name!r}]: expected {expected} as before, got {given}")
    if before.dtype not in BITS:
        raise ValueError(f"before[{name!r}]: expected float32, bfloat16 or float16, got {before.dtype}")
    if before.data_ptr() == after.data_ptr():
        raise ValueError(f"before[{name!r}]: expected a copy from before training, got the memory of after itself")
    return before.detach().reshape(-1).cpu(), after.detach().reshape(-1).cpu()


def _take(tensors: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
    taken = [tensor[each].float() for tensor, each in zip(tensors, offsets, strict=True)]
    return torch.cat([torch.empty(0, dtype=torch.float32, device="cpu"), *taken])
