"""Bad arguments (C1, C14): each message names the argument, what was expected and what was given; nothing changes."""

from __future__ import annotations

import math
import re

import pytest
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
    merge_,
    scan,
    scatter_,
    sgd_,
    square_sum,
    swap_,
    topk,
)
from selective_kernels.checks import check_grad
from selective_kernels.testing import assert_bitwise_equal, raw_bits

D3 = Score(2.0, 1.0)
BACKENDS = ["cpu", "reference"]

# In all messages below "..." stands for anything.
PARAMS = [  # what the kernels cannot address (C1)
    ([1.0, 2.0], TypeError, "expected a tensor, got list"),
    (torch.zeros(3, dtype=torch.float64), TypeError, "expected dtype float32, bfloat16 or float16, got torch.float64"),
    (torch.zeros(3, dtype=torch.complex64), TypeError, "expected dtype float32, ..., got torch.complex64"),
    (torch.zeros(3, dtype=torch.int32), TypeError, "expected dtype float32, ..., got torch.int32"),
    (torch.zeros(3, 4).to_sparse(), ValueError, "expected a dense (strided) tensor, got layout torch.sparse_coo"),
    (torch.zeros(3, 4).t(), ValueError, "expected a contiguous tensor, got shape (4, 3) with strides (1, 4); ..."),
    (torch.zeros(1).expand(5), ValueError, "expected a contiguous tensor, ...; replace its data by .contiguous()"),
    (torch.empty(2**31, device="meta"), ValueError, "expected fewer than 2^31 entries ..., got 2147483648"),
]

GRADS = [  # for a float32 parameter of shape (2, 3)
    (torch.zeros(2, 3).bfloat16(), TypeError, "expected a gradient of dtype torch.float32 ..., got torch.bfloat16"),
    (torch.zeros(2, 3).to_sparse(), ValueError, "expected a dense (strided) gradient, got layout torch.sparse_coo"),
    (torch.zeros(3, 3), ValueError, "expected a gradient of shape (2, 3), got (3, 3)"),
    (torch.zeros(3, 2), ValueError, "expected a gradient of shape (2, 3), got (3, 2)"),
    (torch.zeros(2, 3, device="meta"), ValueError, "expected a gradient on cpu, got meta"),
]


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


INDICES = [  # for tensors of 6 and 4 entries
    (SparseIndex.from_lists([[0]]), "expected an index over 2 tensors, got one over 1"),
    (SparseIndex.from_lists([[6], []]), "expected offsets in [0, 6), got 6 to 6 for tensor 0"),
    (SparseIndex.from_lists([[1], [0, 4]]), "expected offsets in [0, 4), got 0 to 4 for tensor 1"),
    (SparseIndex(int32(-1), [0, 1, 1]), "expected offsets in [0, 6), got -1 to -1 for tensor 0"),
    (SparseIndex(torch.tensor([1]), [0, 1, 1]), "expected 1 int32 offsets, got 1 of torch.int64"),
    (SparseIndex(int32(0), [0, 1, 2]), "expected 2 int32 offsets, got 1 of torch.int32"),
    (SparseIndex(int32(0, 0, 0), [0, 2, 1]), "expected ascending starts from 0, got [0, 2, 1]"),
    (SparseIndex(int32(0, 0, 0), [1, 1, 2]), "expected ascending starts from 0, got [1, 1, 2]"),
    (SparseIndex.empty(2, 3, "meta"), "expected offsets on cpu as the tensors, got meta"),
]

VECTOR = "a contiguous vector of 3 items or more, got shape"
ENTRIES = [  # per-entry arrays for an index of three entries, from the dtype that they should have
    (lambda dtype: torch.zeros(2, dtype=dtype), ValueError, f"{VECTOR} (2,)"),
    (lambda dtype: torch.zeros(3, 1, dtype=dtype), ValueError, f"{VECTOR} (3, 1)"),
    (lambda dtype: torch.zeros(6, dtype=dtype)[::2], ValueError, f"{VECTOR} (3,)"),
    (lambda dtype: torch.zeros(3).double(), TypeError, "dtype torch...32, got torch.float64"),
    (lambda dtype: torch.zeros(3, dtype=dtype, device="meta"), ValueError, "a vector on cpu, got one on meta"),
]

