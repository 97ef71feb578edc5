"""The paper's analyses of a run as numbers; `selective_peft.plots` draws them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from selective_peft.naming import Place, count_by_place, places
from selective_peft.updates import Updates

__all__ = [
    "Overlap",
    "Updates",
    "budget_by_place",
    "mean_update",
    "mean_update_by_layer",
    "mean_update_by_module",
    "mean_update_by_place",
    "overlap",
    "overlap_by",
    "overlap_by_module",
    "selection_entropy",
    "shared_updates",
    "spearman",
    "tensor_sparsity",
    "update_correlation",
]
BLOCK = 1024  # steps counted at once
Key = TypeVar("Key", bound=Hashable)


def _counts(updates: Updates) -> Iterator[Tensor]:
    """Selected entries per tensor after each step, int64, in blocks of shape (steps of the block, tensors)."""
    owners, tensors = updates.owners(), len(updates.names)
    if updates.chosen is None:
        yield torch.bincount(owners, minlength=tensors)[None]
        return
    chosen, order = updates.chosen.long().sort(stable=True)
    owners, before = owners[order], torch.zeros(tensors, dtype=torch.int64, device="cpu")
    for first in range(0, updates.steps, BLOCK):
        last = min(first + BLOCK, updates.steps)
        begin, end = torch.searchsorted(chosen, torch.tensor([first, last], device="cpu")).tolist()
        cells = (chosen[begin:end] - first) * tensors + owners[begin:end]
        fresh = torch.bincount(cells, minlength=(last - first) * tensors).reshape(last - first, tensors)
        counts = before + fresh.cumsum(0)
        yield counts
        before = counts[-1]


def _per_step(updates: Updates, measure: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat(
        [torch.empty(0, dtype=torch.float64, device="cpu"), *(measure(counts) for counts in _counts(updates))]
    )


def tensor_sparsity(updates: Updates) -> Tensor:
    """Share of the tensors that have no selected entry after each step.

    |{j : P_j and Lambda_t share no entry}| / number of tensors.

    Returns:
        float64, shape (steps,); for a run that is not known step by step shape (1,), its end.
    """
    return _per_step(updates, lambda counts: (counts == 0).double().mean(1))


def selection_entropy(updates: Updates) -> Tensor:
    """How evenly the selection is spread over the tensors after each step, in nats (paper, Fig. 7).

    -sum_j q_j ln q_j with q_j = p_j / sum_i p_i and p_j = |P_j in Lambda_t| / |P_j|. It is 0 if all selected entries
    are in one tensor, ln(number of tensors) if each tensor has the same share selected, and 0 while nothing is
    selected.

    Returns:
        float64, shape (steps,); for a run that is not known step by step shape (1,), its end.
    """
    sizes = torch.tensor(updates.sizes, dtype=torch.float64, device="cpu")

    def entropy(counts: Tensor) -> Tensor:
        shares = counts / sizes
        total = shares.sum(1, keepdim=True)
        q = shares / torch.where(total > 0, total, 1.0)
        return 0.0 - torch.xlogy(q, q).sum(1)

    return _per_step(updates, entropy)


def budget_by_place(updates: Updates) -> dict[str, dict[str, int]]:
    """Where the budget went: module -> layer -> selected scalars; see `naming.places` for what these are."""
    return count_by_place(updates.places(), updates.counts)


def mean_update(updates: Updates, key: Callable[[Place], Key]) -> dict[Key, float]:
    """Mean of |after - before| over the selected entries of each group of tensors; groups without any are left out.

    Args:
        updates: the run.
        key: gives the group of a tensor's place.
    """
    sizes = (updates.after.double() - updates.before.double()).abs()
    totals = (
        torch.zeros(len(updates.names), dtype=torch.float64, device="cpu")
        .index_add_(0, updates.owners(), sizes)
        .tolist()
    )
    found: dict[Key, tuple[float, int]] = {}
    for place, total, count in zip(updates.places(), totals, updates.counts, strict=True):
        if count:
            before = found.get(key(place), (0.0, 0))
            found[key(place)] = (before[0] + total, before[1] + count)
    return {group: total / count for group, (total, count) in found.items()}


def mean_update_by_module(updates: Updates) -> dict[str, float]:
    """Mean of |after - before| over the selected entries of each module, all its layers together."""
    return mean_update(updates, lambda place: place.module)


def mean_update_by_layer(updates: Updates) -> dict[str, float]:
    """Mean of |after - before| over the selected entries of each layer, all its modules together; "" is no layer."""
    return mean_update(updates, lambda place: place.layer)


def mean_update_by_place(updates: Updates) -> dict[Place, float]:
    """Mean of |after - before| over the selected entries of each module in each layer."""
    return mean_update(updates, lambda place: place)


def _check_same_model(a: Updates, b: Updates) -> None:
    sizes = dict(zip(a.names, a.sizes, strict=True))
    for name, size in zip(b.names, b.sizes, strict=True):
        if sizes.get(name, size) != size:
            raise ValueError(f"b: expected {sizes[name]} scalars in {name!r} as in a, got {size}")


def shared_places(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Where equal numbers stand in two ascending vectors without duplicates: their places in the first and second."""
    if not len(mine) or not len(theirs):
        return torch.empty(0, dtype=torch.int64, device="cpu"), torch.empty(0, dtype=torch.int64, device="cpu")
    at = torch.searchsorted(theirs, mine).clamp_max(len(theirs) - 1)
    found = theirs[at] == mine
    return found.nonzero().reshape(-1), at[found]


