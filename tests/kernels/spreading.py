"""What the tests of tables over several devices compare: all that each operation gives and leaves behind."""

from __future__ import annotations

import numpy as np
import torch

from selective_kernels import (
    AdamGroup,
    Ages,
    Score,
    SgdGroup,
    SparseIndex,
    Table,
    Update,
    adam_,
    gather,
    gather_bits,
    gather_grads,
    scan,
    scatter_,
    sgd_,
    square_sum,
    swap_,
)
from selective_kernels.testing import assert_bitwise_equal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Empty tensors, single entries, and one of more than a tile.
SHAPES = [(5, 7), (0,), (1,), (67, 61), (2, 3, 5), (), (294,), (40,)]
SCORES = {
    "d3, 0": Score(0.0, 1.0),
    "d3, 1/2": Score(0.5, 1.0),
    "d3, 1": Score(1.0, 2.0**-30),
    "d3, 2": Score(2.0, 1.0),
    "product": Score(family="product"),
    "magnitude": Score(family="magnitude"),
    "random": Score(family="random", seed=2**64 - 3),
    "given": Score(family="given"),
}
UNTOUCHED = 7.0
WITH_GRADS = [0, 2, 3, 6, 7]  # tensors that have a gradient when only some have one
AGED = {0: [0, 2], 6: [1], 7: [0, 1, 2]}  # steps that tensors have missed


def values(shape, dtype, rng, style):
    count = int(np.prod(shape))
    if style == "ties":  # every score is one of a few
        flat = rng.choice(np.float32([-1.0, -0.5, 0.0, 0.5]), count)
    else:
        flat = rng.standard_normal(count, np.float32)
    return torch.from_numpy(flat).to(dtype).view(shape)


def problem(seed, dtypes, style, share):
    """Parameters, gradients, and an index over a share of their entries."""
    rng = np.random.default_rng(seed)
    params = [values(shape, dtypes[i % len(dtypes)], rng, style) for i, shape in enumerate(SHAPES)]
    grads = [values(param.shape, param.dtype, rng, style) for param in params]
    index = SparseIndex.from_lists([torch.from_numpy(np.flatnonzero(rng.random(p.numel()) < share)) for p in params])
    return params, grads, index


def scanned(params, grads, index, k, score, backend, missing=(), at_once=True):
    """All that a scan gives: by one call of `add`, or by several that cross the places."""
    table = Table(params)
    running = scan(table, index, k, score, backend=backend)
    tensors = [i for i in range(len(params)) if i not in missing or not score.needs_grad]
    sources = {i: grads[i].float() if score.family == "given" else grads[i] for i in tensors}
    room = torch.full((index.count,), UNTOUCHED, device=table.device)
    out = room if score.reads_gradients else None
    for chosen in [tensors] if at_once else [tensors[1::3], tensors[::3], tensors[2::3]]:
        running.add(chosen, [sources[i] for i in chosen] if score.needs_grad else None, out)
    nonfinite = running.nonfinite
    new = running.finalize()
    fetched = running.fetch()
    found = [new.valid, torch.tensor(new.starts), torch.tensor([running.threshold, nonfinite]), room]
    found += [each for each in fetched if each is not None]
    if score.reads_gradients:
        again = torch.full((index.count,), UNTOUCHED, device=table.device)
        running.gather(index, again)
        found.append(again)
    return table.spread, found


def read_and_written(params, grads, index, backend):
    """What the operations on single entries give and leave behind."""
    table = Table(params)
    chosen = [grads[i] for i in WITH_GRADS]
    out, flagged, room = (torch.full((index.count + 3,), UNTOUCHED, device=table.device) for _ in range(3))
    flag = torch.zeros(1, dtype=torch.int32, device=table.device)
    finite = gather_grads(table, index, WITH_GRADS, chosen, out, backend=backend)
    gather_grads(table, index, WITH_GRADS, chosen, flagged, flag=flag, backend=backend)
    gather(table, index, out=room, backend=backend)
    found = [out, flagged, flag, torch.tensor([finite]), room, gather_bits(table, index, backend=backend)]
    swapped = torch.arange(index.count, dtype=torch.int32, device=table.device)
    swap_(table, index, swapped, backend=backend)
    found += [swapped, *(param.clone() for param in params)]
    scatter_(table, index, torch.linspace(-1.0, 1.0, index.count).to(table.device), backend=backend)
    return table.spread, [*found, *(param.clone() for param in params)]


def updated(params, index, backend, *, kind, per_entry=False, skip=0):
    """What two updates leave behind: parameters, state, master copies, and a norm."""
    table, count = Table(params), index.count
    generator = torch.Generator().manual_seed(0)
    grads, first, second = (torch.randn(count, generator=generator).to(table.device) for _ in range(3))
    second = second.abs()
    master = gather(table, index, backend=backend)
    master += 1e-4 * (torch.arange(count) % 3).to(table.device)  # of 16-bit ones some equal their parameter, some not
    chosen = (torch.arange(count) % 3).int().to(table.device)
    for now in (3, 4):
        ages = Ages(chosen, AGED, now) if per_entry else None
        update = Update(
            table,
            index,
            WITH_GRADS,
            grads,
            None if table.float32_only else master,
            [i % 2 for i in range(len(table))],
            [1 + (i + now) % 3 for i in range(len(table))],
            ages,
            torch.tensor(0.5).to(table.device),
            torch.tensor([skip], dtype=torch.int32).to(table.device),
        )
        if kind == "adam":
            groups = [AdamGroup(0.1, 0.9, 0.99, 1e-8, 0.1), AdamGroup(0.2, 0.8, 0.9, 1e-6, 0.0, 0.3)]
            adam_(update, first, second, groups, backend=backend)
        else:
            groups = [SgdGroup(0.1, 0.9, 0.1, 0.1), SgdGroup(0.2, 0.8, 0.0, 0.0, nesterov=True)]
            sgd_(update, first, groups, backend=backend)
    norm = square_sum(table, index, WITH_GRADS, grads, backend=backend).reshape(1)
    return table.spread, [first, second, master, norm, *(param.clone() for param in params)]


def assert_same(actual, expected):
    """Raises AssertionError unless two lists of tensors have the same bits, wherever they are."""
    assert len(actual) == len(expected)
    for i, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert_bitwise_equal(mine.cpu(), theirs.cpu(), f"result {i}")
