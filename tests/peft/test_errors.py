"""C14: bad input is refused with the argument, what was expected and what was given, before anything is changed."""

import warnings

import pytest
import torch
from harness import KINDS, assert_same_picture, make_grads, make_params, picture, set_grads, train
from selective_peft import D3, SelectiveAdam, SelectiveAdamW, SelectiveSGD
from torch.nn import Parameter

NAN, INF = float("nan"), float("inf")
GOOD = {"budget": 5, "total_steps": 3}
BUDGET = "budget: expected an integer >= 1 .* or a float in .0, 1. .*, got "
# (argument, value, error, message): for all three optimizers.
ARGUMENTS = [
    ("budget", None, TypeError, BUDGET + "None"),
    ("budget", 0, ValueError, BUDGET + "0"),
    ("budget", -3, ValueError, BUDGET + "-3"),
    ("budget", 0.0, ValueError, BUDGET + r"0\.0"),
    ("budget", 1.0, ValueError, BUDGET + r"1\.0"),
    ("budget", -0.5, ValueError, BUDGET + r"-0\.5"),
    ("budget", NAN, ValueError, BUDGET + "nan"),
    ("budget", "5", TypeError, BUDGET + "str"),
    ("budget", True, TypeError, BUDGET + "bool"),
    ("budget", 13, ValueError, "budget: expected 1 to 12 scalars .*, got 13"),
    ("budget", 0.01, ValueError, r"budget: expected 1 to 12 scalars .*, got 0\.01"),
    ("total_steps", 0, ValueError, "total_steps: expected an integer >= 1, got 0"),
    ("total_steps", -1, ValueError, "total_steps: expected an integer >= 1, got -1"),
    ("total_steps", 2.5, ValueError, r"total_steps: expected an integer >= 1, got 2\.5"),
    ("total_steps", None, ValueError, "total_steps: expected an integer >= 1, got None"),
    ("select_every", 0, ValueError, "select_every: expected an integer >= 1, got 0"),
    ("select_every", 1.5, ValueError, r"select_every: expected an integer >= 1, got 1\.5"),
    ("score", "d3", TypeError, "score: expected a score such as D3.*, got 'd3'"),
    ("score", D3, TypeError, "score: expected a score such as D3.*, got <class"),
    ("strategy", "decrement", ValueError, r"strategy: expected one of \['increment', 'repeat', 'static'\], got 'dec"),
    ("scope", "layer", ValueError, r"scope: expected one of \['global', 'tensor'\], got 'layer'"),
    ("method_kwargs", {"exp": 1.0}, ValueError, r"method_kwargs: expected None without a method, got {'exp': 1.0}"),
    ("schedule", "constant", ValueError, r"schedule: expected one of \['cosine', 'front', 'lin.*got 'constant'"),
    ("schedule", 3, TypeError, "schedule: expected a name or a callable, got int"),
    ("bias_correction", "local", ValueError, r"bias_correction: expected one of \['global', 'per.*got 'local'"),
    ("max_grad_norm", 0.0, ValueError, r"max_grad_norm: expected None or a number > 0, got 0\.0"),
    ("max_grad_norm", -1.0, ValueError, r"max_grad_norm: expected None or a number > 0, got -1\.0"),
    ("max_grad_norm", NAN, ValueError, "max_grad_norm: expected None or a number > 0, got nan"),
    ("nonfinite", "ignore", ValueError, r"nonfinite: expected one of \['raise', 'skip'\], got 'ignore'"),
    ("method", "id4", ValueError, "method: expected one of .*, got .id4."),
    ("backend", "gpu", ValueError, r"backend: expected one of \['auto', 'cpu', .*\], got 'gpu'"),
    ("lr", -0.1, ValueError, r"lr: expected a number >= 0, got -0\.1"),
    ("lr", NAN, ValueError, "lr: expected a number >= 0, got nan"),
    ("weight_decay", -1.0, ValueError, r"weight_decay: expected a number >= 0, got -1\.0"),
    ("maximize", True, ValueError, "maximize: expected False .*, got True"),
    ("differentiable", True, ValueError, "differentiable: expected False .*, got True"),
]  # fmt: skip
ADAM_ARGUMENTS = [
    ("betas", (1.0, 0.9), ValueError, r"betas: expected two numbers in \[0, 1\), got \(1\.0, 0\.9\)"),
    ("betas", (0.9, -0.1), ValueError, r"betas: expected two numbers in \[0, 1\), got \(0\.9, -0\.1\)"),
    ("betas", (0.9,), ValueError, r"betas: expected two numbers in \[0, 1\), got \(0\.9,\)"),
    ("eps", -1e-8, ValueError, "eps: expected a number >= 0, got -1e-08"),
    ("amsgrad", True, ValueError, "amsgrad: expected False .*, got True"),
    ("capturable", True, ValueError, "capturable: expected False .*, got True"),
]
SGD_ARGUMENTS = [
    ("momentum", -0.1, ValueError, r"momentum: expected a number >= 0, got -0\.1"),
    ("nesterov", True, ValueError, r"nesterov: expected momentum > 0 and dampening 0, got momentum 0\.0"),
]
CASES = [
    (kind, *case) for kind in sorted(KINDS) for case in ARGUMENTS + (SGD_ARGUMENTS if kind == "SGD" else ADAM_ARGUMENTS)
]
SCORES = [
    ({"eps": 0.0}, "eps: expected a number > 0, got 0.0"),
    ({"eps": -1.0}, "eps: expected a number > 0, got -1.0"),
    ({"eps": NAN}, "eps: expected a number > 0, got nan"),
    ({"eps": INF}, "eps: expected a normal float32.*, got inf"),
    ({"eps": 1e-39}, "eps: expected a normal float32.*, got 1e-39"),  # subnormal in float32
    ({"eps": 1e-30, "exp": 2.0}, "eps: expected eps.exp to be a normal float32, got 1e-30.2.0"),  # 1e-60
    ({"eps": 1e-30, "exp": -2.0}, "eps: expected eps.exp to be a normal float32, got 1e-30.-2.0"),  # 1e60
    ({"exp": INF}, "exp: expected a finite number, got inf"),
    ({"exp": NAN}, "exp: expected a finite number, got nan"),
]


