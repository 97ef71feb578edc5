"""C9, C12: a step that a gradient scaler skips spends no budget and advances no schedule: Trainer, Accelerate, by hand.

Scalers work on the CPU, too; only the Trainer makes none there, so it is given one.
"""

import pytest
import torch
from harness import make_grads, make_params, picture, set_grads
from selective_peft import SelectiveAdamW, SelectiveSGD, SparseDelta, selective

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install '.[test]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

from accelerate.optimizer import AcceleratedOptimizer  # noqa: E402
from accelerate.scheduler import AcceleratedScheduler  # noqa: E402
from selective_peft.hf import SelectiveCallback  # noqa: E402
from trainerruns import (  # noqa: E402
    assert_same_model,
    assert_same_optimizer,
    inner,
    log_of,
    make_trainer,
    tiny_bert,
)

from selective_kernels.testing import assert_bitwise_equal  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_collections", "own_accelerator")
BUDGET, STEPS = 60, 6
OVERFLOWS = (0, 3)  # calls of step(), the first one among them


@pytest.fixture
def own_accelerator():
    """Accelerate keeps its settings for the whole process."""
    for state in (accelerate.state.AcceleratorState, accelerate.state.GradientState):
        state._reset_state()
    yield
    for state in (accelerate.state.AcceleratorState, accelerate.state.GradientState):
        state._reset_state()


def make(kind="AdamW"):
    params = make_params(seed=2)
    options = {"lr": 1e-2, "weight_decay": 0.1, "budget": BUDGET, "total_steps": STEPS, "schedule": "linear"}
    if kind == "SGD":
        return SelectiveSGD(params, momentum=0.9, **options), params
    if kind == "RMSprop":
        return selective(torch.optim.RMSprop, params, **options), params
    return SelectiveAdamW([{"params": params[:4]}, {"params": params[4:], "selective": False}], **options), params


def halving(opt):
    return torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)


def scaled_gradients(params, step, scale, overflow):
    """Those of a step as backward() gives them for a scaled loss."""
    grads = [grad * scale for grad in make_grads(params, step)]
    if overflow:
        grads[3].view(-1)[7] = torch.inf
    set_grads(params, grads)


def undisturbed(kind):
    """The same run without the steps that overflow; all scales are powers of two, so that bits are comparable."""
    opt, params = make(kind)
    scheduler = halving(opt)
    for step in range(STEPS):
        set_grads(params, make_grads(params, step))
        opt.step()
        scheduler.step()
    return opt, params, scheduler


