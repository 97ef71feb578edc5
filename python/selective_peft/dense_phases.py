"""Steps with dense state: the warm-up of the "diff" method, and the "repeat" strategy. Both are exempt from C10.

Updates are plain torch, and know that a gradient is inf or NaN before anything is changed: on a GPU they wait for that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selective_kernels import Score, SparseIndex, Table, gather_grads, scan
from selective_peft.search import Gradients, find, lowest
from selective_peft.selection import Selection
from selective_peft.tensor_scores import difference

if TYPE_CHECKING:
    from selective_peft.optimizer import SelectiveOptimizer

CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def _refuse_float16(table: Table, what: str) -> None:
    """Dense moments of float16 parameters are float16 in torch, where squares of gradients underflow to zero."""
    for name, dtype in zip(table.names, table.dtypes, strict=True):
        if dtype == torch.float16:
            raise TypeError(
                f"params: expected float32 or bfloat16 for {what}, whose state is dense, got float16: {name}"
            )


def _all_finite(given: Gradients) -> bool:
    return all(bool(torch.isfinite(grad).all()) for grad in given.grads)


def warm_up(optimizer: SelectiveOptimizer, table: Table, selection: Selection, given: Gradients) -> bool:
    """A dense step of the selective groups; after the last one of the warm-up the largest changes are selected and all
    selective parameters have their first values again.

    Returns:
        False, and nothing is changed, if a gradient is not finite.
    """
    _refuse_float16(table, "warmup_steps")
    table.check_grads(given.tensors, given.grads)
    if not _all_finite(given):
        return False
    clip = _clip_factor(optimizer._settings.max_grad_norm, given)
    for group in optimizer._groups(selective=True):
        params = [param for param in group["params"] if param.grad is not None]
        if params:
            grads = None if clip == 1.0 else [param.grad * clip for param in params]
            _update_with(optimizer, params, group, grads)
    if selection.warmup + 1 == optimizer._settings.warmup_steps:
        _select_changes(optimizer, table, selection)
    selection.warmup += 1  # at last: if there was no memory for the selection, the next step makes it
    return True


def _clip_factor(limit: float | None, given: Gradients) -> float:
    """In the warm-up all scalars train, so the norm is over all gradients of the selective groups."""
    if limit is None:
        return 1.0
    norm = math.sqrt(sum(float(torch.linalg.vector_norm(grad, dtype=torch.float64)) ** 2 for grad in given.grads))
    return min(1.0, limit / (norm + CLIP_EPS))


def _update_with(
    optimizer: SelectiveOptimizer, params: list[Tensor], group: dict[str, object], grads: list[Tensor] | None
) -> None:
    """The dense update with other gradients than the parameters', which keep theirs (C8)."""
    own = [param.grad for param in params]
    try:
        for param, grad in zip(params, own if grads is None else grads, strict=True):
            param.grad = grad
        optimizer._update_dense(params, group)
    finally:
        for param, grad in zip(params, own, strict=True):
            param.grad = grad


def _select_changes(optimizer: SelectiveOptimizer, table: Table, selection: Selection) -> None:
    backend, budget = optimizer._settings.backend, optimizer.budget
    assert budget is not None
    wanted: int | list[int] = budget
    if optimizer._settings.scope == "tensor":
        wanted = optimizer._divided(budget, table, selection)
    running = scan(table, selection.index, wanted, Score(family="given"), backend=backend)
    changed = [i for i, param in enumerate(table.params) if "original" in optimizer.state.get(param, {})]
    for i in changed:
        param = table.params[i]
        running.add([i], [difference(optimizer.state[param]["original"], param.detach())])
    for i in changed:
        param = table.params[i]
        param.detach().copy_(optimizer.state[param]["original"])
        del optimizer.state[param]
    new = running.finalize()
    selection.insert(new, running.fetch(), backend=backend)
    selection.threshold = lowest(running, new, wanted)


def repeat(optimizer: SelectiveOptimizer, table: Table, selection: Selection, given: Gradients) -> bool:
    """A step of the strategy "repeat": the best scalars of all, those of earlier steps included, are this step's set.

    torch's dense update sees the gradients with zeros outside the set; only the set's scalars are written.

    Returns:
        False, and nothing is changed, if a gradient is not finite.
    """
    _refuse_float16(table, "strategy 'repeat'")
    settings, budget = optimizer._settings, optimizer.budget
    on_cpu = all(device.type == "cpu" for device in table.devices)
    backend = settings.backend if on_cpu else "reference"  # other kernels may not know of bad gradients at once
    assert budget is not None
    if selection.step % settings.select_every == 0:
        nothing = SparseIndex.empty(len(table), device=table.device)
        eligible, unused = optimizer._eligible(table), torch.empty(0, device=table.device, dtype=torch.float32)
        found = find(table, nothing, budget, settings.score, given, eligible, unused, backend)
        if found is None:
            return False
        selection.replace(found.new, found.fetched)
        selection.threshold = found.threshold
    index = selection.index
    values = torch.empty(index.count, device=table.device, dtype=torch.float32)
    if not gather_grads(table, index, given.tensors, given.grads, values, backend=backend):
        return False
    clip = optimizer._clip_factor(table, index, given.tensors, values)
    entries = {id(param): index.of(i).long().to(param.device) for i, param in enumerate(table.params)}
    for group in optimizer._groups(selective=True):
        params = [param for param in group["params"] if param.grad is not None]
        if params:
            _masked_update(optimizer, params, group, [entries[id(param)] for param in params], clip)
    selection.count_updates(given.tensors, keep_missed=False)
    selection.step += 1
    return True


def _masked_update(
    optimizer: SelectiveOptimizer,
    params: list[Tensor],
    group: dict[str, object],
    entries: list[Tensor],
    clip: float | Tensor,
) -> None:
    before = [param.detach().clone() for param in params]
    masked = [torch.zeros_like(param) for param in params]
    for param, grad, offsets in zip(params, masked, entries, strict=True):
        assert param.grad is not None
        grad.view(-1)[offsets] = param.grad.reshape(-1)[offsets] * clip
    _update_with(optimizer, params, group, masked)
    for param, old, offsets in zip(params, before, entries, strict=True):
        old.view(-1)[offsets] = param.detach().view(-1)[offsets]
        param.detach().copy_(old)
