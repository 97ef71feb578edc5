"""`selective_optimizer`: what the Trainer's arguments and the model say, and what is said beside them."""

import copy
import pickle

import pytest
import torch
from selective_peft import SelectiveAdam, SelectiveAdamW, SelectiveSGD, methods
from selective_peft.wrapped import SelectiveTorchOptimizer

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

from selective_peft.hf import SelectiveCallback, SelectiveFactory, selective_optimizer  # noqa: E402
from trainerruns import HEAD, arguments, inner, make_trainer, tiny_bert  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_collections")
ADAM = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-5}


def make(folder, model=None, **options):
    """The optimizer that a Trainer with these options gets, and the model."""
    changes = {"learning_rate": 7e-4, "weight_decay": 0.3, **ADAM}
    given = selective_optimizer(arguments(folder, **changes), **{"budget": 50, **options})
    model = tiny_bert() if model is None else model
    return given[0]()(model, **given[1]), model


@pytest.mark.parametrize(("kind", "made"), [
    (SelectiveAdamW, SelectiveAdamW), (SelectiveAdam, SelectiveAdam), (SelectiveSGD, SelectiveSGD),
    (torch.optim.NAdam, SelectiveTorchOptimizer), (torch.optim.RMSprop, SelectiveTorchOptimizer),
])  # fmt: skip
def test_arguments_come_from_the_trainers(kind, made, tmp_path):
    opt, _ = make(tmp_path, optimizer=kind)
    assert type(opt) is made
    like_adam = kind not in (SelectiveSGD, torch.optim.RMSprop)
    for group in opt.param_groups:
        assert group["lr"] == 7e-4
        assert group.get("betas") == ((0.8, 0.95) if like_adam else None)
        assert group.get("eps") == (1e-5 if like_adam else (1e-8 if kind is torch.optim.RMSprop else None))
    assert [group["weight_decay"] for group in opt.param_groups] == [0.3, 0.0]


def test_what_is_said_beside_them_wins(tmp_path):
    own = {"lr": 0.5, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.9, "select_every": 4, "max_grad_norm": 2.0}
    opt, _ = make(tmp_path, **own, bias_correction="per_entry", schedule="front")
    assert [(g["lr"], g["betas"], g["eps"], g["weight_decay"]) for g in opt.param_groups] == [
        (0.5, (0.5, 0.6), 1e-3, 0.9),
        (0.5, (0.5, 0.6), 1e-3, 0.0),
    ]
    described = opt._described()
    assert (described["select_every"], described["bias_correction"], described["schedule_name"]) == (
        4, "per_entry", "front",
    )  # fmt: skip


def test_groups_are_the_trainers_own(tmp_path):
    """What decays there decays here; the head is divided alike; names are the model's."""
    model = tiny_bert()
    model.bert.pooler.requires_grad_(False)
    args = arguments(tmp_path, weight_decay=0.3, optim="adamw_torch")
    theirs = transformers.Trainer(model, args).create_optimizer()
    opt, _ = make(tmp_path, model, train_fully=HEAD)
    sides = [(group["selective"], group["weight_decay"]) for group in opt.param_groups]
    assert sides == [(True, 0.3), (True, 0.0), (False, 0.3), (False, 0.0)]
    for decay in (0.3, 0.0):
        mine = {id(p) for group in opt.param_groups if group["weight_decay"] == decay for p in group["params"]}
        (own,) = [group["params"] for group in theirs.param_groups if group["weight_decay"] == decay]
        assert mine == {id(param) for param in own}
        assert len(mine) > 1
    by_name = dict(model.named_parameters())
    for group in opt.param_groups:
        assert all(by_name[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))
    assert opt.param_groups[2]["param_names"] == ["classifier.weight"]


def test_excluded_parameters_are_in_no_group(tmp_path):
    opt, _ = make(tmp_path, exclude=["embeddings", "classifier"])
    names = [name for group in opt.param_groups for name in group["param_names"]]
    assert names
    assert not [name for name in names if "embeddings" in name or "classifier" in name]


def fisher():
    return {name: torch.rand(param.shape) for name, param in tiny_bert().named_parameters()}


def moved():
    return {name: param.detach() + torch.rand(param.shape) for name, param in tiny_bert().named_parameters()}


PLAIN = [method for method in methods() if method not in ("bitfit", "fish", "diff", "full", "d3-repeat")]


@pytest.mark.parametrize(("method", "kwargs", "selected"), [
    ("bitfit", None, 176), ("fish", lambda: {"scores": fisher()}, 60), ("diff", lambda: {"tuned": moved()}, 60),
    ("diff", lambda: {"warmup_steps": 2}, 60), ("full", None, 0), *((method, None, 60) for method in PLAIN),
])  # fmt: skip
def test_methods_train(method, kwargs, selected, tmp_path):
    """Also those that need names or no budget, and one that selects nothing."""
    options = {"method": method, "method_kwargs": kwargs and kwargs()}
    options |= {"budget": None} if method in ("bitfit", "full") else {"budget": 60}
    trainer = make_trainer(tmp_path, options=options, max_steps=3, save_strategy="no")
    trainer.train()
    assert inner(trainer).num_selected == selected
    base = dict(tiny_bert().named_parameters())
    changed = {name: int((p != base[name]).sum()) for name, p in trainer.model.named_parameters()}
    body = sum(count for name, count in changed.items() if "classifier" not in name)
    if method == "bitfit":
        biases = [n for n, _ in trainer.model.named_parameters() if n.endswith(".bias") and "classifier" not in n]
        assert selected == sum(base[name].numel() for name in biases) == sum(changed[name] for name in biases)
    assert body > 1000 if method == "full" else 0 < body <= selected
    assert changed["classifier.weight"] == 32


