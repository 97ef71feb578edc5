"""The gate of the step suite lets right results pass, and nothing else; also where scores are equal."""

import pytest
import torch

from benchmarks import certificate
from benchmarks.certificate import certify, check_selection, check_values, take_steps
from benchmarks.gate import Mismatch
from benchmarks.rivals import SCORE, at_step
from benchmarks.shapes import MODELS, random_tensors
from selective_kernels.score import score_ref

BUDGET, TOTAL, DONE = 700, 20, 10
TARGETS = [BUDGET * (DONE + step) // TOTAL for step in range(3)]


def problem(dtype=torch.float32, plateaus=False):
    base = random_tensors(MODELS["tiny"], 0.04, dtype, 0)
    grads = [random_tensors(MODELS["tiny"], 1e-3, dtype, seed) for seed in (1, 2)]
    if plateaus:  # few values: the selection ends among equal scores
        base = [param.mul(30).round().div(30) for param in base]
        grads = [[grad.mul(1500).round().div(1500) for grad in each] for each in grads]
    return base, grads


def make(params):
    return at_step(params, BUDGET, TOTAL, DONE)


@pytest.mark.parametrize("plateaus", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_kernels_pass(dtype, plateaus):
    certify(*problem(dtype, plateaus), make, TARGETS)


def test_a_wrong_number_does_not_pass():
    with pytest.raises(Mismatch, match="step 1: expected 386 selected scalars, got 385"):
        certify(*problem(), make, [350, 386, 420])


@pytest.mark.parametrize("plateaus", [False, True])
def test_only_the_right_selection_passes(plateaus):
    """The k best by a stable sort pass; a scalar exchanged for the next one in that order does not, in any tensor."""
    base, (grads, _) = problem(plateaus=plateaus)
    scores = torch.cat([score_ref(g, p, SCORE.kernel_score()).view(-1) for p, g in zip(base, grads, strict=True)])
    order = scores.sort(descending=True, stable=True).indices
    sizes = [param.numel() for param in base]
    nothing = [torch.empty(0, dtype=torch.int64)] * len(base)

    def check(positions, before=nothing):
        mask = torch.zeros(len(scores), dtype=torch.bool)
        mask[positions] = True
        check_selection(base, grads, before, [part.nonzero().view(-1) for part in mask.split(sizes)])

    for k in (1, 2, 37, 350):
        check(order[:k])
        for wrong in (torch.cat([order[: k - 1], order[k : k + 1]]), order[1 : k + 1]):
            with pytest.raises(Mismatch, match="left out for lesser ones"):
                check(wrong)
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order[50:90]] = True
    before = [part.nonzero().view(-1) for part in mask.split(sizes)]
    check(order[:120], before)  # what was selected before does not count, however poor its score
    with pytest.raises(Mismatch, match="left out for lesser ones"):
        check(torch.cat([order[:119], order[120:121]]), before)


def test_a_score_of_zero_must_not_be_selected():
    base, grads = [torch.ones(4)], [torch.tensor([1.0, 0.0, 0.0, 0.0])]
    with pytest.raises(Mismatch, match="not above 0"):
        check_selection(base, grads, [torch.tensor([], dtype=torch.int64)], [torch.tensor([0, 1])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_values_do_not_pass(dtype):
    base, grads = problem(dtype)
    run = take_steps(base, grads, make, 3)
    check_values(base, grads, run)
    chosen = run.selected[-1][0]
    run.params[0].view(-1)[chosen[5]] *= 1.02
    with pytest.raises(Mismatch, match="tensor 0: Tensor-likes are not close"):
        check_values(base, grads, run)
    free = next(i for i in range(640) if i not in chosen.tolist())
    run.params[0].view(-1)[free] *= -1
    with pytest.raises(Mismatch, match="tensor 0: 1 scalars changed without being selected"):
        check_values(base, grads, run)


def test_an_entry_that_came_late_has_fewer_gradients_in_its_moments():
    """With the first step's selection in the place of the later ones' the values are others."""
    base, grads = problem()
    run = take_steps(base, grads, make, 3)
    early = certificate.Run([run.selected[-1]] * 3, run.params)
    with pytest.raises(Mismatch, match="Tensor-likes are not close"):
        check_values(base, grads, early)
