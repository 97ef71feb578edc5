"""Parameter groups by name: patterns, the split into groups, errors that list what is there."""

import pytest
import torch
from harness import make_grads, set_grads
from selective_peft import SelectiveAdamW
from selective_peft.groups import matches, selective_param_groups
from selective_peft.listing import what_is_there

from selective_kernels.testing import assert_bitwise_equal

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

PEFT_HEAD = "base_model.model.classifier.modules_to_save.default.bias"
NO_DECAY = ["bias", "LayerNorm.weight"]


def tiny_bert(**changes):
    transformers.set_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**sizes, intermediate_size=32, max_position_embeddings=20, **changes)
    )


def names(group):
    return [name for name, _ in group["params"]]


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("classifier.weight", "classifier", True),
        (PEFT_HEAD, "classifier", True),
        (PEFT_HEAD, "default.bias", True),
        (PEFT_HEAD, "model.classifier.modules_to_save", True),
        (PEFT_HEAD, "classifier.default", False),  # parts must follow each other
        ("classifier.weight", "class", False),  # whole parts only
        ("my_classifier.weight", "classifier", False),
        ("classifier.weight", "Classifier", False),  # case counts
        ("bert.encoder.layer.0.output.LayerNorm.weight", "LayerNorm.weight", True),
        ("x.bias", "bias", True),
        ("x.bias_hh", "bias", False),
        ("bert.encoder.layer.11.output.dense.bias", "layer.1", False),
        ("bert.encoder.layer.1.output.dense.bias", "layer.1", True),
        ("weight", "weight", True),  # a module that holds a parameter itself
        ("bert.embeddings.LayerNorm.bias", "*.embeddings.*", True),
        ("embeddings.word.weight", "*.embeddings.*", False),  # with wildcards the whole name has to fit
        ("classifier.weight", "class*", True),
        ("model.classifier.weight", "class*", False),
        ("layer.3.weight", "layer.[0-3].*", True),
        ("layer.4.weight", "layer.[0-3].*", False),
        ("layer.4.weight", "layer.?.weight", True),
        ("x.weight", "", False),
        ("x.weight", "x.", False),
    ],
)
def test_what_a_pattern_fits(name, pattern, expected):
    assert matches(name, pattern) is expected


def test_four_groups_in_the_models_order():
    """Each trainable parameter not excluded is in one group, and in the right one."""
    model = tiny_bert()
    model.bert.pooler.requires_grad_(False)
    groups = selective_param_groups(model, ["classifier"], ["*.embeddings.*"], 0.1, NO_DECAY)
    assert [(group["selective"], group["weight_decay"]) for group in groups] == [
        (True, 0.1),
        (True, 0.0),
        (False, 0.1),
        (False, 0.0),
    ]
    layers = [name for name, _ in model.named_parameters() if name.startswith("bert.encoder.")]
    flat = [name for name in layers if name.endswith((".bias", "LayerNorm.weight"))]
    assert names(groups[0]) == [name for name in layers if name not in flat]
    assert names(groups[1]) == flat
    assert names(groups[2]) == ["classifier.weight"]
    assert names(groups[3]) == ["classifier.bias"]
    assert 0 < len(flat) < len(layers)
    by_name = dict(model.named_parameters())
    assert all(by_name[name] is param for group in groups for name, param in group["params"])


def test_without_patterns_everything_is_selective():
    model = tiny_bert()
    (group,) = selective_param_groups(model, weight_decay=0.5)
    assert (group["selective"], group["weight_decay"]) == (True, 0.5)
    assert names(group) == [name for name, _ in model.named_parameters()]


def test_empty_groups_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 2))
    groups = selective_param_groups(model, ["1"], weight_decay=0.1, no_decay=["bias"])
    assert [names(group) for group in groups] == [["0.weight"], ["1.weight"], ["1.bias"]]


def test_a_tied_tensor_counts_once():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    assert model.lm_head.weight is model.transformer.wte.weight
    groups = selective_param_groups(model, exclude=["wpe"])
    params = [id(param) for group in groups for _, param in group["params"]]
    assert len(params) == len(set(params)) == len(list(model.parameters())) - 1
    with pytest.raises(ValueError, match=r"'lm_head', .* \(lm_head.weight is tied to transformer.wte.weight, which"):
        selective_param_groups(model, exclude=["lm_head"])


