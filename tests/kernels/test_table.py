"""Tables of tensors: what they refuse, and that they notice when their tensors are replaced (C1)."""

from __future__ import annotations

import pytest
import torch

from selective_kernels import Score, SparseIndex, Table, gather, gather_bits, scan


def test_c1_names_of_parameters_are_used():
    with pytest.raises(TypeError, match=r"^head.bias: expected dtype "):
        Table([torch.zeros(2), torch.zeros(2, dtype=torch.float64)], ["body.weight", "head.bias"])


@pytest.mark.parametrize("change", [lambda t: torch.zeros(7), torch.Tensor.bfloat16, lambda t: torch.zeros(3, 2).t()])
def test_c1_a_table_notices_that_its_tensors_changed(change):
    """`.data` can be replaced behind a table's back; the lengths that go with its address would be wrong."""
    table = Table([torch.nn.Parameter(torch.arange(6.0).view(2, 3)), torch.nn.Parameter(torch.arange(4.0))])
    index = SparseIndex.from_lists([[0, 5], [3]])
    gather(table, index)
    table.params[0].data = change(table.params[0].data)
    for call in (gather, gather_bits, lambda t, i: scan(t, i, 1, Score(2.0, 1.0))):
        with pytest.raises(RuntimeError, match=r"^params: expected sizes, dtypes, layouts and device .*, got others$"):
            call(table, index)
