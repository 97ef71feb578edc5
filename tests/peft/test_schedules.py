"""C5: how many scalars are selected after each step."""

import math

import pytest
import selective_peft.search
import torch
from harness import make_params
from oracle import quota, target
from selective_peft import D3, SelectiveAdamW
from selective_peft.schedules import SCHEDULES, tabulate
from torch.nn import Parameter

NAMES = ["uniform", "linear", "cosine", "front"]
# (T, B): one step; B < T; B = T; remainders; T not a multiple of 10 (front); products beyond 2^53 and 2^63.
SIZES = [(1, 1), (1, 7), (2, 1), (7, 3), (7, 7), (10, 101), (23, 1000), (1000, 320_000), (999, 2**31), (3000, 2**53)]


def falling(step, total_steps, budget):
    return [3, 2, 5][step]


def make(n=40, **options):
    """An optimizer over one parameter of n scalars that all score alike."""
    param = Parameter(torch.ones(n))
    return SelectiveAdamW([param], score=D3(exp=0.0), **options), param


def step(opt, param, selectable=None):
    """One step with gradient 1 in the first `selectable` entries (all of them by default), 0 elsewhere."""
    grad = torch.zeros_like(param)
    grad[: len(param) if selectable is None else selectable] = 1.0
    param.grad = grad
    opt.step()
    return opt.num_selected


@pytest.fixture
def scans(monkeypatch):
    """Counts the scans that the optimizers begin."""
    begun = []
    real = selective_peft.search.scan

    def counting(*args, **kwargs):
        begun.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(selective_peft.search, "scan", counting)
    return begun


def test_all_schedules_are_tested():
    assert sorted(SCHEDULES) == sorted(NAMES)


@pytest.mark.parametrize(("total_steps", "budget"), SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_table_is_the_exact_floor(name, total_steps, budget):
    """C5 against exact fractions."""
    expected = [target(name, t, total_steps, budget) for t in range(total_steps)]
    # A double holds B F(x) of the cosine only to 53 bits.
    slack = 2 if name == "cosine" and budget >= 2**50 else 0
    got = tabulate(name, total_steps, budget)
    assert got.dtype == torch.int64
    assert all(abs(a - b) <= slack for a, b in zip(got.tolist(), expected, strict=True))
    assert int(got[-1]) == budget


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("total_steps", "budget"), [(10**6, 10**6), (200_000, 320_000), (10**5, 1)])
def test_long_tables_never_fall(name, total_steps, budget):
    """C5: rounding does not make a plateau fall."""
    table = tabulate(name, total_steps, budget)
    assert bool((table.diff() >= 0).all())
    assert 0 <= int(table[0]) <= int(table[-1]) == budget


def test_uniform_spreads_the_remainder():
    """C5: floor(10 (t + 1) / 4) by hand."""
    assert tabulate("uniform", 4, 10).tolist() == [2, 5, 7, 10]
    assert tabulate("linear", 4, 16).tolist() == [7, 12, 15, 16]
    assert tabulate("front", 20, 10).tolist() == [5, 10] + [10] * 18
    assert tabulate("cosine", 2, 100).tolist() == [81, 100]  # 100 (1/2 + 1/pi) = 81.83


@pytest.mark.parametrize(("total_steps", "budget"), [(1, 9), (3, 2), (7, 31), (12, 40)])
@pytest.mark.parametrize("select_every", [1, 2, 5, 50])
@pytest.mark.parametrize("name", [*NAMES, "static"])
def test_selected_after_each_step(name, select_every, total_steps, budget):
    """C5 through the optimizer, with select_every, and nothing more after T steps."""
    static = name == "static"
    options = {"strategy": "static"} if static else {"schedule": name}
    opt, param = make(budget=budget, total_steps=total_steps, select_every=select_every, **options)
    selected = 0
    for t in range(total_steps + 3):
        wanted = quota(
            "uniform" if static else name, t, total_steps, budget, selected, select_every=select_every, static=static
        )
        selected += wanted
        assert step(opt, param) == selected
    assert selected == budget


def test_a_deficit_is_made_up_later():
    """C5: a step with too few selectable scalars selects what there is; the next one takes the rest."""
    opt, param = make(budget=20, total_steps=4)
    counts = [step(opt, param, selectable) for selectable in (2, 0, 40, 40)]
    assert counts == [2, 2, 15, 20]


