"""Runs of the Trainer on a tiny BERT, and comparisons of models, optimizers and logs bit for bit."""

import torch
import transformers
from harness import picture
from selective_peft import SparseDelta
from selective_peft.hf import SelectiveCallback, selective_optimizer

from selective_kernels.testing import assert_bitwise_equal

HEAD = ["classifier"]
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
TIMES += ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def tiny_bert(layers=1, **changes):
    """Random weights, the same each time."""
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32, **changes
    )
    return transformers.BertForSequenceClassification(config)


def rows(count=32):
    """Random tokens; the label says whether their sum is odd."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 50, (count, 8), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.sum() % 2} for row in tokens.unbind()
    ]


def arguments(folder, **changes):
    """Eight steps of four rows."""
    defaults = {
        "use_cpu": True, "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "seed": 3,
        "save_strategy": "steps", "save_steps": 4, "logging_steps": 1, "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    return transformers.TrainingArguments(output_dir=str(folder), **{**defaults, **changes})


def make_trainer(folder, model=None, *, callbacks=None, data=None, options=None, trainer=None, **changes):
    """A Trainer with a callback and an optimizer of ours; `changes` are of the arguments."""
    model, args = tiny_bert() if model is None else model, arguments(folder, **changes)
    callbacks = [SelectiveCallback()] if callbacks is None else callbacks
    optimizer = selective_optimizer(args, **{"budget": 0.05, "train_fully": HEAD, **(options or {})})
    return transformers.Trainer(
        model, args, train_dataset=rows() if data is None else data, callbacks=callbacks,
        optimizer_cls_and_kwargs=optimizer, **(trainer or {}),
    )  # fmt: skip


def train_with(folder, *callbacks, attach=None, resume=None, **changes):
    """A run on 60 scalars without a head, with these callbacks, one of them perhaps attached."""
    changes = {"options": {"budget": 60, "train_fully": ()}, **changes}
    trainer = make_trainer(folder, callbacks=list(callbacks), **changes)
    if attach is not None:
        attach.attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def inner(trainer):
    """The optimizer within Accelerate's wrapper."""
    return trainer.optimizer.optimizer


def assert_same_model(actual, expected):
    for (name, a), (_, b) in zip(actual.state_dict().items(), expected.state_dict().items(), strict=True):
        assert_bitwise_equal(a, b, name)


def assert_same_optimizer(actual, expected):
    """Every bit of the state, and every option."""
    actual, expected = picture(actual, []), picture(expected, [])
    assert actual.keys() == expected.keys()
    for path, leaf in actual.items():
        if isinstance(leaf, torch.Tensor):
            assert_bitwise_equal(leaf, expected[path], path)
        else:
            assert leaf == expected[path], path


def log_of(trainer):
    """All that was logged but for times, and for the mean loss of the part of a run that this process made."""
    kept = [{k: v for k, v in entry.items() if k not in TIMES} for entry in trainer.state.log_history]
    return [entry for entry in kept if "train_loss" not in entry]


def assert_delta_makes(folder, model, base=None):
    """A saved delta turns the base into the model, and back."""
    delta, base = SparseDelta.load(folder), tiny_bert() if base is None else base
    first = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    delta.apply_(base)
    assert_same_model(base, model)
    delta.revert_(base)
    for name, tensor in base.state_dict().items():
        assert_bitwise_equal(tensor, first[name], name)
    return delta