@pytest.mark.parametrize("kind", [SelectiveAdam, SelectiveSGD, torch.optim.RMSprop])
def test_optimizers_train(kind, tmp_path):
    trainer = make_trainer(tmp_path, options={"optimizer": kind, "budget": 60}, max_steps=3, save_strategy="no")
    trainer.train()
    assert inner(trainer).num_selected == 60
    base = dict(tiny_bert().named_parameters())
    assert 0 < sum(int((p != base[n]).sum()) for n, p in trainer.model.bert.named_parameters("bert")) <= 60


@pytest.mark.parametrize(("given", "changes", "callbacks", "expected"), [
    (5, {"max_steps": 8}, True, 5), (None, {"max_steps": 8}, True, 8), (None, {"max_steps": 8}, False, 8),
    (None, {"max_steps": -1, "num_train_epochs": 3}, True, 24), (5, {"max_steps": -1}, False, 5),
    (None, {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 3}, True, 6),
])  # fmt: skip
def test_steps_are_those_that_the_trainer_will_run(given, changes, callbacks, expected, tmp_path):
    """Explicit, of the arguments, or of the epochs, which only the callback learns."""
    trainer = make_trainer(
        tmp_path, options={"budget": 60, "total_steps": given}, callbacks=[SelectiveCallback()] if callbacks else [],
        save_strategy="no", **changes,
    )  # fmt: skip
    trainer.train()
    opt = inner(trainer)
    assert opt.total_steps == expected
    assert opt.selected_per_step()[:expected].cumsum(0).tolist() == [60 * (t + 1) // expected for t in range(expected)]


def test_epochs_without_the_callback_are_an_error(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[], max_steps=-1)
    with pytest.raises(RuntimeError, match=r"add selective_peft.hf.SelectiveCallback\(\) to the Trainer's callbacks"):
        trainer.train()


def test_arguments_count_as_they_are_when_training_begins(tmp_path):
    """A search for hyper-parameters changes them between trials."""
    args = arguments(tmp_path, save_strategy="no")
    trainer = transformers.Trainer(
        tiny_bert(), args, optimizer_cls_and_kwargs=selective_optimizer(args, budget=50, optimizer=SelectiveSGD)
    )
    args.learning_rate, args.weight_decay, args.max_steps = 0.25, 0.125, 3
    opt = trainer.create_optimizer()
    assert [(g["lr"], g["weight_decay"]) for g in opt.param_groups] == [(0.25, 0.125), (0.25, 0.0)]
    assert opt.total_steps == 3


@pytest.mark.parametrize("route", [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given)), tuple])
def test_what_it_gives_can_be_copied_printed_and_used_again(route, tmp_path):
    given = selective_optimizer(arguments(tmp_path, learning_rate=0.25, **ADAM), budget=50, train_fully=iter(HEAD))
    again = route(given)
    text = repr(again)
    assert text == str(given)
    assert "lr=0.25, betas=(0.8, 0.95), eps=1e-05" in text
    assert len(text) < 500
    for _ in range(2):
        opt = again[0]()(tiny_bert(), **again[1])
        assert (opt.param_groups[0]["lr"], len(opt.param_groups)) == (0.25, 4)
    assert again[0] is SelectiveFactory


@pytest.mark.parametrize("wrap", [
    lambda model: torch.compile(model, backend="eager"), lambda model: torch.nn.DataParallel(model),
    lambda model: (setattr(model.bert, "pooler", torch.compile(model.bert.pooler, backend="eager")), model)[1],
])  # fmt: skip
def test_wrappers_leave_no_trace_in_the_names(wrap, tmp_path):
    """And a part that is compiled decays as it would otherwise."""
    opt, _ = make(tmp_path, wrap(tiny_bert()), train_fully=HEAD)
    plain, _ = make(tmp_path, train_fully=HEAD)
    mine, expected = ([group["param_names"] for group in each.param_groups] for each in (opt, plain))
    assert mine == expected


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"optimizer": "adamw"}, TypeError, "optimizer: expected a class of optimizers, got 'adamw'"),
    ({"optimizer": torch.nn.Linear}, TypeError, "optimizer: expected a class of optimizers, got <class"),
    ({"buget": 3}, TypeError, "buget: expected an argument of SelectiveAdamW, got another one"),
    ({"params": []}, TypeError, "params: expected an argument of SelectiveAdamW"),
    ({"momentum": 0.9}, TypeError, "momentum: expected an argument of SelectiveAdamW"),
    ({"optimizer": torch.optim.RMSprop, "betas": 1}, TypeError, "betas: expected an argument of RMSprop"),
    ({"optimizer": torch.optim.RMSprop, "arguments": 1}, TypeError, "arguments: expected an argument of RMSprop"),
    ({"train_fully": "classifier"}, TypeError, "train_fully: expected a list of patterns, got the string 'class"),
    ({"exclude": "classifier"}, TypeError, "exclude: expected a list of patterns, got the string 'class"),
])  # fmt: skip
def test_what_cannot_be_an_argument_is_refused_at_once(options, error, message, tmp_path):
    """C14: not only when training begins."""
    with pytest.raises(error, match=f"^{message}"):
        selective_optimizer(arguments(tmp_path), **{"budget": 50, **options})


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"budget": None}, TypeError, "budget: expected an integer"),
    ({"train_fully": ["head"]}, ValueError, "train_fully: expected patterns that fit a parameter, got 'head'"),
    ({"method": "best"}, ValueError, "method: expected one of"),
    ({"optimizer": torch.optim.Rprop}, ValueError, "weight_decay: expected 0 for Rprop, which has none, got 0.3"),
])  # fmt: skip
def test_errors_of_the_optimizer_are_its_own(options, error, message, tmp_path):
    with pytest.raises(error, match=f"^{message}"):
        make(tmp_path, **options)
