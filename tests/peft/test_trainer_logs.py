"""`SelectiveCallback`: what it logs, and whom it reaches."""

import sys
import types
import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

from selective_peft.hf import SelectiveCallback, selection_figures  # noqa: E402
from trainerruns import assert_same_model, inner, make_trainer, tiny_bert, train_with  # noqa: E402
from transformers.integrations import integration_utils  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_collections")
BUDGET, STEPS = 60, 8


class Recorder(transformers.TrainerCallback):
    """A reporter: keeps what it is told, as it is then; and the threshold before anything else happens."""

    def __init__(self):
        self.logs, self.thresholds = [], []

    def on_log(self, args, state, control, logs=None, **given):
        self.logs.append(dict(logs))

    def on_optimizer_step(self, args, state, control, **given):
        self.thresholds.append(given["optimizer"].optimizer.threshold)


def selective_part(entry):
    return {name: value for name, value in entry.items() if name.startswith("selective/")}


def expected_logs(trainer, thresholds):
    scalars = sum(param.numel() for param in trainer.model.parameters())
    counts = [BUDGET * (step + 1) // STEPS for step in range(STEPS)]
    return [
        {
            "selective/selected": count, "selective/sparsity": 1.0 - count / scalars,
            "selective/skipped_steps": 0, "selective/threshold": threshold,
        }
        for count, threshold in zip(counts, thresholds, strict=True)
    ]  # fmt: skip


def test_the_history_has_it(tmp_path):
    """Beside each training loss, and nowhere else; a reporter that comes before has nothing."""
    before, after = Recorder(), Recorder()
    trainer = train_with(tmp_path, before, SelectiveCallback(), after, save_strategy="no")
    expected = expected_logs(trainer, before.thresholds)
    history = [selective_part(entry) for entry in trainer.state.log_history]
    assert history == [*expected, {}]
    assert [selective_part(entry) for entry in after.logs] == history
    assert not any(map(selective_part, before.logs))
    assert len(set(before.thresholds)) == STEPS


@pytest.mark.parametrize("listed", [True, False])
def test_attached_it_reaches_every_reporter(listed, tmp_path):
    callback, before = SelectiveCallback(), Recorder()
    callbacks = [before, callback] if listed else [before]
    trainer = train_with(tmp_path, *callbacks, attach=callback, save_strategy="no")
    assert trainer.callback_handler.callbacks.count(callback) == 1
    expected = expected_logs(trainer, before.thresholds)
    assert [selective_part(entry) for entry in before.logs] == [*expected, {}]
    assert [selective_part(entry) for entry in trainer.state.log_history] == [*expected, {}]


class Writer:
    """As much of a SummaryWriter as the Trainer's TensorBoardCallback uses."""

    def __init__(self, log_dir=None):
        self.scalars = []

    def add_text(self, name, text, step=None):
        pass

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        pass

    def close(self):
        pass


def test_tensorboard_gets_it(tmp_path, monkeypatch):
    """The Trainer's own callback for it, with another writer."""
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    for name in ("torch.utils.tensorboard", "tensorboardX"):
        module = types.ModuleType(name)
        module.SummaryWriter = Writer
        monkeypatch.setitem(sys.modules, name, module)
    writer = Writer()
    reporter = integration_utils.TensorBoardCallback(writer)
    train_with(tmp_path, reporter, attach=SelectiveCallback(), save_strategy="no", logging_steps=4)
    found = [(name, value, step) for name, value, step in writer.scalars if "selective/" in name]
    assert [each for each in found if "selected" in each[0]] == [
        ("train/selective/selected", 30, 4),
        ("train/selective/selected", 60, 8),
    ]
    assert {name.rpartition("/")[2] for name, _, _ in found} == {"selected", "sparsity", "threshold", "skipped_steps"}


@pytest.mark.parametrize("attached", [True, False])
def test_reporters_that_would_not_see_it_are_pointed_out(attached, tmp_path):
    callback = SelectiveCallback()
    trainer = make_trainer(tmp_path, callbacks=[callback], max_steps=1, save_strategy="no")
    trainer.args.report_to = ["somewhere"]
    if attached:
        callback.attach(trainer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.train()
    about = [str(each.message) for each in told if "report_to" in str(each.message)]
    assert len(about) == (0 if attached else 1)
    assert attached or about[0].endswith("SelectiveCallback.attach(trainer) lets them")


def test_skipped_steps_are_counted(tmp_path):
    """A gradient that is NaN costs a step of the Trainer, and none of the budget."""

    class Poison(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **given):
            if state.global_step in (2, 3):
                model.classifier.bias.grad[0] = torch.nan

    with pytest.warns(UserWarning, match="step 2: skipped"):
        trainer = train_with(tmp_path, Poison(), SelectiveCallback(), save_steps=4, max_grad_norm=0.0)
    told = [entry["selective/skipped_steps"] for entry in trainer.state.log_history if "loss" in entry]
    assert told == [0, 0, 1, 2, 2, 2, 2, 2]
    assert inner(trainer).num_selected == BUDGET * 6 // 8
    again = train_with(tmp_path, SelectiveCallback(), resume=str(tmp_path / "checkpoint-4"))
    assert [e["selective/skipped_steps"] for e in again.state.log_history if "loss" in e] == told


def test_a_second_run_of_the_same_trainer_counts_anew(tmp_path):
    trainer = train_with(tmp_path, SelectiveCallback(), save_strategy="no")
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["selective/skipped_steps"] for entry in told[-STEPS:]] == [0] * STEPS
    assert {entry["selective/selected"] for entry in told[-STEPS:]} == {BUDGET}


def test_resumed_it_still_counts_from_where_the_run_began(tmp_path):
    """Also a second run of the same Trainer, and one that had gone on without the optimizer's state."""
    twice = train_with(tmp_path / "twice", SelectiveCallback(), save_strategy="no")
    twice.args.save_strategy = "steps"
    twice.train()
    part = train_with(tmp_path / "part", SelectiveCallback(), save_only_model=True, save_steps=2)
    folder = str(tmp_path / "part" / "checkpoint-4")
    with pytest.warns(UserWarning, match="step 4: resumed without"):
        part = train_with(tmp_path / "part", SelectiveCallback(), resume=folder)
    for trainer, name, step in ((twice, "twice", 4), (part, "part", 6)):
        folder = str(tmp_path / name / f"checkpoint-{step}")
        again = train_with(tmp_path / name, SelectiveCallback(), SelectiveCallback(), resume=folder)
        told = [entry["selective/skipped_steps"] for entry in again.state.log_history if "loss" in entry]
        assert told == [0] * STEPS
        assert_same_model(again.model, trainer.model)


def test_figures_in_a_loop_of_ones_own(tmp_path):
    """Without the Trainer, for any logger."""
    trainer = train_with(tmp_path, SelectiveCallback(), save_strategy="no")
    last = selective_part([entry for entry in trainer.state.log_history if "loss" in entry][-1])
    assert selection_figures(trainer.optimizer) == selection_figures(inner(trainer)) == last
    with pytest.raises(ValueError, match="expected a selective optimizer, got SGD"):
        selection_figures(torch.optim.SGD(tiny_bert().parameters()))


def test_another_optimizer_is_refused(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to=[], disable_tqdm=True)
    trainer = transformers.Trainer(tiny_bert(), args, train_dataset=[{}], callbacks=[SelectiveCallback()])
    with pytest.raises(ValueError, match="optimizer: expected a selective optimizer, got AdamW"):
        trainer.train()
