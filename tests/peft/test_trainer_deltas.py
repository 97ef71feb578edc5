"""`SelectiveCallback`: deltas beside checkpoints, and when shares of the budget are spent."""

import shutil
import warnings
from contextlib import nullcontext

import pytest
import torch
from selective_peft import SparseDelta

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

from selective_peft.hf import SelectiveCallback  # noqa: E402
from trainerruns import assert_delta_makes, inner, make_trainer, tiny_bert, train_with  # noqa: E402
from transformers.trainer_utils import HPSearchBackend  # noqa: E402

from selective_kernels.testing import assert_bitwise_equal  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_collections")
BUDGET, STEPS = 60, 8


@pytest.mark.parametrize("compact", [True, False])
def test_each_checkpoint_has_its_delta(compact, tmp_path):
    """The base and the delta give the checkpoint's weights; the head is in it, too."""
    train_with(tmp_path, SelectiveCallback(compact=compact, base_model="tiny"), options={}, save_steps=3)
    for step in (3, 6, 8):
        folder = tmp_path / f"checkpoint-{step}"
        saved = transformers.BertForSequenceClassification.from_pretrained(folder)
        delta = assert_delta_makes(folder / "delta", saved)
        assert delta.about.base_model == "tiny"
        assert delta.about.method == "id3"
        assert delta.about.hyperparameters["steps"] == step
        assert delta.changes["classifier.weight"].is_whole


def test_deltas_can_be_left_out(tmp_path):
    train_with(tmp_path, SelectiveCallback(deltas=False))
    assert (tmp_path / "checkpoint-4").is_dir()
    assert not list(tmp_path.rglob("delta*"))


def test_another_process_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.TrainingArguments, "should_save", property(lambda self: False))
    train_with(tmp_path, SelectiveCallback(save_at=[0.1, 1.0]))
    assert not list(tmp_path.rglob("*delta*"))


SPENT = {0.1: 1, 0.5: 4, 0.51: 5, 1.0: 8}  # share of 60 scalars -> step of 8 after which it is spent


def test_shares_of_the_budget_are_saved_when_they_are_spent(tmp_path):
    trainer = train_with(tmp_path, SelectiveCallback(save_at=SPENT), save_steps=1)
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

    train_with(tmp_path, callback())
    whole = {name: SparseDelta.load(tmp_path / name) for name in written()}
    assert set(whole) == {"delta-0.10", "delta-0.50", "delta-0.51", "delta-1.00"}
    for name in ("delta-0.51", "delta-1.00"):  # as if it had been stopped after step 4
        shutil.rmtree(tmp_path / name)
    before = written()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="save_at")
        train_with(tmp_path, callback(), resume=str(tmp_path / "checkpoint-4"))
    after = written()
    assert set(after) == set(whole)
    assert {name: after[name] for name in before} == before
    for name, delta in whole.items():
        assert_same_delta(SparseDelta.load(tmp_path / name), delta)


def test_shares_that_an_earlier_part_spent_without_saving_are_named(tmp_path):
    """Their moment is over: what would be written now would hold more."""
    train_with(tmp_path, SelectiveCallback())
    with pytest.warns(UserWarning, match=r"save_at: 0.10, 0.50 of the budget was spent before this run began"):
        train_with(tmp_path, SelectiveCallback(save_at=SPENT), resume=str(tmp_path / "checkpoint-4"))
    assert {path.name for path in tmp_path.glob("delta-*")} == {"delta-0.51", "delta-1.00"}


def test_shares_that_are_not_reached_are_named(tmp_path):
    options = {"budget": BUDGET, "total_steps": 16}
    message = r"save_at: 0.51, 1.00 of the budget of 60 was not reached, 30 scalars were selected"
    with pytest.warns(UserWarning, match=message):
        train_with(tmp_path, SelectiveCallback(save_at=SPENT), options=options, save_strategy="no")
    assert {path.name for path in tmp_path.glob("delta-*")} == {"delta-0.10", "delta-0.50"}


@pytest.mark.parametrize("save_at", [(0.0,), (0.5, 0.1), (0.5, 0.5), (1.5,), (float("nan"),), 0.5])
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
        train_with(tmp_path, SelectiveCallback(), options={"method": "d3-repeat", "budget": BUDGET})
    assert (tmp_path / "checkpoint-8").is_dir()
    assert not (tmp_path / "checkpoint-8" / "delta").exists()


def test_a_dense_warm_up_leaves_none_before_its_end(tmp_path):
    options = {"method": "diff", "method_kwargs": {"warmup_steps": 3}, "budget": BUDGET}
    trainer = train_with(tmp_path, SelectiveCallback(save_at=(0.5,)), options=options, save_steps=1)
    steps = [step for step in range(1, 9) if (tmp_path / f"checkpoint-{step}" / "delta").exists()]
    assert steps == [3, 4, 5, 6, 7, 8]
    assert SparseDelta.load(tmp_path / "delta-0.50").summary()["scalars"] == BUDGET
    assert [e["selective/skipped_steps"] for e in trainer.state.log_history if "loss" in e] == [0] * 8


