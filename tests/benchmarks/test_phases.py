"""A step's parts: they add up to the whole, and a period counts as often as it comes."""

import pytest
import torch
from tinyruns import BERT, CPU, one_thread  # noqa: F401

from benchmarks import learning, phases
from benchmarks.phases import Phases, rounds_of, typical


def steps(*rows):
    return [Phases(*row) for row in rows]


def test_a_step_is_the_sum_of_its_parts():
    step = Phases(1.0, 2.0, 0.25, 0.5)
    assert (step.whole, step.optimizer) == (3.75, 0.75)


def test_each_part_counts_with_its_median():
    """The first step has a slow forward, the last one a slow update; neither moves the typical step."""
    taken = steps((9, 2, 0.5, 0.1), (1, 2, 0.5, 0.1), (1, 2, 0.5, 0.1), (1, 2, 0.5, 7))
    assert typical(taken[:3], [False] * 3, 1) == Phases(1, 2, 0.5, 0.1)
    assert typical(taken[1:], [False] * 3, 1) == Phases(1, 2, 0.5, 0.1)
    assert rounds_of(taken, [False] * 4, 1).seconds == (11.6, 3.6, 3.6, 10.5)


def test_one_step_of_a_period_selects():
    """(8 + 3 x 0) / 4 of selection and (2 + 3 x 1) / 4 of update, in the typical step and in each round."""
    taken = steps((1, 2, 0, 1), (1, 2, 8, 2), (3, 2, 0, 1))
    selects = [False, True, False]
    assert typical(taken, selects, 4) == Phases(1, 2, 2.0, 1.25)
    assert rounds_of(taken, selects, 4).seconds == (6.25, 6.25, 8.25)


@pytest.mark.parametrize("selects", [[True, True], [False, False]])
def test_a_period_needs_both_kinds_of_step(selects):
    with pytest.raises(ValueError, match="expected some that select and some that do not"):
        typical(steps((1, 1, 1, 1), (1, 1, 1, 1)), selects, 15)


@pytest.mark.parametrize("method", ["AdamW fused", "ours", "dense masking", "selective-optimizers"])
def test_parts_are_measured_where_they_are(method, monkeypatch):
    """By a clock that moves on by one with each look: four parts, none of them lost, selection only where there is."""
    pupil = learning.ready(method, BERT.model(torch.float32, CPU), BERT, BERT.batches(3), CPU, 1)
    ticks = iter(range(10_000))
    monkeypatch.setattr(phases.time, "perf_counter", lambda: float(next(ticks)))
    trainee = pupil.trainee
    begin = next(ticks)
    trainee.prepare(0)
    trainee.step()
    end = next(ticks)
    (step,) = trainee.steps
    assert step.whole == end - begin - 2  # all looks between the first and the last one of the step
    assert (step.forward, step.backward) == (1.0, 2.0)
    assert (step.selection > 0) == (method != "AdamW fused") == trainee.selects[0]
    assert step.update > 0


def test_batches_are_taken_in_turn():
    batches = BERT.batches(3)
    trainee = learning.ready("AdamW fused", BERT.model(torch.float32, CPU), BERT, batches, CPU, 1).trainee
    for number in range(4):
        trainee.prepare(number)
        assert trainee._batch is batches[number % 3]


def test_gradients_are_gone_after_a_step():
    trainee = learning.ready("ours", BERT.model(torch.float32, CPU), BERT, BERT.batches(2), CPU, 1).trainee
    trainee.step()
    assert all(param.grad is None for param in trainee.fitted.model.parameters())


def test_rarely_selecting_is_timed_at_both_kinds_of_step():
    """Number 13, the warm-up, and 14 do not select, 15 does and 16 does not."""
    pupil = learning.ready("ours, select_every=15", BERT.model(torch.float32, CPU), BERT, BERT.batches(2), CPU, 1)
    optimizer = pupil.trainee.fitted.optimizers[0]
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4] * len(optimizer.param_groups)
    for _ in range(4):
        pupil.trainee.step()
    assert pupil.trainee.selects == [False, False, True, False]


def test_waiting_moves_nothing():
    pupil = learning.ready("ours", BERT.model(torch.float32, CPU), BERT, BERT.batches(2), CPU, 1)
    pupil.trainee.fitted.model(**BERT.batches(1)[0]).loss.backward()
    before = [param.detach().clone() for param in pupil.trainee.fitted.params]
    learning._wait(pupil.trainee.fitted, 3)
    assert all(map(torch.equal, before, pupil.trainee.fitted.params))
