"""C11, C12: Accelerate and the Trainer drive these like any other optimizer; their checkpoints are bit-exact."""

import pytest
import torch
from harness import make_grads, picture, set_grads
from selective_peft import SelectiveAdamW, SelectiveSGD

from selective_kernels.testing import assert_bitwise_equal, num_threads

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install '.[test]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

BUDGET = 300
STEPS = 8


class Model(torch.nn.Module):
    """An encoder and a head of mixed dtypes, small enough to look at."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(12, 40), torch.nn.Tanh(), torch.nn.Linear(40, 12)).to(dtype)
        self.head = torch.nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.body(x.to(self.body[0].weight.dtype)).float())


def build(model):
    groups = [
        {"params": model.body.named_parameters()},
        {"params": model.head.named_parameters(), "selective": False},
    ]
    return SelectiveAdamW(groups, lr=1e-2, weight_decay=0.1, budget=BUDGET, total_steps=STEPS - 2)


def go(opt, model, first, last):
    params = list(model.parameters())
    for step in range(first, last):
        set_grads(params, make_grads(params, step))
        opt.step()
        opt.zero_grad()


def reference(dtype):
    model = Model(dtype)
    opt = build(model)
    go(opt, model, 0, STEPS)
    return model


def assert_same_model(actual, expected):
    for (name, a), (_, b) in zip(actual.named_parameters(), expected.named_parameters(), strict=True):
        assert_bitwise_equal(a.detach(), b.detach(), name)


@pytest.mark.parametrize("done", [0, 3, STEPS - 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accelerate_prepare_changes_nothing(dtype, done):
    """C11: `prepare()` sends the state through a round trip, before the first step or amid a run."""
    model = Model(dtype)
    opt = build(model)
    go(opt, model, 0, done)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared_model, prepared = accelerator.prepare(model, opt)
    go(prepared, prepared_model, done, STEPS)
    assert_same_model(model, reference(dtype))
    assert opt.num_selected == BUDGET


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accelerate_save_state_and_load_state(dtype, tmp_path):
    """C11: a checkpoint folder of Accelerate, loaded into a new model and optimizer."""
    model = Model(dtype)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared_model, prepared = accelerator.prepare(model, build(model))
    go(prepared, prepared_model, 0, 4)
    accelerator.save_state(str(tmp_path))
    fresh = Model(dtype)
    accelerator = accelerate.Accelerator(cpu=True)
    fresh_model, fresh_opt = accelerator.prepare(fresh, build(fresh))
    accelerator.load_state(str(tmp_path))
    go(fresh_opt, fresh_model, 4, STEPS)
    assert_same_model(fresh, reference(dtype))


def test_accelerate_sees_a_skipped_step():
    """C9, C12: its wrapper asks the optimizer nothing that would hide a skip; the count is there to look at."""
    model = Model(torch.float32)
    accelerator = accelerate.Accelerator(cpu=True)
    _, prepared = accelerator.prepare(model, build(model))
    params = list(model.parameters())
    set_grads(params, make_grads(params, 0))
    params[0].grad[0, 0] = torch.nan
    with pytest.warns(UserWarning, match="skipped"):
        prepared.step()
    assert prepared.optimizer.skipped_steps == 1
    assert not hasattr(prepared.optimizer, "_step_supports_amp_scaling")


def tiny_bert():
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertForSequenceClassification(config)


def examples():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 50, (32, 8), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.sum() % 2} for row in tokens.unbind()
    ]


def trainer(folder, model, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=8, per_device_train_batch_size=4, save_steps=4, seed=3,
        report_to=[], disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=examples(), **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(SelectiveAdamW, {"lr": 1e-2, "weight_decay": 0.1}), (SelectiveSGD, {"lr": 1e-1, "momentum": 0.9})],
)
def test_trainer_resumes_bit_for_bit(kind, options, tmp_path):
    """C11, C12: the Trainer's two groups without names, its clipping, its checkpoint folder."""
    with num_threads(1):
        optimizer = (kind, {**options, "budget": 0.05, "total_steps": 6})
        whole = trainer(tmp_path / "whole", tiny_bert(), optimizer_cls_and_kwargs=optimizer)
        whole.train()
        resumed = trainer(tmp_path / "resumed", tiny_bert(), optimizer_cls_and_kwargs=optimizer)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    opt, again = whole.optimizer.optimizer, resumed.optimizer.optimizer
    assert isinstance(opt, kind)
    assert opt.num_selected == again.num_selected == int(0.05 * sum(p.numel() for p in whole.model.parameters()))
    assert_same_model(resumed.model, whole.model)
    expected = picture(opt, [])
    for path, leaf in picture(again, []).items():
        if isinstance(leaf, torch.Tensor):
            assert_bitwise_equal(leaf, expected[path], path)
    before = dict(tiny_bert().named_parameters())
    changed = sum(int((p.detach() != before[name].detach()).sum()) for name, p in whole.model.named_parameters())
    assert 0 < changed <= opt.num_selected


def test_trainer_with_an_optimizer_of_ones_own(tmp_path):
    """C13: `optimizers=(opt, None)` is how a head trained whole gets there; names stay."""
    model = tiny_bert()
    groups = [
        {"params": model.bert.named_parameters()},
        {"params": model.classifier.named_parameters(), "selective": False},
    ]
    opt = SelectiveAdamW(groups, lr=1e-2, budget=100, total_steps=8)
    trainer(tmp_path, model, optimizers=(opt, None)).train()
    assert opt.num_selected == 100
    assert opt.state_dict()["state"]["selective"]["names"] == [name for name, _ in model.bert.named_parameters()]
    assert all("original" in opt.state[param] for param in model.classifier.parameters())
