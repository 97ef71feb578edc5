"""Names of patches, and the states in which an optimizer has none to give: said before anything is sent."""

import pytest
import torch
from engines import Engine
from harness import make_grads, set_grads
from selective_peft import DeltaError, SelectiveAdamW, SparseDelta, weight_patches
from selective_peft.sharding import ShardingError
from torch import nn
from torch.nn.parallel import DataParallel


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 2))


def make(params, **options):
    options = {"budget": 40, "total_steps": 2, **options}
    return SelectiveAdamW(params, lr=1e-2, **options)


def step(model, optimizer, number=0):
    params = list(model.parameters())
    set_grads(params, make_grads(params, number))
    optimizer.step()


def with_head(model):
    return [
        {"params": list(model[0].named_parameters(prefix="0"))},
        {"params": list(model[1].named_parameters(prefix="1")), "selective": False},
    ]


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPED = {
    "bare": (lambda model: model, True),
    "compiled": (compiled, True),
    "parallel": (DataParallel, False),
    "compiled, then parallel": (lambda model: DataParallel(compiled(model)), False),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_names_are_those_of_the_bare_model(kind):
    """Without the model where the optimizer's own names tell; where they do not, that is said."""
    wrap, tells = WRAPPED[kind]
    bare = make_model()
    engine, model = Engine(bare), wrap(bare)
    optimizer = make(model.named_parameters())
    step(bare, optimizer)
    engine.receive(optimizer.iter_patches(model))
    engine.assert_is(bare)
    if tells:
        assert [p.name for p in optimizer.iter_patches()] == [p.name for p in optimizer.iter_patches(bare)]
        return
    with pytest.raises(ValueError, match=r"model: expected it, since all names begin with 'module\.'"):
        optimizer.iter_patches()


def test_without_names_the_model_is_needed():
    model = make_model()
    engine = Engine(model)
    optimizer = make(model.parameters())
    step(model, optimizer)
    with pytest.raises(ValueError, match="model: expected it, since the optimizer was built without names"):
        optimizer.iter_patches()
    engine.receive(optimizer.iter_patches(model))
    engine.assert_is(model)


def test_names_that_stand_there_twice():
    """Groups of two modules' own names: an engine would put both into one tensor."""
    model = make_model()
    engine = Engine(model)
    head = {"params": model[1].named_parameters(), "selective": False}
    optimizer = make([{"params": model[0].named_parameters()}, head])
    step(model, optimizer)
    with pytest.raises(ValueError, match="several of the optimizer's parameters are called 'weight', got none"):
        optimizer.iter_patches()
    engine.receive(optimizer.iter_patches(model))
    engine.assert_is(model)


def test_a_patch_is_named_by_the_model_it_is_asked_for():
    inner = make_model()
    optimizer = make(inner.named_parameters())
    step(inner, optimizer)
    outer = nn.ModuleDict({"bert": inner})
    assert all(patch.name.startswith("bert.") for patch in optimizer.iter_patches(outer))
    with pytest.raises(ValueError, match="model: expected all parameters of the optimizer, one of"):
        optimizer.iter_patches(make_model())


def test_before_the_first_step_there_is_nothing_to_send():
    model = make_model()
    optimizer = make(model.named_parameters())
    with pytest.raises(ValueError, match="expected one that has made a step, got one before its first"):
        optimizer.iter_patches()


@pytest.mark.filterwarnings("ignore:strategy .repeat.")
def test_a_selection_that_forgets_has_no_patches():
    model = make_model()
    optimizer = make(model.named_parameters(), method="d3-repeat")
    step(model, optimizer)
    with pytest.raises(ValueError, match="expected a selection that only grows, got 'repeat'"):
        optimizer.iter_patches()


def test_a_warm_up_has_no_patches_until_it_is_over():
    """It moves all parameters, and in the end puts back what it does not select."""
    model = make_model()
    engine = Engine(model)
    optimizer = make(model.named_parameters(), method="diff", method_kwargs={"warmup_steps": 2})
    step(model, optimizer)
    with pytest.raises(ValueError, match="expected one past its 2 warm-up steps, got one after 1"):
        optimizer.iter_patches()
    for number in (1, 2):
        step(model, optimizer, number)
        engine.receive(optimizer.iter_patches())
        engine.assert_is(model)
    assert optimizer.num_selected == 40


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["0.weight", "1.weight"])
def test_values_that_are_not_finite_are_not_sent(where, value):
    model = make_model()
    optimizer = make(with_head(model))
    step(model, optimizer)
    param = dict(model.named_parameters())[where]
    number = int(optimizer.selected_indices(param)[0]) if where == "0.weight" else 3
    with torch.no_grad():
        param.view(-1)[number] = value
    with pytest.raises(DeltaError, match=rf"{where}: expected finite values, got inf or NaN in 1"):
        optimizer.iter_patches()


def test_whole_tensors_of_other_dtypes_are_not_sent():
    model = make_model()
    model[1].double()
    optimizer = make(with_head(model))
    step(model, optimizer)
    with pytest.raises(DeltaError, match=r"1\.weight: expected float32, bfloat16 or float16 .* got torch\.float64"):
        optimizer.iter_patches()


def test_a_step_between_two_patches_is_noticed():
    """Whole tensors are copied when their turn comes; they would be of another step than the rest."""
    model = make_model()
    optimizer = make(with_head(model))
    step(model, optimizer)
    patches = optimizer.iter_patches()
    assert next(patches).indices is not None
    step(model, optimizer, 1)
    with pytest.raises(RuntimeError, match="expected to be read to its end before the optimizer's next step"):
        list(patches)


def test_a_checkpoint_that_is_loaded_between_two_patches_is_noticed():
    """Also one of the same step."""
    model = make_model()
    optimizer = make(with_head(model))
    step(model, optimizer)
    patches = optimizer.iter_patches()
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="expected to be read to its end before the optimizer's next step"):
        list(patches)


def test_whole_tensors_that_are_too_large_are_not_sent(monkeypatch):
    model = make_model()
    optimizer = make(with_head(model))
    step(model, optimizer)
    monkeypatch.setattr(weight_patches, "MAX_NUMEL", model[1].weight.numel())
    with pytest.raises(DeltaError, match=r"1\.weight: expected .* with fewer than 2\^31 scalars, got torch\.float32"):
        optimizer.iter_patches()


def test_a_module_called_module_is_no_wrapper():
    model = nn.ModuleDict({"module": make_model(), "other": nn.Linear(3, 3)})
    optimizer = make(model.named_parameters())
    step(model["module"], optimizer)
    assert {patch.name.partition(".")[0] for patch in optimizer.iter_patches()} == {"module"}


def test_what_has_no_gradient_yet_is_not_sent():
    model = make_model()
    engine = Engine(model)
    optimizer = make(with_head(model))
    for param in model[0].parameters():
        param.grad = torch.ones_like(param)
    model[1].bias.grad = torch.ones(2)
    optimizer.step()
    patches = list(optimizer.iter_patches())
    assert [patch.name for patch in patches if patch.indices is None] == ["1.bias"]
    engine.receive(patches)
    engine.assert_is(model)


def test_a_sharded_model_has_no_patches():
    model = make_model()
    optimizer = make(model.named_parameters())
    step(model, optimizer)
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.zeros(5))
    with pytest.raises(ShardingError, match="as DeepSpeed ZeRO puts there"):
        optimizer.iter_patches()


def test_a_delta_of_nothing_has_no_patches():
    model = make_model()
    assert list(SparseDelta.from_models(model, model).iter_patches()) == []
