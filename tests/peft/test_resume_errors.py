"""C11, C14: a state dict of another run or a damaged one is refused by name, before anything is overwritten."""

import copy

import pytest
import torch
from harness import assert_same_picture, make_params, picture, train
from selective_peft import D3, SelectiveAdam, SelectiveAdamW, SelectiveSGD
from torch.nn import Parameter

SHAPES = [(20, 30), (300,), (7,), (40,)]
OPTIONS = {"budget": 100, "total_steps": 6, "bias_correction": "per_entry"}
DONE = 4  # steps before saving: amid the selecting ones
# Two items that hold each other's lengths: the message may name either of them.
PARTNERS = {"offsets": "starts", "missed_tensors": "missed_steps"}
SELECTIVE_ITEMS = [
    "version", "optimizer", "budget", "total_steps", "score", "strategy", "schedule_name", "select_every",
    "scope", "bias_correction", "names", "sizes", "dtypes", "step", "skipped_steps", "schedule", "tensor_steps",
    "missed_tensors", "missed_steps", "starts", "offsets", "arrays", "warmup_done", "threshold", "extra",
]  # fmt: skip
VECTORS = ["schedule", "tensor_steps", "missed_tensors", "missed_steps", "starts", "offsets"]
ARRAYS = ["exp_avg", "exp_avg_sq", "original", "chosen", "master"]
GROUP_ITEMS = ["params", "param_names", "lr", "betas", "eps", "weight_decay", "selective"]


def make(shapes=SHAPES, dtype=torch.bfloat16, kind=SelectiveAdamW, prefix="layer", names=True, **options):
    """An optimizer over named parameters, the last of them in a dense group."""
    params = make_params(shapes, dtype)
    named = [(f"{prefix}.{i}", param) for i, param in enumerate(params)] if names else params
    groups = [{"params": named[:-1]}, {"params": named[-1:], "selective": False}]
    return kind(groups, lr=1e-2, **{**OPTIONS, **options}), params


def trained(**changes):
    """An optimizer after DONE steps; in the last one the second tensor had no gradient."""
    opt, params = make(**changes)
    train(opt, params, 0, DONE - 1)
    params[1].grad = None
    opt.step()
    return opt, params


def assert_refused(state, match, kind=ValueError):
    """The state is refused by an optimizer amid its own run, which goes on as if nothing had been."""
    opt, params = trained()
    train(opt, params, DONE, DONE + 1)
    before = picture(opt, params)
    hyper = copy.deepcopy([{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups])
    with pytest.raises(kind, match=match):
        opt.load_state_dict(state)
    assert_same_picture(picture(opt, params), before)
    assert [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups] == hyper
    train(opt, params, DONE + 1, DONE + 3)
    other, other_params = trained()
    train(other, other_params, DONE, DONE + 3)
    assert_same_picture(picture(opt, params), picture(other, other_params))


@pytest.fixture
def state():
    """A state dict that this module's optimizer accepts (so each refusal below is due to the change made)."""
    opt, _ = trained()
    again, _ = make()
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    return copy.deepcopy(opt.state_dict())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"budget": 99}, r"budget: expected 100, got 99"),
        ({"budget": 0.1}, r"budget: expected 100, got 0\.1"),
        ({"total_steps": 7}, r"total_steps: expected 6, got 7"),
        ({"score": D3(exp=1.0)}, r"score: expected .*exp=2\.0.*, got .*exp=1\.0"),
        ({"score": D3(eps=0.5)}, r"score: expected .*eps=1\.0.*, got .*eps=0\.5"),
        ({"strategy": "static"}, r"strategy: expected 'increment', got 'static'"),
        ({"schedule": "linear"}, r"schedule_name: expected 'uniform', got 'linear'"),
        ({"schedule": lambda step, total_steps, budget: budget}, r"schedule_name: expected 'uniform', got 'custom'"),
        ({"select_every": 2}, r"select_every: expected 1, got 2"),
        ({"bias_correction": "global"}, r"bias_correction: expected 'per_entry', got 'global'"),
        ({"kind": SelectiveAdam}, r"optimizer: expected 'SelectiveAdamW', got 'SelectiveAdam'"),
        ({"kind": SelectiveSGD}, r"optimizer: expected 'SelectiveAdamW', got 'SelectiveSGD'"),
        ({"prefix": "block"}, r"names: expected \['layer\.0'.*\], got \['block\.0'"),
        ({"shapes": [(20, 30), (301,), (7,), (40,)]}, r"sizes: expected \[600, 300, 7\], got \[600, 301, 7\]"),
        ({"shapes": [(20, 30), (300,), (40,)]}, r"names: expected .*, got"),
        ({"shapes": [(20, 30), (300,), (40,)], "names": False}, r"sizes: expected \[600, 300, 7\], got \[600, 300\]"),
        ({"dtype": torch.float16}, r"dtypes: expected .*bfloat16.*, got .*float16"),
    ],
    ids=str,
)
def test_a_state_of_another_run_is_refused(changes, match):
    """C11: the message names what differs, with both values."""
    assert_refused(trained(**changes)[0].state_dict(), match)