def test_the_whole_model_is_a_delta_of_whole_tensors(tmp_path):
    trainer = train_with(tmp_path, SelectiveCallback(), options={"method": "full", "budget": None})
    delta = assert_delta_makes(tmp_path / "checkpoint-8" / "delta", trainer.model)
    assert all(change.is_whole for change in delta.changes.values())


def test_resuming_without_the_optimizers_state_is_pointed_out(tmp_path):
    train_with(tmp_path, SelectiveCallback(), save_only_model=True)
    with pytest.warns(UserWarning, match="step 4: resumed without the optimizer's state"):
        again = train_with(tmp_path, SelectiveCallback(), resume=str(tmp_path / "checkpoint-4"))
    told = [entry["selective/skipped_steps"] for entry in again.state.log_history if "loss" in entry]
    assert told == [0] * 8


def test_what_is_not_selected_has_the_bases_bits_in_between(tmp_path):
    """C7: in every checkpoint, by name."""
    train_with(tmp_path, SelectiveCallback(), weight_decay=0.5)
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


class Poison(transformers.TrainerCallback):
    """A gradient that is NaN in one step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **given):
        if state.global_step == 3:
            for param in model.parameters():
                param.grad.fill_(torch.nan)


@pytest.mark.filterwarnings("ignore:save_at. 1.00 of the budget")
@pytest.mark.parametrize(("others", "waits_by_step"), [
    ([], [0, 0, 0, 1, 0, 0, 0, 1]), ([Poison()], [0, 0, 0, 1, 1, 0, 0, 0]),
])  # fmt: skip
def test_shares_are_waited_for_only_when_they_may_be_spent(others, waits_by_step, tmp_path, deferring, waits):
    """On a GPU, whether a step was skipped is known when the next one begins. A skipped one has spent nothing."""
    waited = []

    class Watched(SelectiveCallback):
        def on_step_end(self, *events, **given):
            waits.clear()
            super().on_step_end(*events, **given)
            waited.append(len(waits))

    options = {"method": "pafi-increment", "budget": BUDGET, "train_fully": ()}  # selects without asking for gradients
    with pytest.warns(UserWarning, match="step 3: skipped") if others else nullcontext():
        train_with(
            tmp_path, *others, Watched(save_at=(0.5, 1.0)), options=options, save_strategy="no", logging_strategy="no",
            max_grad_norm=0.0,
        )  # fmt: skip
    assert waited == waits_by_step
    assert SparseDelta.load(tmp_path / "delta-0.50").about.hyperparameters["steps"] == 4
    assert (tmp_path / "delta-1.00").exists() == (not others)


class Trial(dict):
    """As much of a search's trial as the Trainer asks for."""

    number, params = 0, {}


def search_trial(folder, callback, monkeypatch):
    """A run of a search with other learning rates, in an output folder."""
    monkeypatch.setattr(transformers.integrations, "hp_params", dict)
    trainer = make_trainer(folder, callbacks=[callback], options={"budget": BUDGET}, save_steps=3)
    trainer.model_init = tiny_bert_again
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, None
    trainer.hp_space = lambda trial: {"learning_rate": 0.5}
    trainer.train(trial=Trial())
    return trainer


def tiny_bert_again(trial):
    return tiny_bert()


def test_a_search_leaves_the_deltas_of_an_earlier_run_alone(tmp_path, monkeypatch):
    """Its checkpoints are in folders of their own, beside those of a run that have the same steps."""
    train_with(tmp_path, SelectiveCallback(save_at=(0.5,)), save_steps=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*delta*/*")}
    assert len(before) == 4 * 3
    trainer = search_trial(tmp_path, SelectiveCallback(save_at=(0.5,)), monkeypatch)
    assert inner(trainer).param_groups[0]["initial_lr"] == 0.5
    assert (tmp_path / "run-0" / "checkpoint-6").is_dir()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*delta*/*")} == before


def test_a_run_that_resumes_a_trial_saves_deltas(tmp_path, monkeypatch):
    search_trial(tmp_path, SelectiveCallback(), monkeypatch)
    options = {"budget": BUDGET}
    train_with(tmp_path, SelectiveCallback(), resume=str(tmp_path / "run-0" / "checkpoint-3"), options=options)
    assert (tmp_path / "checkpoint-8" / "delta").is_dir()


def test_a_checkpoint_that_replaces_another_does_not_keep_its_delta(tmp_path):
    """Where it has none of its own."""
    train_with(tmp_path, SelectiveCallback())
    assert (tmp_path / "checkpoint-4" / "delta").is_dir()
    options = {"method": "diff", "method_kwargs": {"warmup_steps": 6}, "budget": BUDGET}
    train_with(tmp_path, SelectiveCallback(), options=options)
    assert (tmp_path / "checkpoint-4").is_dir()
    assert not (tmp_path / "checkpoint-4" / "delta").exists()
