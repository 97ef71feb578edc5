"""`SelectiveCallback`: what it logs and whom it reaches, deltas beside checkpoints and at shares of the budget."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import shutil
import sys
import types
import warnings

import pytest
import torch
from selective_peft import SparseDelta

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

from selective_peft.hf import SelectiveCallback, selection_figures  # noqa: E402
from trainerruns import assert_delta_makes, inner, make_trainer, tiny_bert  # noqa: E402
from transformers.integrations import integration_utils  # noqa: E402

from selective_kernels.testing import assert_bitwise_equal  # noqa: E402

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


def run(folder, *callbacks, attach=None, resume=None, **options):
    options = {"options": {"budget": BUDGET, "train_fully": ()}, **options}
    trainer = make_trainer(folder, callbacks=list(callbacks), **options)
    if attach is not None:
        attach.attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


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
    trainer = run(tmp_path, before, SelectiveCallback(), after, save_strategy="no")
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
    trainer = run(tmp_path, *callbacks, attach=callback, save_strategy="no")
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
    run(tmp_path, reporter, attach=SelectiveCallback(), save_strategy="no", logging_steps=4)
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
        trainer = run(tmp_path, Poison(), SelectiveCallback(), save_steps=4, max_grad_norm=0.0)
    told = [entry["selective/skipped_steps"] for entry in trainer.state.log_history if "loss" in entry]
    assert told == [0, 0, 1, 2, 2, 2, 2, 2]
    assert inner(trainer).num_selected == BUDGET * 6 // 8
    again = run(tmp_path, SelectiveCallback(), resume=str(tmp_path / "checkpoint-4"))
    assert [e["selective/skipped_steps"] for e in again.state.log_history if "loss" in e] == told


def test_a_second_run_of_the_same_trainer_counts_anew(tmp_path):
    trainer = run(tmp_path, SelectiveCallback(), save_strategy="no")
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["selective/skipped_steps"] for entry in told[-STEPS:]] == [0] * STEPS
    assert {entry["selective/selected"] for entry in told[-STEPS:]} == {BUDGET}


# ------------------------------------------------------------------ deltas


@pytest.mark.parametrize("compact", [True, False])
def test_each_checkpoint_has_its_delta(compact, tmp_path):
    """The base and the delta give the checkpoint's weights; the head is in it, too."""
    run(tmp_path, SelectiveCallback(compact=compact, base_model="tiny"), options={}, save_steps=3)
    for step in (3, 6, 8):
        folder = tmp_path / f"checkpoint-{step}"
        saved = transformers.BertForSequenceClassification.from_pretrained(folder)
        delta = assert_delta_makes(folder / "delta", saved)
        assert delta.about.base_model == "tiny"
        assert delta.about.method == "id3"
        assert delta.about.hyperparameters["steps"] == step
        assert delta.changes["classifier.weight"].is_whole


def test_deltas_can_be_left_out(tmp_path):
    run(tmp_path, SelectiveCallback(deltas=False))
    assert (tmp_path / "checkpoint-4").is_dir()
    assert not list(tmp_path.rglob("delta*"))


def test_another_process_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.TrainingArguments, "should_save", property(lambda self: False))
    run(tmp_path, SelectiveCallback(save_at=[0.1, 1.0]))
    assert not list(tmp_path.rglob("*delta*"))


SPENT = {0.1: 1, 0.5: 4, 0.51: 5, 1.0: 8}  # share of 60 scalars -> step of 8 after which it is spent


def test_shares_of_the_budget_are_saved_when_they_are_spent(tmp_path):
    trainer = run(tmp_path, SelectiveCallback(save_at=SPENT), save_steps=1)
    names = {share: f"delta-{share:.2f}" for share in SPENT}
    assert {path.name for path in tmp_path.glob("delta-*")} == set(names.values())
    for share, step in SPENT.items():
        folder = tmp_path / f"checkpoint-{step}"
        saved = transformers.BertForSequenceClassification.from_pretrained(folder)
        delta = assert_delta_makes(tmp_path / names[share], saved)
        assert delta.about.hyperparameters["selected"] == BUDGET * step // STEPS >= share * BUDGET
    assert inner(trainer).num_selected == BUDGET


def assert_same_delta(actual, expected):
    assert list(actual.changes) == list(expected.changes)
    for name, mine in actual.changes.items():
        for part in ("indices", "values", "originals"):
            assert_bitwise_equal(getattr(mine, part), getattr(expected.changes[name], part), f"{name} {part}")
    assert actual.fingerprint == expected.fingerprint
    assert actual.about.hyperparameters == expected.about.hyperparameters


def test_a_resumed_run_writes_none_twice_and_misses_none(tmp_path):
    """From a checkpoint amid the shares, in another process: what the first part wrote stays untouched."""

    def callback():
        return SelectiveCallback(save_at=SPENT)

    def written():
        return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("delta-*/*.safetensors")}

    run(tmp_path, callback())
    whole = {name: SparseDelta.load(tmp_path / name) for name in written()}
    assert set(whole) == {"delta-0.10", "delta-0.50", "delta-0.51", "delta-1.00"}
    for name in ("delta-0.51", "delta-1.00"):  # as if it had been stopped after step 4
        shutil.rmtree(tmp_path / name)
    before = written()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="save_at")
        run(tmp_path, callback(), resume=str(tmp_path / "checkpoint-4"))
    after = written()
    assert set(after) == set(whole)
    assert {name: after[name] for name in before} == before
    for name, delta in whole.items():
        assert_same_delta(SparseDelta.load(tmp_path / name), delta)


