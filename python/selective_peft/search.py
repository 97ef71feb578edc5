"""Finding the new entries of a selecting step, and their gradients: by the kernels' scores or by somebody's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from selective_kernels import Fetched, Score, SparseIndex, Table, gather_grads, scan
from selective_kernels.topk import Scan
from selective_peft.scores import AnyScore, TensorScore, evaluate, kernel_form, needs_grad

Wanted = int | list[int]  # entries over all tensors, or of each
GRADIENTS_ONLY = Score(exponent=0.0)  # reads no parameters


@dataclass(frozen=True)
class Gradients:
    """Which tensors have a gradient in this step, ascending, and the gradients."""

    tensors: Sequence[int]
    grads: Sequence[Tensor]


class Found(NamedTuple):
    """New entries, their gradients and parameters, and the lowest of their scores; see `lowest`."""

    new: SparseIndex
    fetched: Fetched
    threshold: float | None


def lowest(running: Scan, new: SparseIndex, wanted: Wanted, score: Score | None = None) -> float | None:
    """The lowest score that a finished scan has selected.

    None if it has selected nothing, if each tensor has its own, and for scores whose values only order.
    """
    orders = score is not None and score.family in ("magnitude", "random")
    return running.threshold if new.count and isinstance(wanted, int) and not orders else None


def find(
    table: Table,
    index: SparseIndex,
    wanted: Wanted,
    score: AnyScore,
    given: Gradients,
    eligible: Sequence[int],
    selected_grads: Tensor,
    backend: str,
    flag: Tensor | None = None,
) -> Found | None:
    """The best `wanted` entries that are not in `index` yet.

    Args:
        table, index: all tensors, and what is selected already.
        wanted: see `selective_kernels.scan`.
        score: what ranks the entries.
        given: this step's gradients.
        eligible: tensors that a score without gradients may select from.
        selected_grads: float32, shape (index.count,) or longer; receives the gradients of the selected entries.
        backend: see `SelectiveAdamW`.
        flag: for a score without gradients: whether one that was read is inf or NaN goes there, and nobody waits for
            it; see `selective_kernels.gather_grads`.

    Returns:
        The new entries; None if a gradient that was read is inf or NaN, unless that
        goes into `flag`. Without a gradient in this step, entries have no defined value in either list of gradients.
    """
    form = kernel_form(score)
    running = scan(table, index, wanted, form or Score(family="given"), backend=backend)
    reader = None  # the scan that sees all gradients
    if needs_grad(score):
        reader = running if form is not None else scan(table, index, 0, GRADIENTS_ONLY, backend=backend)
        reader.add(given.tensors, given.grads, selected_grads)
        if reader.nonfinite:
            return None
    if form is None:
        own, grad_of = cast(TensorScore, score), dict(zip(given.tensors, given.grads, strict=True))
        for i in eligible if reader is None else given.tensors:
            running.add([i], [evaluate(own, table.names[i], table.params[i], grad_of.get(i))])
    elif reader is None:
        running.add(eligible, None)
    new = running.finalize()
    fetched = running.fetch()
    threshold = lowest(running, new, wanted, form)
    if fetched.grads is not None:
        return Found(new, fetched, threshold)
    fresh = torch.empty(new.count, device=table.device, dtype=torch.float32)
    fetched = fetched._replace(grads=fresh)
    if reader is not None:
        reader.gather(new, fresh)
        return Found(new, fetched, threshold)
    finite = [
        gather_grads(table, entries, given.tensors, given.grads, out, flag=flag, backend=backend)
        for entries, out in ((index, selected_grads), (new, fresh))
    ]
    return Found(new, fetched, threshold) if all(finite) else None