UPDATES = [  # (change of the update, lengths of the moments, error, message) for an index of three entries
    ({"master": torch.zeros(2)}, (3, 3), ValueError, "master: expected a contiguous vector of 3 items ..."),
    ({"master": torch.zeros(3).half()}, (3, 3), TypeError, "master: expected dtype torch.float32, got torch.float16"),
    ({}, (2, 3), ValueError, "exp_avg: expected a contiguous vector of 3 items or more, got shape (2,)"),
    ({}, (3, 2), ValueError, "exp_avg_sq: expected a contiguous vector of 3 items or more, got shape (2,)"),
    (
        {"ages": Ages(int32(0, 0), {}, 0)},
        (3, 3),
        ValueError,
        "ages.chosen: expected a contiguous vector ...",
    ),
    ({"ages": Ages(torch.zeros(3), {}, 0)}, (3, 3), TypeError, "ages.chosen: expected dtype torch.int32, got ..."),
    # Else memory behind the groups, the steps or the tensors is read.
    ({"group_of": [0, 7]}, (3, 3), ValueError, "group_of: expected 2 numbers below 1, got [0, 7]"),
    ({"group_of": [0]}, (3, 3), ValueError, "group_of: expected 2 numbers below 1, got [0]"),
    ({"steps": [1]}, (3, 3), ValueError, "steps: expected 2 numbers, ..., got [1]"),
    ({"steps": [0, 1]}, (3, 3), ValueError, "steps: expected 2 numbers, at least 1 for ..., got [0, 1]"),
    ({"tensors": [1, 0]}, (3, 3), ValueError, "tensors: expected ascending distinct numbers below 2, got [1, 0]"),
    ({"tensors": [0, 2]}, (3, 3), ValueError, "tensors: expected ascending distinct numbers below 2, got [0, 2]"),
]

MERGES = [  # (room of the index, second array, its new values, error, message), three entries and three new ones
    (5, torch.zeros(6), torch.zeros(3), ValueError, "index.offsets: expected a contiguous vector of 6 items ...(5,)"),
    (6, torch.zeros(5), torch.zeros(3), ValueError, "arrays[1][0]: expected a contiguous vector of 6 items ...(5,)"),
    (6, torch.zeros(6), torch.zeros(2), ValueError, "arrays[1][1]: expected a contiguous vector of 3 items ...(2,)"),
    (6, torch.zeros(6), int32(0, 0, 0), TypeError, "arrays[1][1]: expected dtype torch.float32, got torch.int32"),
    (6, torch.zeros(6).double(), None, TypeError, "arrays[1][0]: expected 4-byte items, got torch.float64"),
]


def raises(error, message):
    return pytest.raises(error, match="^" + ".*".join(map(re.escape, message.split("..."))) + "$")


def two_tensors():
    return [torch.arange(6.0).view(2, 3), torch.arange(4.0)]


def assert_unchanged(tensors):
    for tensor, before in zip(tensors, two_tensors(), strict=True):
        assert_bitwise_equal(tensor, before)


def three_entries():
    return SparseIndex.from_lists([[1, 5], [2]])


def update_of(table, index, grads, **changes):
    values = {"tensors": [0, 1], "master": None, "group_of": [0, 0], "steps": [1, 1], **changes}
    return Update(Table(table), index, grads=grads, **values)


def call_adam(table, index, grads, lengths=(9, 9), **changes):
    update = update_of(table, index, grads, **changes)
    adam_(update, *map(torch.zeros, lengths), [AdamGroup(1.0, 0.9, 0.9, 1.0)])


# Operation: the name of its per-entry argument, that one's dtype, a call with tensors, an index and that argument.
OPERATIONS = {
    "gather": ("out", torch.float32, lambda t, i, a: gather(t, i, out=a)),
    "gather_bits": (None, None, lambda t, i, a: gather_bits(t, i)),
    "gather_grads": ("out", torch.float32, lambda t, i, a: gather_grads(Table(t), i, [0], [t[0]], a)),
    "scatter_": ("values", torch.float32, scatter_),
    "swap_": ("bits", torch.int32, swap_),
    "scan": ("grads_out", torch.float32, lambda t, i, a: scan(t, i, 1, D3).add([0, 1], t, a)),
    "adam_": ("grads", torch.float32, call_adam),
    "sgd_": ("grads", torch.float32, lambda t, i, a: sgd_(update_of(t, i, a), None, [SgdGroup(1.0)])),
    "square_sum": ("grads", torch.float32, lambda t, i, a: square_sum(Table(t), i, [0, 1], a)),
}
# gather_grads and square_sum take a table and an index that belong together, from a caller that has checked them.
CHECK_INDEX = list(OPERATIONS)
CHECK_ENTRIES = [name for name, (argument, _, _) in OPERATIONS.items() if argument is not None]


