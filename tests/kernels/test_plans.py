"""What is kept of plans: all that come again soon, and never more than so many."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from selective_kernels import Table
from selective_kernels.plans import MOST_SUBSETS, Plans


class Made:
    """A plan that can be told from others."""


@pytest.fixture
def table():
    return Table([torch.zeros(3) for _ in range(6)])


def test_the_same_tensors_have_one_plan(table):
    plans = Plans(lambda table, tensors: Made())
    whole, one, some = (plans.of(table, tensors) for tensors in (range(6), [2], [1, 4]))
    assert len({id(each) for each in (whole, one, some)}) == 3
    assert plans.of(table, list(range(6))) is whole
    assert plans.of(table, (2,)) is one
    assert plans.of(table, [1, 4]) is some
    assert plans.of(Table([torch.zeros(3) for _ in range(6)]), range(6)) is not whole


def test_of_sets_that_change_in_every_step_few_are_kept(table):
    """C10: experts without tokens have no gradient, other ones each time."""
    alive = weakref.WeakSet()

    def make(table, tensors):
        made = Made()
        alive.add(made)
        return made

    plans = Plans(make)
    whole = plans.of(table, range(6))
    ones = [plans.of(table, [i]) for i in range(6)]
    subsets = [[i for i in range(6) if number >> i & 1] for number in range(1, 63)]
    several = [each for each in subsets if len(each) > 1]
    often = plans.of(table, several[0])
    for each in several[1:]:
        plans.of(table, each)
        assert plans.of(table, several[0]) is often
    gc.collect()
    assert len(alive) == MOST_SUBSETS + 1 + len(ones)
    assert plans.of(table, range(6)) is whole
    assert [plans.of(table, [i]) for i in range(6)] == ones
