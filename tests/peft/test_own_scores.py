"""Scores of the user's own: exact top-k over them, on both backends, whatever they return."""

import pytest
import torch
from harness import SHAPES, make_grads, make_params, set_grads
from method_oracle import ByGiven
from methodruns import ADAMW, BUDGET, LENGTH, NAMES, named, run_both
from oracle import Oracle
from selective_peft import D3, PerTensor, SelectiveAdamW, selective

from selective_kernels.testing import assert_bitwise_equal


def d3_by_hand(name, param, grad):
    """ID3's score as a user would write it: the same bits as the kernels' own."""
    return grad.float().abs() / (param.float().abs() + 1.0) ** 2


class WithoutGradients:
    """An object with everything a score may have; scores of float64 are rounded to float32."""

    needs_grad = False

    def __init__(self, scores):
        self.scores, self.seen = dict(zip(NAMES, scores, strict=True)), []

    def __call__(self, name, param, grad):
        self.seen.append((name, grad is None))
        return self.scores[name].double()

    def describe(self):
        return "scores of the test"


def test_a_callable_equals_the_kernels_score(dtype, backend):
    params = make_params(dtype=dtype)
    opt = SelectiveAdamW(named(params), **ADAMW, **LENGTH, score=d3_by_hand, backend=backend)
    run_both(opt, Oracle([{"params": params, **ADAMW}], "AdamW", **LENGTH), params, dtype, gap=5)


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_an_object_without_gradients_scores_tensors_that_have_none(backend, scope):
    params = make_params()
    scores = [torch.rand(shape) for shape in SHAPES]
    score = WithoutGradients(scores)
    opt = SelectiveAdamW(named(params), **ADAMW, **LENGTH, score=score, scope=scope, backend=backend)
    if scope == "global":
        run_both(
            opt, ByGiven([{"params": params, **ADAMW}], "AdamW", scores=scores, **LENGTH), params, torch.float32, 3
        )
        assert ("layer.3.weight", True) in score.seen
        assert ("layer.0.weight", False) in score.seen
    else:
        set_grads(params, make_grads(params, 0))
        opt.step()
        for param, values in zip(params, scores, strict=True):
            chosen = opt.selected_indices(param)
            assert set(chosen.tolist()) == set(values.reshape(-1).topk(len(chosen)).indices.tolist())
    assert opt._described()["score"] == "scores of the test"


def test_plateaus_go_by_position(backend):
    """Equal scores everywhere: the first entries of the first tensors, not any."""
    params = make_params()
    opt = SelectiveAdamW(
        params, **LENGTH, lr=0.01, score=lambda name, param, grad: torch.ones_like(grad), backend=backend
    )
    set_grads(params, make_grads(params, 0))
    opt.step()
    assert [opt.selected_indices(param).tolist() for param in params[:4]] == [list(range(35)), [], [0], list(range(14))]


def test_it_works_with_any_optimizer(backend):
    params, twins = make_params(), make_params()
    own = selective(torch.optim.RMSprop, named(params), **LENGTH, lr=0.01, score=d3_by_hand, backend=backend)
    kernels = selective(torch.optim.RMSprop, named(twins), **LENGTH, lr=0.01, score=D3(2.0, 1.0), backend=backend)
    for step in range(4):
        for opt, those in ((own, params), (kernels, twins)):
            set_grads(those, make_grads(those, step))
            opt.step()
    for param, twin in zip(params, twins, strict=True):
        assert_bitwise_equal(param.detach(), twin.detach())


def test_bad_gradients_skip_the_step_before_anything_is_scored(backend):
    seen = []

    def score(name, param, grad):
        seen.append(name)
        return grad.abs()

    params = make_params()
    opt = SelectiveAdamW(named(params), **LENGTH, score=score, backend=backend)
    set_grads(params, make_grads(params, 0))
    params[5].grad[0, 0, 0, 0] = float("nan")
    with pytest.warns(UserWarning, match="step 0: skipped"):
        opt.step()
    assert not seen
    assert opt.num_selected == 0


BAD = [
    (lambda name, param, grad: None, TypeError, r"score: expected a tensor of scores for 'layer\.0.*', got NoneType"),
    (lambda name, param, grad: grad[0], ValueError, r"score: expected scores of shape \(5, 7\) .*'layer\.0.*\(7,\)"),
]  # fmt: skip


@pytest.mark.parametrize(("score", "error", "message"), BAD)
def test_what_is_no_score_is_refused_before_anything_changes(score, error, message, backend):
    params = make_params()
    opt = SelectiveAdamW(named(params), **LENGTH, score=score, backend=backend)
    set_grads(params, make_grads(params, 0))
    before = [param.detach().clone() for param in params]
    with pytest.raises(error, match=message):
        opt.step()
    for param, value in zip(params, before, strict=True):
        assert_bitwise_equal(param.detach(), value)
    assert opt.num_selected == 0


def test_scores_cannot_change_the_model():
    """The score gets a view without gradient tracking; what it returns is not kept."""
    params = make_params()
    kept = []

    def score(name, param, grad):
        assert not param.requires_grad
        kept.append(grad.abs())
        return kept[-1]

    opt = SelectiveAdamW(named(params), **LENGTH, lr=0.01, score=score)
    set_grads(params, make_grads(params, 0))
    opt.step()
    for values in kept:
        values.fill_(1e30)
    set_grads(params, make_grads(params, 1))
    opt.step()
    assert all(float(param.detach().abs().max()) < 10 for param in params if param.numel())


def test_scores_by_name_need_no_gradient_and_stay_exact(backend):
    """Values far apart and ties, in another order than the parameters."""
    params = make_params()
    scores = {
        name: torch.full(shape, 2.0 ** (i % 3)) for i, (name, shape) in enumerate(zip(NAMES, SHAPES, strict=True))
    }
    opt = SelectiveAdamW(
        named(params), budget=BUDGET, total_steps=1, score=PerTensor(dict(reversed(scores.items()))), backend=backend
    )
    set_grads(params, [None] * 7 + [torch.ones(294)])
    opt.step()
    # Sizes are 35, 0, 1, 4087, 30, 18, 1, 294: tensors 2 and 5 score 4 and go first, then 4 and 7 with 2.
    assert [len(opt.selected_indices(param)) for param in params] == [0, 0, 1, 0, 30, 18, 0, 251]
    assert opt.selected_indices(params[7]).tolist() == list(range(251))