def not_contiguous():
    return Parameter(torch.ones(3, 4).t())


# (parameter, error, message): parameters that no kernel can address.
PARAMS = [
    (lambda: Parameter(torch.ones(12, dtype=torch.float64)), TypeError, "expected dtype float32.*got torch.float64"),
    (lambda: Parameter(torch.ones(12, dtype=torch.complex64)), TypeError, "expected dtype.*torch.complex64"),
    (lambda: Parameter(torch.ones(12, dtype=torch.int32), False), TypeError, "expected dtype.*torch.int32"),
    (lambda: Parameter(torch.eye(4).to_sparse()), ValueError, "expected a dense .strided. tensor, got layout.*sparse"),
    (not_contiguous, ValueError, r"expected a contiguous tensor, got shape \(4, 3\) with strides \(1, 4\).*contiguous"),
    (
        lambda: Parameter(torch.empty(2**31, dtype=torch.float16, device="meta")),
        ValueError, r"expected fewer than 2\^31 entries.*got 2147483648",
    ),
]  # fmt: skip
WAYS = {
    "list": lambda params: list(params),
    "iterator": iter,
    "group with a list": lambda params: [{"params": list(params)}],
    "group with an iterator": lambda params: [{"params": iter(params)}],
    "names": lambda params: [(f"layer.{i}", param) for i, param in enumerate(params)],
    "group with names": lambda params: [{"params": ((f"layer.{i}", param) for i, param in enumerate(params))}],
}


@pytest.mark.parametrize(("kind", "name", "value", "error", "message"), CASES)
def test_a_bad_argument_is_refused(kind, name, value, error, message):
    """C14, for each optimizer."""
    with pytest.raises(error, match=message):
        KINDS[kind]([Parameter(torch.ones(12))], **{**GOOD, name: value})


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("group")])
@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("weight_decay", NAN), ("betas", (2.0, 0.9))])
def test_a_bad_option_of_a_group_is_refused(name, value, way):
    """C14: however the group lists its parameters, as `model.parameters()` gives an iterator."""
    groups = WAYS[way]([Parameter(torch.ones(12))])
    groups[0][name] = value
    with pytest.raises(ValueError, match=f"{name}: expected"):
        SelectiveAdamW(groups, **GOOD)


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("group")])
@pytest.mark.parametrize("value", ["no", 1, None])
def test_selective_must_be_a_bool(value, way):
    """C13, C14: anything else would quietly put the group on one side."""
    groups = WAYS[way]([Parameter(torch.ones(12))])
    groups[0]["selective"] = value
    with pytest.raises(TypeError, match=f"selective: expected True or False, got {value!r}"):
        SelectiveAdamW([*WAYS[way]([Parameter(torch.ones(12))]), *groups], **GOOD)


@pytest.mark.parametrize(("options", "message"), SCORES)
def test_a_bad_score_is_refused(options, message):
    """C2, C14: eps > 0, and its power a normal float32."""
    with pytest.raises(ValueError, match=message):
        D3(**options)