def test_an_optimizer_takes_the_groups(backend):
    """A share is one of the selective scalars, decay hits what it should, what is excluded keeps its bits."""
    model = tiny_bert()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    groups = selective_param_groups(model, ["classifier"], ["embeddings", "pooler"], 0.5, NO_DECAY)
    opt = SelectiveAdamW(groups, lr=1e-2, budget=0.1, total_steps=2, backend=backend)
    params = list(model.parameters())
    for step in range(3):
        set_grads(params, make_grads(params, step))
        opt.step()
    selective = {name for group in groups if group["selective"] for name in names(group)}
    assert opt.num_selected == int(0.1 * sum(before[name].numel() for name in selective))
    assert [group["param_names"] for group in opt.param_groups] == [names(group) for group in groups]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.5, 0.0, 0.5, 0.0]
    for name, param in model.named_parameters():
        if "embeddings" in name or "pooler" in name:
            assert_bitwise_equal(param.detach(), before[name], name)
        elif name not in selective:
            assert float((param.detach() != before[name]).float().mean()) > 0.6, name


def test_the_trainer_trains_the_groups(tmp_path):
    model = tiny_bert()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(0, 50, (5,), generator=generator), "labels": torch.tensor(i % 2)} for i in range(12)
    ]
    groups = selective_param_groups(model, ["classifier"], ["embeddings"], 0.01, NO_DECAY)
    opt = SelectiveAdamW(groups, lr=1e-2, budget=50, total_steps=3)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, use_cpu=True, report_to="none", save_strategy="no"
    )
    transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(opt, None)).train()
    changed = {name: int((param.detach() != before[name]).sum()) for name, param in model.named_parameters()}
    assert changed["classifier.weight"] == model.classifier.weight.numel()
    assert sum(count for name, count in changed.items() if "embeddings" in name) == 0
    assert 0 < sum(count for name, count in changed.items() if "classifier" not in name) <= opt.num_selected == 50


@pytest.mark.parametrize("argument", ["train_fully", "exclude", "no_decay"])
def test_a_pattern_that_fits_nothing_is_refused(argument):
    with pytest.raises(ValueError, match=f"^{argument}: expected patterns that fit a parameter, got 'head'") as caught:
        selective_param_groups(tiny_bert(), **{argument: ["bias", "head"]})
    message = str(caught.value)
    assert "; bert.embeddings.LayerNorm (2 parameters, 32 scalars); bert.encoder.layer (32 parameters, " in message
    assert "classifier.weight (1 parameter, 32 scalars)" in message


def test_a_pattern_that_fits_frozen_parameters_only_is_refused():
    model = tiny_bert()
    model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'classifier', .* none that requires a gradient \(classifier.weight does"):
        selective_param_groups(model, train_fully=["classifier"])


@pytest.mark.parametrize("patterns", ["classifier", [b"classifier"], [3]])
def test_patterns_are_a_list_of_strings(patterns):
    with pytest.raises(TypeError, match="train_fully: expected "):
        selective_param_groups(tiny_bert(), train_fully=patterns)


def test_a_parameter_on_both_sides_is_refused():
    with pytest.raises(ValueError, match=r"exclude: .* train_fully names as well, got classifier.bias and 1 more"):
        selective_param_groups(tiny_bert(), train_fully=["classifier"], exclude=["classifier.*"])


def test_nothing_left_to_select_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"model: .* train_fully \(2 parameters\) and exclude \(2\); there are: 0.wei"):
        selective_param_groups(model, train_fully=["1"], exclude=["0.*"])
    with pytest.raises(ValueError, match="there are: no parameter that requires a gradient"):
        selective_param_groups(model.requires_grad_(False))


def test_the_list_of_what_is_there_is_short():
    """The deepest level with at most ten prefixes; a flat list of many is cut, and what is cut is counted."""
    long = [(f"p{i}", torch.nn.Parameter(torch.zeros(i))) for i in range(1, 14)]
    assert what_is_there(long).endswith("p10 (1 parameter, 10 scalars); and others (3 parameters, 36 scalars)")
    assert what_is_there(list(tiny_bert().named_parameters())).count(";") < 10
