"""The lowest score of the last selection, as `threshold` tells it and checkpoints keep it."""

import pytest
import torch
from harness import make_grads, make_params, set_grads
from selective_peft import D3, SelectiveAdamW, selective

from selective_kernels.score import score_ref

STEPS = 4
SHAPES = [(5, 7), (67, 61), (), (29,)]


def magnitude(name, param, grad):
    """A score of one's own."""
    return grad.abs() * param.abs()


def run(steps, backend="cpu", start=None, **options):
    """An optimizer after some steps; `start` (state, parameters) to go on from."""
    params = make_params(SHAPES)
    options = {"budget": 80, "total_steps": STEPS, **options}
    opt = SelectiveAdamW([(f"{i}.bias", param) for i, param in enumerate(params)], lr=1e-2, backend=backend, **options)
    if start is not None:
        opt.load_state_dict(start)
    found = []
    for step in steps:
        set_grads(params, make_grads(params, step))
        before = [param.detach().clone() for param in params]
        opt.step()
        found.append((opt.threshold, before))
    return opt, params, found


def lowest_by_hand(opt, params, step, before, score):
    """The least score among the entries that came in this step."""
    chosen = opt.state_dict()["state"]["selective"]
    starts, new = chosen["starts"], chosen["arrays"]["chosen"] == step
    keys = []
    for i, (param, old, grad) in enumerate(zip(params, before, make_grads(params, step), strict=True)):
        entries = slice(int(starts[i]), int(starts[i + 1]))
        offsets = opt.selected_indices(param)[new[entries]]
        keys.append(score(grad, old).reshape(-1)[offsets])
    return float(torch.cat(keys).min())


@pytest.mark.parametrize(("options", "score"), [
    ({}, lambda grad, param: score_ref(grad, param, D3().kernel_score())),
    ({"method": "gradient"}, lambda grad, param: grad.abs()),
    ({"method": "snip"}, lambda grad, param: (grad * param).abs()),
    ({"score": magnitude}, lambda grad, param: (grad * param).abs()),
])  # fmt: skip
def test_it_is_the_lowest_score_that_was_selected(options, score, backend):
    for last in range(1 if options.get("method") == "snip" else STEPS):
        opt, params, found = run(range(last + 1), backend, **options)
        threshold, before = found[-1]
        assert threshold == lowest_by_hand(opt, params, last, before, score)
        assert threshold > 0.0


def test_it_stays_until_the_next_selection():
    opt, _, found = run(range(STEPS + 2), select_every=2)
    told = [threshold for threshold, _ in found]
    assert told[0] == told[1] != told[2] == told[3] == told[4] == told[5] == opt.threshold
    assert run([])[0].threshold is None


def test_a_skipped_step_leaves_it_alone():
    opt, params, found = run(range(2))
    set_grads(params, make_grads(params, 2))
    params[1].grad[0, 0] = torch.nan
    with pytest.warns(UserWarning, match="skipped"):
        opt.step()
    assert opt.threshold == found[-1][0]


def test_a_step_that_is_taken_back_takes_it_back(deferring):
    """Scores that need no gradients are selected by before anybody knows whether these are finite."""

    def fixed(name, param, grad):
        return torch.arange(1.0, param.numel() + 1.0).reshape(param.shape)

    fixed.needs_grad = False
    opt, params, found = run(range(2), score=fixed)
    assert found[0][0] > found[1][0]
    set_grads(params, make_grads(params, 2))
    params[1].grad.fill_(torch.nan)
    opt.step()
    with pytest.warns(UserWarning, match="skipped"):
        assert opt.threshold == found[1][0]


@pytest.mark.parametrize(
    "options", [{"scope": "tensor"}, {"method": "pafi"}, {"method": "random"}, {"method": "bitfit", "budget": None}]
)
def test_there_is_none_where_scores_only_order_or_tensors_have_their_own(options):
    opt, _, _ = run(range(2), **options)
    assert opt.num_selected > 0
    assert opt.threshold is None


def test_a_fresh_set_in_each_step_has_one():
    """Of all scalars, those of earlier steps included."""
    with pytest.warns(UserWarning, match="baseline"):
        _, params, found = run(range(3), "auto", method="d3-repeat")
    keys = torch.cat([
        score_ref(grad, old, D3().kernel_score()).reshape(-1)
        for grad, old in zip(make_grads(params, 2), found[2][1], strict=True)
    ])  # fmt: skip
    assert found[2][0] == float(keys.sort(descending=True).values[80 - 1])


def test_a_dense_warm_up_leaves_the_least_change():
    opt, _, found = run(range(3), method="diff", method_kwargs={"warmup_steps": 2})
    assert found[0][0] is None
    assert found[1][0] == found[2][0] > 0.0
    assert opt.num_selected == 80


def test_torch_optimizers_have_one():
    params = make_params(SHAPES)
    opt = selective(torch.optim.RMSprop, params, budget=80, total_steps=STEPS)
    set_grads(params, make_grads(params, 0))
    opt.step()
    assert opt.threshold == run(range(1))[2][0][0]


def test_checkpoints_keep_it():
    opt, _, found = run(range(2), select_every=2)
    resumed, _, _ = run([], start=opt.state_dict(), select_every=2)
    assert resumed.threshold == found[-1][0]
    state = opt.state_dict()
    state["state"]["selective"]["threshold"] = "low"
    with pytest.raises(ValueError, match="state_dict: threshold: expected a number or None, got 'low'"):
        resumed.load_state_dict(state)
