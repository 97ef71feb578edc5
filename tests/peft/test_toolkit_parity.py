"""Side by side with the authors' toolkit, `selective-optimizers` 0.4, AdamW "id3".

Where it does what the paper says, both select the same scalars and get the same values. Each difference has a test of
its own, which shows what either of them does.
"""

import pytest
import torch
from harness import make_params, set_grads
from selective_optimizers.wrap import get_selective_optimizer
from selective_peft import D3, SelectiveAdamW
from torch.nn import Parameter

from selective_kernels.testing import TOLERANCES

SHAPES = [(67, 61), (5, 7), (294,), (1,), (2, 3, 5)]
SCALARS = 4447
STEPS = 10
Toolkit = get_selective_optimizer(torch.optim.AdamW, "id3")


def pair(budget, total_steps, make=lambda: make_params(SHAPES), **options):
    """The toolkit's optimizer and ours over two copies of the same parameters: (opt, params) twice."""
    score = {"exp": 2.0, "eps": 1.0}
    theirs, ours = make(), make()
    toolkit = Toolkit(theirs, lr=1e-2, budget=budget, max_steps=total_steps, verify=False, **score, **options)
    mine = SelectiveAdamW(ours, lr=1e-2, budget=budget, total_steps=total_steps, score=D3(**score), **options)
    return (toolkit, theirs), (mine, ours)


def normal_grads(params, seed):
    """Gradients without zeros; over a few thousand scalars no two scores are equal."""
    generator = torch.Generator().manual_seed(2000 + seed)
    return [torch.randn(param.shape, generator=generator) for param in params]


def chosen_by_toolkit(opt):
    """Flat offsets per tensor."""
    return [mask.reshape(-1).nonzero().reshape(-1) for group in opt.param_groups for mask in group["chosen_masks"]]


def chosen_by_us(opt, params):
    return [opt.selected_indices(param) for param in params]


def count(chosen):
    return sum(len(each) for each in chosen)


def both_step(pairs, grads):
    for opt, params in pairs:
        set_grads(params, grads)
        opt.step()


def test_same_selections_and_values():
    """C4, C5, C6: a budget that the steps divide, distinct scores, no zero gradients: step after step the same."""
    (toolkit, theirs), (mine, ours) = pairs = pair(budget=40 * STEPS, total_steps=STEPS)
    before = [param.detach().clone() for param in ours]
    for step in range(STEPS):
        both_step(pairs, normal_grads(ours, step))
        expected = chosen_by_toolkit(toolkit)
        assert count(expected) == 40 * (step + 1)
        for actual, wanted in zip(chosen_by_us(mine, ours), expected, strict=True):
            assert torch.equal(actual, wanted)
    for actual, wanted, old in zip(ours, theirs, before, strict=True):
        torch.testing.assert_close(actual, wanted, **TOLERANCES[torch.float32])
        assert torch.equal(actual == old, wanted == old)


def test_difference_schedule_remainder():
    """C5: the toolkit's step counter never moves, so that every step takes the share that is rounded up."""
    budget = 40 * STEPS + 3
    (toolkit, _), (mine, ours) = pairs = pair(budget, STEPS)
    for step in range(STEPS):
        both_step(pairs, normal_grads(ours, step))
    assert toolkit.global_step == 0
    assert count(chosen_by_toolkit(toolkit)) == 41 * STEPS > budget
    assert mine.num_selected == budget


def test_difference_after_the_last_step():
    """C5: the toolkit goes on selecting after `max_steps`; here the budget is final."""
    (toolkit, _), (mine, ours) = pairs = pair(40 * STEPS, STEPS)
    for step in range(2 * STEPS):
        both_step(pairs, normal_grads(ours, step))
    assert count(chosen_by_toolkit(toolkit)) == 2 * 40 * STEPS
    assert mine.num_selected == 40 * STEPS


def test_difference_fewer_scalars_than_steps():
    """C5: a budget below the number of steps is an assertion there, and an ordinary run here."""
    (toolkit, theirs), (mine, ours) = pair(budget=STEPS - 3, total_steps=STEPS)
    set_grads(theirs, normal_grads(theirs, 0))
    with pytest.raises(AssertionError, match="base_unmask should be non-zero"):
        toolkit.step()
    for step in range(STEPS):
        set_grads(ours, normal_grads(ours, step))
        mine.step()
    assert mine.num_selected == STEPS - 3


def test_difference_ties():
    """C4: the toolkit drops the first places of a tensor that has too many, also those with higher scores."""
    grad = torch.tensor([9.0, 5.0, 5.0, 5.0])
    (toolkit, theirs), (mine, ours) = pairs = pair(2, 1, lambda: [Parameter(torch.zeros(4))])
    both_step(pairs, [grad])
    assert chosen_by_toolkit(toolkit)[0].tolist() == [2, 3]  # the best one, 9.0, is not among them
    assert chosen_by_us(mine, ours)[0].tolist() == [0, 1]
    assert theirs[0][0].item() == 0.0 != ours[0][0].item()