def test_shares_that_an_earlier_part_spent_without_saving_are_named(tmp_path):
    """Their moment is over: what would be written now would hold more."""
    run(tmp_path, SelectiveCallback())
    with pytest.warns(UserWarning, match=r"save_at: 0.10, 0.50 of the budget was spent before this run began"):
        run(tmp_path, SelectiveCallback(save_at=SPENT), resume=str(tmp_path / "checkpoint-4"))
    assert {path.name for path in tmp_path.glob("delta-*")} == {"delta-0.51", "delta-1.00"}


def test_shares_that_are_not_reached_are_named(tmp_path):
    options = {"budget": BUDGET, "total_steps": 16}
    message = r"save_at: 0.51, 1.00 of the budget of 60 was not reached, 30 scalars were selected"
    with pytest.warns(UserWarning, match=message):
        run(tmp_path, SelectiveCallback(save_at=SPENT), options=options, save_strategy="no")
    assert {path.name for path in tmp_path.glob("delta-*")} == {"delta-0.10", "delta-0.50"}


@pytest.mark.parametrize("save_at", [(0.0,), (0.5, 0.1), (0.5, 0.5), (1.5,), (float("nan"),)])
def test_shares_are_ascending_shares(save_at):
    with pytest.raises(ValueError, match="save_at: expected ascending shares"):
        SelectiveCallback(save_at=save_at)


@pytest.mark.parametrize("method", ["full", "d3-repeat"])
def test_shares_need_a_selection_that_grows(method, tmp_path):
    options = {"method": method, "budget": None if method == "full" else BUDGET}
    trainer = make_trainer(tmp_path, callbacks=[SelectiveCallback(save_at=(0.5,))], options=options)
    with pytest.raises(ValueError, match=f"save_at: expected no shares with method='{method}', got"):
        trainer.train()


def test_a_fresh_set_in_each_step_leaves_no_delta(tmp_path):
    with pytest.warns(UserWarning, match="deltas: none are saved for a method that selects afresh"):
        run(tmp_path, SelectiveCallback(), options={"method": "d3-repeat", "budget": BUDGET})
    assert (tmp_path / "checkpoint-8").is_dir()
    assert not (tmp_path / "checkpoint-8" / "delta").exists()


def test_a_dense_warm_up_leaves_none_before_its_end(tmp_path):
    options = {"method": "diff", "method_kwargs": {"warmup_steps": 3}, "budget": BUDGET}
    trainer = run(tmp_path, SelectiveCallback(save_at=(0.5,)), options=options, save_steps=1)
    steps = [step for step in range(1, 9) if (tmp_path / f"checkpoint-{step}" / "delta").exists()]
    assert steps == [3, 4, 5, 6, 7, 8]
    assert SparseDelta.load(tmp_path / "delta-0.50").summary()["scalars"] == BUDGET
    assert [e["selective/skipped_steps"] for e in trainer.state.log_history if "loss" in e] == [0] * 8


def test_the_whole_model_is_a_delta_of_whole_tensors(tmp_path):
    trainer = run(tmp_path, SelectiveCallback(), options={"method": "full", "budget": None})
    delta = assert_delta_makes(tmp_path / "checkpoint-8" / "delta", trainer.model)
    assert all(change.is_whole for change in delta.changes.values())


def test_resuming_without_the_optimizers_state_is_pointed_out(tmp_path):
    run(tmp_path, SelectiveCallback(), save_only_model=True)
    with pytest.warns(UserWarning, match="step 4: resumed without the optimizer's state"):
        again = run(tmp_path, SelectiveCallback(), resume=str(tmp_path / "checkpoint-4"))
    told = [entry["selective/skipped_steps"] for entry in again.state.log_history if "loss" in entry]
    assert told == [0] * 8


def test_another_optimizer_is_refused(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to=[], disable_tqdm=True)
    trainer = transformers.Trainer(tiny_bert(), args, train_dataset=[{}], callbacks=[SelectiveCallback()])
    with pytest.raises(ValueError, match="optimizer: expected a selective optimizer, got AdamW"):
        trainer.train()


def test_figures_in_a_loop_of_ones_own(tmp_path):
    """Without the Trainer, for any logger."""
    trainer = run(tmp_path, SelectiveCallback(), save_strategy="no")
    last = selective_part([entry for entry in trainer.state.log_history if "loss" in entry][-1])
    assert selection_figures(trainer.optimizer) == selection_figures(inner(trainer)) == last
    with pytest.raises(ValueError, match="expected a selective optimizer, got SGD"):
        selection_figures(torch.optim.SGD(tiny_bert().parameters()))


def test_what_is_not_selected_has_the_bases_bits_in_between(tmp_path):
    """C7: in every checkpoint, by name."""
    run(tmp_path, SelectiveCallback(), weight_decay=0.5)
    base = tiny_bert().state_dict()
    saved = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    changes = SparseDelta.load(tmp_path / "checkpoint-4" / "delta").changes
    for name, tensor in saved.items():
        if name in changes:
            rest = torch.ones(tensor.numel(), dtype=torch.bool)
            rest[changes[name].indices.long()] = False
            assert_bitwise_equal(tensor.reshape(-1)[rest], base[name].reshape(-1)[rest], name)
        else:
            assert_bitwise_equal(tensor, base[name], name)