@pytest.mark.parametrize(("bad", "error", "message"), PARAMS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_c1_parameters(name, bad, error, message):
    _, dtype, call = OPERATIONS[name]
    with raises(error, "params[1]: " + message):
        call([torch.zeros(6), bad], three_entries(), torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize(("bad", "error", "message"), GRADS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_c14_gradients(backend, bad, error, message):
    """C1, C14: also when a later gradient of several is the bad one, nothing is written."""
    tensors, message = [torch.zeros(4), torch.zeros(2, 3)], "params[1]: " + message
    index, out = SparseIndex.from_lists([[1], [2]]), torch.full((2,), 5.0)
    running = scan(tensors, index, 1, D3, backend=backend)
    with raises(error, message):
        running.add([0, 1], [torch.full((4,), math.nan), bad], out)
    with raises(error, message):
        gather_grads(Table(tensors), index, [0, 1], [torch.ones(4), bad], out, backend=backend)
    with raises(error, message):
        topk(tensors, [None, bad], 1, D3, index, backend=backend)
    assert out.tolist() == [5.0, 5.0]
    assert (running.nonfinite, running.finalize().count) == (False, 0)


def test_c1_gradients_that_are_not_contiguous_are_copied():
    grad = torch.arange(6.0).view(3, 2).t()
    checked = check_grad(grad, torch.zeros(2, 3), "grad")
    assert checked.is_contiguous()
    assert_bitwise_equal(checked, grad.contiguous())
    assert check_grad(checked, torch.zeros(2, 3), "grad") is checked


@pytest.mark.parametrize("grads", [[torch.ones(2, 3)], [torch.ones(2, 3), torch.ones(4), torch.ones(4)]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_c14_as_many_gradients_as_tensors(backend, grads):
    """C14: one that is missing from the list would count as None in silence."""
    with raises(ValueError, f"grads: expected 2 ..., got {len(grads)}"):
        topk(two_tensors(), grads, 1, D3, backend=backend)
    with raises(ValueError, f"grads: expected 2 ..., got {len(grads)}"):
        scan(two_tensors(), three_entries(), 1, D3, backend=backend).add([0, 1], grads)


@pytest.mark.parametrize("order", [[0, 0], [1, 0], [0, 2], [-1, 0]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_c14_tensors_are_numbered_in_ascending_order(backend, order):
    """C14: a tensor that is read twice would be selected twice."""
    tensors = [torch.ones(4), torch.ones(4)]
    with raises(ValueError, "tensors: expected ..., got ..."):
        scan(tensors, SparseIndex.empty(2), 1, D3, backend=backend).add(order, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_c14_a_tensor_is_scanned_once(backend):
    tensors = [torch.ones(4), torch.ones(4), torch.ones(4)]
    running = scan(tensors, SparseIndex.empty(3), 9, D3, backend=backend)
    running.add([1], tensors[1:2])
    with raises(ValueError, "tensors: expected each tensor once per scan, got [1] again"):
        running.add([0, 1], tensors[:2])
    running.add([0], tensors[:1])
    assert running.finalize().starts == [0, 4, 8, 8]


@pytest.mark.parametrize(("bad", "message"), INDICES)
@pytest.mark.parametrize("name", CHECK_INDEX)
def test_c14_index(name, bad, message):
    _, dtype, call = OPERATIONS[name]
    tensors = two_tensors()
    with raises(ValueError, "index: " + message):
        call(tensors, bad, torch.ones(9, dtype=dtype))
    assert_unchanged(tensors)


@pytest.mark.parametrize(("make", "error", "message"), ENTRIES)
@pytest.mark.parametrize("name", CHECK_ENTRIES)
def test_c14_per_entry_arrays(name, make, error, message):
    argument, dtype, call = OPERATIONS[name]
    tensors = two_tensors()
    with raises(error, f"{argument}: expected {message}"):
        call(tensors, three_entries(), make(dtype))
    assert_unchanged(tensors)


@pytest.mark.parametrize(("changes", "lengths", "error", "message"), UPDATES)
def test_c14_updates(changes, lengths, error, message):
    tensors = two_tensors()
    with raises(error, message):
        call_adam(tensors, three_entries(), torch.ones(3), lengths, **changes)
    assert_unchanged(tensors)


def test_c14_updates_without_what_they_need():
    tensors, half = two_tensors(), [tensor.bfloat16() for tensor in two_tensors()]
    update = update_of(tensors, three_entries(), torch.ones(3))
    with raises(ValueError, "momentum_buffer: expected a tensor for groups with momentum, got None"):
        sgd_(update, None, [SgdGroup(1.0), SgdGroup(1.0, 0.9)])
    with raises(TypeError, "momentum_buffer: expected dtype torch.float32, got torch.float64"):
        sgd_(update, torch.zeros(3).double(), [SgdGroup(1.0, 0.9)])
    with raises(ValueError, "master: expected fp32 copies for 16-bit parameters, got None"):
        sgd_(update_of(half, three_entries(), torch.ones(3)), None, [SgdGroup(1.0)])
    assert_unchanged(tensors)
    assert_unchanged([tensor.float() for tensor in half])


def test_c14_k():
    with raises(ValueError, "k: expected an integer >= 0, got -1"):
        scan(two_tensors(), three_entries(), -1, D3)


@pytest.mark.parametrize(("room", "array", "fresh", "error", "message"), MERGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_c14_merge_without_room_changes_nothing(backend, room, array, fresh, error, message):
    """C14: the first array would fit; neither it nor the index is touched."""
    index, new, first = three_entries(), SparseIndex.from_lists([[0, 2], [3]]), torch.arange(6.0)
    index.offsets = torch.cat([index.offsets, int32(*[-9] * (room - 3))])
    before = [raw_bits(tensor).clone() for tensor in (index.offsets, first, array)]
    with raises(error, message):
        merge_(index, new, [(first, torch.ones(3)), (array, fresh)], backend=backend)
    after = [raw_bits(tensor) for tensor in (index.offsets, first, array)]
    assert all(map(torch.equal, before, after))
    assert index.starts == [0, 2, 3]


def test_c14_merge_of_other_tensors():
    with raises(ValueError, "new: expected an index over 2 tensors, got one over 1"):
        merge_(three_entries(), SparseIndex.from_lists([[0]]), [])