def test_difference_ties_across_tensors():
    """C4: once its count is full the toolkit looks at no further tensor, however high the scores there."""
    grads = [torch.tensor([5.0, 5.0, 5.0]), torch.tensor([9.0])]
    (toolkit, _), (mine, ours) = pairs = pair(2, 1, lambda: [Parameter(torch.zeros(3)), Parameter(torch.zeros(1))])
    both_step(pairs, grads)
    assert [each.tolist() for each in chosen_by_toolkit(toolkit)] == [[1, 2], []]
    assert [each.tolist() for each in chosen_by_us(mine, ours)] == [[0], [0]]


def test_difference_zero_gradients():
    """C3: scalars without any gradient take budget there; here they wait until they have one."""
    (toolkit, _), (mine, ours) = pairs = pair(20, 4, lambda: [Parameter(torch.ones(50))])
    grad = torch.zeros(50)
    grad[10] = 1.0
    both_step(pairs, [grad])
    assert count(chosen_by_toolkit(toolkit)) == 5
    assert chosen_by_us(mine, ours)[0].tolist() == [10]
    both_step(pairs, [torch.linspace(1.0, 2.0, 50)])
    assert mine.num_selected == 10  # the deficit is made up


def test_difference_weight_decay(capsys):
    """C6, C7: the toolkit sets weight decay to zero, since its dense AdamW would move frozen scalars; ours applies it.

    torch's AdamW on masked gradients, which is what the toolkit calls, shows what it avoids.
    """
    (toolkit, theirs), (mine, ours) = pairs = pair(40 * STEPS, STEPS, weight_decay=0.1)
    assert "forcefully setting to 0.0" in capsys.readouterr().out
    masked = make_params(SHAPES)
    dense = torch.optim.AdamW(masked, lr=1e-2, weight_decay=0.1)
    before = [param.detach().clone() for param in ours]
    for step in range(STEPS):
        both_step(pairs, normal_grads(ours, step))
        masks = [torch.zeros(param.numel()) for param in masked]
        for mask, places in zip(masks, chosen_by_us(mine, ours), strict=True):
            mask[places] = 1.0
        grads = normal_grads(masked, step)
        set_grads(masked, [grad * mask.view(grad.shape) for grad, mask in zip(grads, masks, strict=True)])
        dense.step()
    assert toolkit.param_groups[0]["weight_decay"] == 0.0
    differs = 0
    for i, places in enumerate(chosen_by_us(mine, ours)):
        frozen = torch.ones(ours[i].numel(), dtype=torch.bool)
        frozen[places] = False
        now, old, decayed = (each.detach().reshape(-1) for each in (ours[i], before[i], masked[i]))
        assert torch.equal(now[frozen], old[frozen])
        assert not bool((decayed[frozen] == old[frozen]).any())
        differs += int((now[places] != theirs[i].detach().reshape(-1)[places]).sum())
    assert differs > 0.9 * mine.num_selected


def test_difference_gradients_are_left_alone():
    """C8: the toolkit writes zeros into the gradients."""
    (_, theirs), (_, ours) = pairs = pair(40 * STEPS, STEPS)
    grads = normal_grads(ours, 0)
    both_step(pairs, grads)
    assert all(torch.equal(param.grad, grad) for param, grad in zip(ours, grads, strict=True))
    assert sum(int((param.grad == 0).sum()) for param in theirs) == SCALARS - 40


def test_difference_parameters_without_a_gradient():
    """C8: a part of the model that this loss does not reach is an AttributeError there."""
    (toolkit, theirs), (mine, ours) = pair(40 * STEPS, STEPS)
    grads = [None, *normal_grads(ours, 0)[1:]]
    set_grads(theirs, grads)
    with pytest.raises(AttributeError):
        toolkit.step()
    set_grads(ours, grads)
    mine.step()
    assert mine.num_selected == 40
    assert len(mine.selected_indices(ours[0])) == 0


def test_difference_scores_of_16_bit_parameters():
    """C2: the toolkit scores in bfloat16, where many scores are equal; here float32 tells them apart."""

    def make():
        return [Parameter(torch.zeros(4, dtype=torch.bfloat16))]

    (toolkit, theirs), (mine, ours) = pairs = pair(1, 1, make)
    for params in (theirs, ours):
        params[0].data[:] = torch.tensor([0.5, 0.5, 0.49609375, 0.5], dtype=torch.bfloat16)
    # |g| / (|theta| + 1)^2 is 0.6667 and 0.6702; one unit of bfloat16 there is 0.0039.
    both_step(pairs, [torch.tensor([1.5, 1.5, 1.5, 1.5], dtype=torch.bfloat16)])
    assert chosen_by_us(mine, ours)[0].tolist() == [2]
    assert chosen_by_toolkit(toolkit)[0].tolist() != [2]


def test_difference_size_of_the_state():
    """C10: the toolkit's state is two dense moments and a dense mask; so is its checkpoint."""

    def size(tree):
        if isinstance(tree, torch.Tensor):
            return tree.numel() * tree.element_size()
        values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
        return sum(size(value) for value in values)

    (toolkit, _), (mine, ours) = pairs = pair(4 * STEPS, STEPS)
    for step in range(STEPS):
        both_step(pairs, normal_grads(ours, step))
    assert size(toolkit.state_dict()) >= 9 * SCALARS
    assert size(mine.state_dict()) <= 24 * mine.num_selected + 32 * len(ours) + 8 * STEPS
