"""What `method=` and `method_kwargs=` refuse."""

import pytest
import torch
from harness import SHAPES, make_params
from selective_peft import D3, Random, SelectiveAdamW, methods

NAMES = [f"layer.{i}.weight" for i in range(len(SHAPES))]


def make(**options):
    params = zip(NAMES, make_params(), strict=True)
    return SelectiveAdamW(list(params), **{"budget": 300, "total_steps": 6, **options})


def test_methods_lists_each_with_a_line():
    assert set(methods()) == {
        "id3", "d3-static", "d3-repeat", "gradient", "snip", "pafi", "pafi-increment", "fish", "diff", "random",
        "bitfit", "full",
    }  # fmt: skip
    assert all(20 < len(line) < 100 for line in methods().values())


REFUSED = [
    ({"method": "idb3"}, r"method: expected one of \['id3', .*got 'idb3'"),
    ({"method": "id3", "score": D3()}, r"score: expected None with method='id3', which stands for it"),
    ({"method": "id3", "strategy": "static"}, r"strategy: expected None with method='id3'"),
    ({"method": "pafi", "method_kwargs": {"exp": 2}}, r"method_kwargs: .*among \[\] for method='pafi', got \['exp'\]"),
    ({"method": "id3", "method_kwargs": {"eps": 0.0}}, r"eps: expected a number > 0, got 0\.0"),
    ({"method": "random", "method_kwargs": {"seed": -1}}, r"seed: expected an integer in \[0, 2\^64\), got -1"),
    ({"method": "random", "method_kwargs": {"seed": 1.5}}, r"seed: expected an integer, got 1\.5"),
    ({"method": "random", "method_kwargs": {"seed": True}}, r"seed: expected an integer, got True"),
    ({"method": "fish"}, r"method_kwargs: expected the arguments \['scores'\] for method='fish'"),
    ({"method": "fish", "method_kwargs": {"scores": {}}}, r"scores: expected a tensor for each .*none for 'layer\.0"),
    ({"method": "diff"}, r"method_kwargs: expected either tuned or warmup_steps for 'diff', got none"),
    ({"method": "diff", "method_kwargs": {"warmup_steps": 0}}, r"warmup_steps: expected an integer >= 1, got 0"),
    ({"method": "bitfit"}, r"budget: expected None with method='bitfit', which takes no budget, got 300"),
    ({"method": "full"}, r"budget: expected None with method='full'"),
    ({"method": "bitfit", "budget": None}, r"method: expected named parameters with trainable biases .*, got .*layer"),
    ({"budget": 10**6}, r"budget: expected 1 to 4466 scalars.*; there are: .*layer.*scalars"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        make(**options)


def test_a_later_group_needs_scores_too():
    scores = {name: torch.ones(shape) for name, shape in zip(NAMES, SHAPES, strict=True)}
    opt = make(method="fish", method_kwargs={"scores": scores})
    late = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"scores: expected a tensor for each .*none for 'late'"):
        opt.add_param_group({"params": [("late", late)]})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": [("late", late)], "selective": False})


def test_scores_of_another_shape_are_refused():
    scores = {name: torch.ones(3) for name in NAMES}
    with pytest.raises(ValueError, match=r"scores: expected shape \(5, 7\) for 'layer\.0\.weight', got \(3,\)"):
        make(method="fish", method_kwargs={"scores": scores})


def test_bitfit_needs_biases_that_train_and_all_of_them_at_once():
    frozen = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"method: expected named parameters with trainable biases"):
        SelectiveAdamW([("bias", frozen), ("weight", weight)], method="bitfit")
    frozen.requires_grad_(True)
    opt = SelectiveAdamW([("bias", frozen), ("weight", weight)], method="bitfit")
    frozen.grad = torch.ones(3)
    opt.step()
    with pytest.raises(ValueError, match=r"params: expected all groups to select from before the first step"):
        opt.add_param_group({"params": [("late.bias", torch.nn.Parameter(torch.ones(2)))]})


def test_an_earlier_state_is_refused_once_the_scores_are_gone():
    scores = {name: torch.rand(shape) for name, shape in zip(NAMES, SHAPES, strict=True)}
    opt = make(method="fish", method_kwargs={"scores": scores})
    earlier = opt.state_dict()
    for param in (param for group in opt.param_groups for param in group["params"]):
        param.grad = torch.ones_like(param)
    opt.step()
    with pytest.raises(ValueError, match=r"state_dict: expected one with the whole budget selected"):
        opt.load_state_dict(earlier)
    opt.load_state_dict(opt.state_dict())
    opt.step()


def test_a_seed_may_be_of_any_integer_type():
    seed = Random(torch.tensor(7)).seed
    assert (seed, type(seed)) == (7, int)