def test_another_callable_schedule_is_refused():
    """C11: callables have no names that could be compared, but their tables have."""
    opts = [make(schedule=schedule)[0] for schedule in (lambda t, T, B: B, lambda t, T, B: B // 2)]
    for opt in opts:
        for param in opt.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        opt.step()
    with pytest.raises(ValueError, match="schedule: expected the targets of this optimizer's schedule"):
        opts[0].load_state_dict(opts[1].state_dict())


def test_a_state_of_torch_is_refused():
    """C11: torch's own AdamW over the same parameters."""
    params = make_params(SHAPES, torch.bfloat16)
    opt = torch.optim.AdamW([{"params": params[:-1]}, {"params": params[-1:]}])
    assert_refused(opt.state_dict(), r"state_dict: .*expected .*selective")
    train(opt, params, 0, 1)
    assert_refused(opt.state_dict(), r"state_dict: .*expected .*selective")


@pytest.mark.parametrize("version", [0, 2, 4, "3", None])
def test_another_version_is_refused(state, version):
    """C11: a later format is not guessed at."""
    state["state"]["selective"]["version"] = version
    assert_refused(state, rf"version: expected 3, got {version!r}")


def test_all_items_are_tested(state):
    """The lists at the top are complete."""
    selective = state["state"]["selective"]
    assert sorted(selective) == sorted(SELECTIVE_ITEMS)
    assert sorted(k for k, v in selective.items() if isinstance(v, torch.Tensor)) == sorted(VECTORS)
    assert sorted(selective["arrays"]) == sorted(ARRAYS)
    assert sorted(state["param_groups"][0]) == sorted(GROUP_ITEMS)
    assert all(len(selective[name]) > 0 for name in VECTORS)


@pytest.mark.parametrize("item", SELECTIVE_ITEMS)
def test_a_missing_item_is_named(state, item):
    """C11: truncated."""
    del state["state"]["selective"][item]
    assert_refused(state, item)


@pytest.mark.parametrize("item", ARRAYS)
def test_a_missing_array_is_named(state, item):
    """C11: truncated."""
    del state["state"]["selective"]["arrays"][item]
    assert_refused(state, item)


@pytest.mark.parametrize("item", ["state", "param_groups"])
def test_a_missing_half_is_named(state, item):
    """C11: truncated at the top."""
    del state[item]
    assert_refused(state, item)


@pytest.mark.parametrize("item", [item for item in GROUP_ITEMS if item != "param_names"])
def test_a_missing_group_option_is_named(state, item):
    """C11: without it a later step would stop half way; names are not needed to go on."""
    del state["param_groups"][0][item]
    assert_refused(state, item)


@pytest.mark.parametrize("item", ["state", *VECTORS, *ARRAYS, "names", "sizes", "dtypes"])
def test_a_shorter_item_is_named(state, item):
    """C11: each tensor and list one item shorter; for "state", the selective part is gone."""
    if item == "state":
        del state["state"]["selective"]
        assert_refused(state, "selective")
        return
    selective = state["state"]["selective"]
    holder = selective["arrays"] if item in ARRAYS else selective
    holder[item] = holder[item][:-1]
    assert_refused(state, f"{item}|{PARTNERS.get(item, item)}")


@pytest.mark.parametrize("item", [*VECTORS, *ARRAYS])
def test_an_item_of_another_dtype_is_named(state, item):
    """C11: what torch's own casting of per-parameter state would have made of it."""
    selective = state["state"]["selective"]
    holder = selective["arrays"] if item in ARRAYS else selective
    holder[item] = holder[item].to(torch.bfloat16)
    assert_refused(state, rf"{item}: expected .*got .*bfloat16")


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("offsets", 600),
        ("offsets", -1),
        ("starts", 1),
        ("missed_tensors", 3),
        ("missed_tensors", -1),
        ("missed_steps", DONE),
        ("missed_steps", -1),
        ("tensor_steps", DONE + 1),
        ("tensor_steps", -1),
    ],
)
def test_a_value_out_of_range_is_named(state, item, value):
    """C11: positions outside their tensor would let the kernels write anywhere."""
    state["state"]["selective"][item][0] = value
    assert_refused(state, item)