def test_a_static_deficit_is_made_up_later():
    """C5: static has c_t = B for all t, not only for the first step."""
    opt, param = make(budget=20, total_steps=3, strategy="static")
    assert [step(opt, param, selectable) for selectable in (5, 5, 40, 40)] == [5, 5, 20, 20]


def test_a_deficit_waits_for_the_next_selecting_step():
    """C5: with select_every=2 only steps 0, 2, 4 select."""
    opt, param = make(budget=20, total_steps=5, select_every=2)
    assert [step(opt, param, selectable) for selectable in (1, 40, 40, 40, 40)] == [1, 1, 16, 16, 20]


def test_after_the_last_step_a_deficit_stays():
    """C5: after T steps nothing more is selected, and training goes on."""
    opt, param = make(budget=20, total_steps=2)
    assert [step(opt, param, selectable) for selectable in (3, 3, 40)] == [3, 3, 3]
    before = param.detach().clone()
    assert step(opt, param) == 3
    assert torch.equal((param.detach() != before).nonzero().reshape(-1), opt.selected_indices(param))


def test_a_callable_schedule_gets_step_total_and_budget():
    """C5: it gives the cumulative target; the last one is B all the same."""
    calls = []

    def half(step, total_steps, budget):
        calls.append((step, total_steps, budget))
        return (0, 3, 3, 4)[step]

    opt, param = make(budget=10, total_steps=4, schedule=half)
    assert [step(opt, param) for _ in range(5)] == [0, 3, 3, 10, 10]
    assert set(calls) == {(t, 4, 10) for t in range(4)}


@pytest.mark.parametrize(
    ("schedule", "given"),
    [(falling, "2 after 3"), (lambda t, T, B: B + 1, "6 after 0"), (lambda t, T, B: t - 1, "-1 after 0")],
    ids=["falls", "passes the budget", "negative"],
)
def test_a_bad_callable_is_refused_before_anything_changes(schedule, given):
    """C5, C14: the message says what was given."""
    param = Parameter(torch.ones(9))
    param.grad = torch.ones(9)

    def build_and_step():
        SelectiveAdamW([param], budget=5, total_steps=3, schedule=schedule).step()

    with pytest.raises(ValueError, match=f"schedule: expected .*never fall.*{given}"):
        build_and_step()
    assert torch.equal(param.detach(), torch.ones(9))


def test_a_step_with_nothing_to_select_does_not_scan(scans):
    """C5: B < T leaves most steps without a scan, select_every too, and so does the time after T."""
    opt, param = make(budget=2, total_steps=8)
    for t in range(12):
        step(opt, param)
        assert len(scans) == (t >= 3) + (t >= 7)
    scans.clear()
    opt, param = make(budget=40, total_steps=6, select_every=3)
    for _ in range(9):
        step(opt, param)
    assert len(scans) == 2


def test_a_float_budget_is_a_floor_over_selective_scalars_with_gradients():
    """C5: frozen parameters and dense groups do not count."""
    trained, frozen, head = make_params([(3, 37), (50,), (7,)])
    frozen.requires_grad_(False)
    groups = [{"params": [trained, frozen]}, {"params": [head], "selective": False}]
    opt = SelectiveAdamW(groups, budget=0.1, total_steps=1, score=D3(exp=0.0))
    trained.grad, head.grad = torch.ones(3, 37), torch.ones(7)
    opt.step()
    assert opt.num_selected == math.floor(0.1 * 111) == 11


@pytest.mark.parametrize("share", [0.001, 0.25, 0.3, 0.7, 0.999])
def test_float_budgets(share):
    """C5: floor(share x scalars)."""
    opt, param = make(n=1000, budget=share, total_steps=1)
    assert step(opt, param) == math.floor(share * 1000)


def test_a_float_budget_is_fixed_at_the_first_step():
    """C5: what is frozen before the first step counts, what is frozen after it does not."""
    a, b = Parameter(torch.ones(10)), Parameter(torch.ones(10))
    opt = SelectiveAdamW([a, b], budget=0.5, total_steps=2, score=D3(exp=0.0))
    b.requires_grad_(False)
    a.grad = torch.ones(10)
    opt.step()
    assert opt.num_selected == 2  # floor(5 / 2): the budget is half of a
    b.requires_grad_(True)
    a.grad = torch.ones(10)
    opt.step()
    assert opt.num_selected == 5