def assert_as_undisturbed(opt, params, scheduler, kind):
    expected, theirs, plain = undisturbed(kind)
    assert opt.num_selected == BUDGET
    assert opt.skipped_steps == 0  # it never heard of them
    assert_same_optimizer(opt, expected)
    assert scheduler.state_dict()["last_epoch"] == plain.state_dict()["last_epoch"] == STEPS
    for i, (param, other) in enumerate(zip(params, theirs, strict=True)):
        assert_bitwise_equal(param.detach(), other.detach(), f"parameter {i}")


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop"])
def test_a_scaler_by_hand(kind):
    opt, params = make(kind)
    scheduler, scaler = halving(opt), torch.amp.GradScaler("cpu", init_scale=1024.0)
    done = 0
    for call in range(STEPS + len(OVERFLOWS)):
        scaler.scale(torch.ones(()))  # as the loss, or there is no scale yet
        scale = scaler.get_scale()
        scaled_gradients(params, done, scale, call in OVERFLOWS)
        before = picture(opt, params)
        scaler.step(opt)
        scaler.update()
        if scaler.get_scale() < scale:
            after = picture(opt, params)
            for path, leaf in after.items():
                if isinstance(leaf, torch.Tensor) and not path.startswith("grad/"):
                    assert_bitwise_equal(leaf, before[path], path)
            assert after.keys() == before.keys()
        else:
            scheduler.step()
            done += 1
    assert done == STEPS
    assert_as_undisturbed(opt, params, scheduler, kind)


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop"])
def test_a_scaler_of_accelerate(kind):
    """Its wrapper notices the skip by the call that did not come, and holds its scheduler back."""
    accelerate.Accelerator(cpu=True)
    opt, params = make(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    wrapped = AcceleratedOptimizer(opt, scaler=scaler)
    scheduler = AcceleratedScheduler(halving(opt), [wrapped])
    done, skips = 0, []
    for call in range(STEPS + len(OVERFLOWS)):
        scaler.scale(torch.ones(()))
        scaled_gradients(params, done, scaler.get_scale(), call in OVERFLOWS)
        rate = opt.param_groups[0]["lr"]
        wrapped.step()
        scheduler.step()
        wrapped.zero_grad()
        skips.append(wrapped.step_was_skipped)
        assert (opt.param_groups[0]["lr"] == rate) == wrapped.step_was_skipped
        done += not wrapped.step_was_skipped
    assert tuple(call for call, skipped in enumerate(skips) if skipped) == OVERFLOWS
    assert_as_undisturbed(opt, params, scheduler, kind)


class Overflow(transformers.TrainerCallback):
    """Makes a gradient infinite in the given steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_pre_optimizer_step(self, args, state, control, model=None, **given):
        if state.global_step in self.steps:
            model.bert.pooler.dense.weight.grad[0, 0] = torch.inf


def scaled_trainer(folder, *overflows, resume=None):
    """A run of eight steps with a scaler; the Trainer itself clips nothing, or it would have to unscale first."""
    trainer = make_trainer(
        folder, callbacks=[Overflow(overflows), SelectiveCallback(save_at=(0.5,))], max_grad_norm=0.0,
        options={"budget": 80, "train_fully": ()},
    )  # fmt: skip
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_trainer_with_a_scaler(tmp_path):
    """Skipped in its first and in its sixth step: logged, and neither budget nor learning rate move; then resumed."""
    trainer = scaled_trainer(tmp_path, 0, 5)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["selective/skipped_steps"] for entry in logged] == [1, 1, 1, 1, 1, 2, 2, 2]
    assert [entry["selective/selected"] for entry in logged] == [0, 10, 20, 30, 40, 40, 50, 60]
    assert "selective/threshold" not in logged[0]
    rates = [1e-2 * (8 - done) / 8 for done in (0, 0, 1, 2, 3, 4, 4, 5)]
    assert [entry["learning_rate"] for entry in logged] == pytest.approx(rates)
    assert trainer.accelerator.scaler.get_scale() == 256.0
    assert inner(trainer).skipped_steps == 0
    assert SparseDelta.load(tmp_path / "delta-0.50").about.hyperparameters["selected"] == 40
    resumed = scaled_trainer(tmp_path, 0, 5, resume=str(tmp_path / "checkpoint-4"))
    assert_same_model(resumed.model, trainer.model)
    assert_same_optimizer(inner(resumed), inner(trainer))
    assert log_of(resumed) == log_of(trainer)
    assert resumed.accelerator.scaler.state_dict() == trainer.accelerator.scaler.state_dict()
    SparseDelta.load(tmp_path / "checkpoint-8" / "delta").apply_(base := tiny_bert())
    assert_same_model(base, trainer.model)


# ------------------------------------------------------------------ a loop of one's own


class Model(torch.nn.Module):
    """An encoder and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = torch.nn.Linear(12, 40), torch.nn.Linear(40, 2)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def groups(model):
    return [
        {"params": [(f"body.{name}", param) for name, param in model.body.named_parameters()]},
        {"params": [(f"head.{name}", param) for name, param in model.head.named_parameters()], "selective": False},
    ]


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 12, generator=generator) for _ in range(2 * STEPS)]


def by_hand():
    """Two batches per step, in plain torch."""
    model = Model()
    opt = SelectiveAdamW(groups(model), lr=1e-2, budget=BUDGET, total_steps=STEPS)
    scheduler = halving(opt)
    for number, batch in enumerate(batches()):
        (model(batch).square().mean() / 2).backward()
        if number % 2:
            opt.step()
            scheduler.step()
            opt.zero_grad()
    return model, opt


@pytest.mark.parametrize("stop", [None, 3])
def test_a_loop_with_accelerate(stop, tmp_path):
    """Accumulation, a number of steps that is said after `prepare`, a checkpoint of Accelerate, a delta at the end."""

    def prepared():
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = Model()
        opt = SelectiveAdamW(groups(model), lr=1e-2, budget=BUDGET, total_steps="later")
        return accelerator, *accelerator.prepare(model, opt, halving(opt))

    def go(parts, some):
        accelerator, model, opt, scheduler = parts
        for batch in some:
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).square().mean())
                opt.step()
                scheduler.step()
                opt.zero_grad()

    parts = prepared()
    parts[2].optimizer.set_total_steps(STEPS)
    go(parts, batches()[: 2 * (stop or STEPS)])
    if stop is not None:
        parts[0].save_state(str(tmp_path / "state"))
        parts = prepared()
        parts[0].load_state(str(tmp_path / "state"))
        go(parts, batches()[2 * stop :])
    accelerator, model, opt, _ = parts
    expected, plain = by_hand()
    assert_same_model(accelerator.unwrap_model(model), expected)
    assert_same_optimizer(opt.optimizer, plain)
    SparseDelta.from_optimizer(opt, model).save(tmp_path / "delta")
    SparseDelta.load(tmp_path / "delta").apply_(base := Model())
    assert_same_model(base, expected)