@pytest.mark.parametrize("value", [DONE, -1, 2**31 - 1, -(2**31)])
def test_an_entry_chosen_in_another_time_is_refused(state, value):
    """C11: its age, which the kernels look up in a table, would not be in that."""
    state["state"]["selective"]["arrays"]["chosen"][1] = value
    assert_refused(state, rf"chosen: expected numbers in \[0, {DONE}\), got ")


@pytest.mark.parametrize("item", ["step", "skipped_steps"])
@pytest.mark.parametrize("value", [-1, 1.5, None])
def test_a_bad_counter_is_named(state, item, value):
    """C11, C14: expected and given."""
    state["state"]["selective"][item] = value
    assert_refused(state, rf"{item}: expected an integer >= 0, got {value}")


def test_unsorted_offsets_are_refused(state):
    """C1: the kernels rely on the order."""
    offsets = state["state"]["selective"]["offsets"]
    offsets[:2] = offsets[:2].flip(0).clone()
    assert_refused(state, "offsets: expected ascending")


def test_more_entries_than_the_budget_are_refused(state):
    """C5: another budget in disguise."""
    selective = state["state"]["selective"]
    added = 100
    selective["offsets"] = torch.cat([torch.arange(added, dtype=torch.int32), selective["offsets"] + 0])
    assert len(selective["offsets"]) > OPTIONS["budget"]
    selective["starts"][1:] += added
    assert_refused(state, "offsets: expected at most 100")


def test_another_number_of_groups_is_refused(state):
    """C11: torch checks that too, and before anything is overwritten."""
    state["param_groups"].pop()
    assert_refused(state, "param(eter)?.?groups")


def test_groups_with_their_sides_exchanged_are_refused(state):
    """C11, C13: torch takes options from the state; this one decides what the budget is spent on."""
    state["param_groups"][1]["selective"] = True
    assert_refused(state, r"param_groups\[1\]\['selective'\]: expected False, got True")


def test_names_are_compared_only_if_both_have_them(state):
    """C11: a run without names may go on from one with names; sizes and dtypes are still compared."""
    unnamed = [Parameter(param.detach().clone()) for param in make_params(SHAPES, torch.bfloat16)]
    opt = SelectiveAdamW([{"params": unnamed[:-1]}, {"params": unnamed[-1:], "selective": False}], **OPTIONS)
    opt.load_state_dict(state)
    assert torch.equal(opt.state_dict()["state"]["selective"]["offsets"], state["state"]["selective"]["offsets"])


@pytest.mark.parametrize("item", ["step", "exp_avg", "exp_avg_sq"])
def test_a_dense_parameter_without_its_moments_is_named(state, item):
    """C11, C13: truncated; the next step would update the selective half and then stop."""
    del state["state"][3][item]
    assert_refused(state, item)


def test_a_dense_parameter_of_another_size_is_refused():
    """C11, C13: the same body under a head with another number of classes."""
    assert_refused(trained(shapes=[*SHAPES[:-1], (50,)])[0].state_dict(), "40")