@pytest.mark.parametrize(
    ("make", "error", "message"), PARAMS, ids=["f64", "complex", "int", "sparse", "strides", "big"]
)
@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_parameter_that_cannot_be_addressed_is_refused(make, error, message, way):
    """C1, C14: at construction, by name if there is one."""
    params = [Parameter(torch.ones(12)), make()]
    name = r"layer\.1" if "names" in way else r"\[1\]"
    with pytest.raises(error, match=f"{name}.*{message}"):
        SelectiveAdamW(WAYS[way](params), **GOOD)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_parameter_twice_is_refused(way):
    """C1, C14: in one group."""
    param = Parameter(torch.ones(12))
    with pytest.raises(ValueError, match=r"params: expected each parameter once, got .* twice"):
        SelectiveAdamW(WAYS[way]([param, Parameter(torch.ones(3)), param]), **GOOD)


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ([Parameter(torch.ones(4))], TypeError, "param_group: expected a dict, got list"),
        ({"lr": 1.0}, ValueError, r"param_group: expected the item 'params', got \['lr'\]"),
        ({"params": {Parameter(torch.ones(4))}}, TypeError, "params: expected an ordered iterable.*, got set"),
        ({"params": 3}, TypeError, "params: expected an ordered iterable.*, got int"),
    ],
    ids=["list", "nothing", "set", "number"],
)
def test_a_group_that_is_none_is_refused(group, error, message):
    """C14, C1: a set has no order, so that the same program would select other entries."""
    opt = SelectiveAdamW([Parameter(torch.ones(12))], **GOOD)
    with pytest.raises(error, match=message):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("group")])
@pytest.mark.parametrize("is_selective", [True, False])
def test_a_parameter_in_two_groups_is_refused(is_selective, way):
    """C1, C13, C14: also in a dense and a selective one."""
    param = Parameter(torch.ones(12))
    second = {**WAYS[way]([param])[0], "selective": is_selective}
    with pytest.raises(ValueError, match="param"):
        SelectiveAdamW([*WAYS[way]([param]), second], **GOOD)


@pytest.mark.parametrize(
    "bad",
    [
        {"params": [Parameter(torch.ones(4, dtype=torch.float64))]}, {"params": [Parameter(torch.ones(4))], "lr": -1.0},
        {"params": [not_contiguous()]}, {"params": [Parameter(torch.ones(4))], "selective": "no"},
    ],
    ids=["dtype", "lr", "strides", "selective"],
)  # fmt: skip
def test_a_bad_group_added_later_changes_nothing(bad):
    """C12, C14: the run goes on as if it had not been offered."""
    params = make_params()
    opt = SelectiveAdamW(params, lr=1e-2, budget=100, total_steps=4)
    train(opt, params, 0, 2)
    before, groups = picture(opt, params), len(opt.param_groups)
    with pytest.raises((TypeError, ValueError), match="expected"):
        opt.add_param_group(bad)
    assert len(opt.param_groups) == groups
    assert_same_picture(picture(opt, params), before)
    train(opt, params, 2, 5)
    assert opt.num_selected == 100


def test_nothing_selective_is_refused():
    """C14: a budget over nothing; frozen parameters cannot be selected from."""
    for groups in ([{"params": [Parameter(torch.ones(4))], "selective": False}], [Parameter(torch.ones(4), False)]):
        with pytest.raises(ValueError, match="budget: expected 1 to 0 scalars"):
            SelectiveAdamW(groups, **GOOD)
    with pytest.raises(ValueError, match="empty parameter list"):
        SelectiveAdamW([], **GOOD)


def bad_gradient(param, what):
    param.grad = None
    if what == "dtype":
        param.grad_dtype = None  # allows any
        param.grad = torch.ones_like(param, dtype=torch.bfloat16)
    else:
        param.grad = torch.ones_like(param).to_sparse()


@pytest.mark.parametrize("done", [0, 2, 6])
@pytest.mark.parametrize("what", ["dtype", "sparse"])
@pytest.mark.parametrize("where", [1, 7])
def test_a_bad_gradient_is_refused_whole(where, what, done, backend):
    """C14, C9: by name, in the first, a selecting and a later step; parameter 7 is in a dense group."""
    params = make_params()
    named = [(f"layer.{i}", param) for i, param in enumerate(params)]
    groups = [{"params": named[:6]}, {"params": named[6:], "selective": False}]
    opt = SelectiveAdamW(groups, lr=1e-2, budget=100, total_steps=4, backend=backend)
    train(opt, params, 0, done)
    set_grads(params, make_grads(params, done))
    bad_gradient(params[where], what)
    before, state = [param.detach().clone() for param in params], picture(opt, [])
    error = TypeError if what == "dtype" else ValueError
    given = "got torch.bfloat16" if what == "dtype" else "got layout torch.sparse_coo"
    with pytest.raises(error, match=rf"layer\.{where}: expected a .*gradient.*{given}"):
        opt.step()
    assert all(torch.equal(param.detach(), old) for param, old in zip(params, before, strict=True))
    assert opt.skipped_steps == 0
    if done:
        assert_same_picture(picture(opt, []), state)
    else:
        assert opt.num_selected == 0
        assert not opt.state


@pytest.mark.parametrize("kind", [SelectiveAdam, SelectiveAdamW, SelectiveSGD])
def test_foreach_and_fused_are_ignored_and_said_so_once(kind):
    """C12: accepted for compatibility."""
    for options in ({}, {"foreach": False}, {"fused": True}, {"foreach": True, "fused": True}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind([Parameter(torch.ones(12))], **GOOD, **options)
        assert [str(w.message)[:33] for w in caught] == ["foreach and fused are ignored: al"] * bool(options)
        assert all(w.filename == __file__ for w in caught)