def _shared(a: Updates, b: Updates, name: str) -> tuple[Tensor, Tensor]:
    """Numbers of the entries of a tensor, in a and in b, that are in both."""
    mine, theirs = shared_places(a.offsets_of(name), b.offsets_of(name))
    return a.slice_of(name).start + mine, b.slice_of(name).start + theirs


def shared_updates(a: Updates, b: Updates) -> tuple[Tensor, Tensor]:
    """`after - before` of the entries that both runs changed, float64, shape (shared,) each, in a's order.

    Raises:
        ValueError: a tensor of this name has another size in the other run, or a shared update is inf or NaN.
    """
    _check_same_model(a, b)
    pairs = [_shared(a, b, name) for name in a.names]
    found = []
    for what, run, entries in (
        ("a", a, torch.cat([mine for mine, _ in pairs])),
        ("b", b, torch.cat([theirs for _, theirs in pairs])),
    ):
        change = run.after[entries].double() - run.before[entries].double()
        if not bool(change.isfinite().all()):
            raise ValueError(f"{what}: expected finite updates, got inf or NaN in {int((~change.isfinite()).sum())}")
        found.append(change)
    return found[0], found[1]


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, float64; equal values get the mean of their ranks."""
    order = values.argsort()
    firsts = values[order].diff().ne(0).nonzero().reshape(-1) + 1  # where another value begins
    counts = torch.cat([torch.tensor([0], device="cpu"), firsts, torch.tensor([len(values)], device="cpu")]).diff()
    mean = counts.cumsum(0).double() - (counts - 1).double() / 2
    group = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), counts)
    return torch.empty(len(values), dtype=torch.float64, device="cpu").scatter_(0, order, mean[group])


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of their ranks.

    0 where it does not exist: for fewer than 2 values, and if x or y is constant.

    Args:
        x, y: finite, shape (n,) each.
    """
    if len(x) < 2 or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return 0.0
    middle = (len(x) + 1) / 2  # the mean of any ranks
    x, y = _ranks(x) - middle, _ranks(y) - middle
    return max(-1.0, min(1.0, float(x @ y / (x.norm() * y.norm()))))


def update_correlation(a: Updates, b: Updates) -> float:
    """Spearman's correlation of two runs' updates (after - before, with sign) over the entries that both changed.

    0 where it does not exist: for fewer than 2 shared entries, and if one run's updates are all the same.

    Raises:
        ValueError: see `shared_updates`.
    """
    return spearman(*shared_updates(a, b))


@dataclass(frozen=True)
class Overlap:
    """How far two selections agree; shares of nothing are 0.

    Attributes:
        first, second: entries of each.
        shared: entries in both.
    """

    first: int
    second: int
    shared: int

    @property
    def union(self) -> int:
        """Entries in at least one."""
        return self.first + self.second - self.shared

    @property
    def jaccard(self) -> float:
        """shared / union."""
        return self.shared / self.union if self.union else 0.0

    @property
    def share_of_first(self) -> float:
        """shared / first."""
        return self.shared / self.first if self.first else 0.0

    @property
    def share_of_second(self) -> float:
        """shared / second."""
        return self.shared / self.second if self.second else 0.0


def overlap_by(a: Updates, b: Updates, key: Callable[[Place], Key]) -> dict[Key, Overlap]:
    """The overlap of two selections in each group of tensors.

    Args:
        a, b: the runs; a tensor that only one of them has counts as one with nothing selected in the other.
        key: gives the group of a tensor's place.

    Raises:
        ValueError: a tensor of this name has another size in the other run.
    """
    _check_same_model(a, b)
    names = list(dict.fromkeys((*a.names, *b.names)))
    found: dict[Key, Overlap] = {}
    for name, place in zip(names, places(names), strict=True):
        group = key(place)
        before = found.get(group, Overlap(0, 0, 0))
        found[group] = Overlap(
            before.first + len(a.offsets_of(name)),
            before.second + len(b.offsets_of(name)),
            before.shared + len(_shared(a, b, name)[0]),
        )
    return found


def overlap_by_module(a: Updates, b: Updates) -> dict[str, Overlap]:
    """The overlap of two selections in each module; see `overlap_by`."""
    return overlap_by(a, b, lambda place: place.module)


def overlap(a: Updates, b: Updates) -> Overlap:
    """The overlap of two selections; see `overlap_by`."""
    return overlap_by(a, b, lambda _: "all")["all"]
