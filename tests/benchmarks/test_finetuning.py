"""Ways to fine-tune: each trains what it should and learns, or says why it cannot be run."""

import sys

import peft
import pytest
import torch
from tinyruns import BERT, CPU, LLAMA, ON_CPU, lacking, one_thread  # noqa: F401
from torch import nn

from benchmarks import certificate, finetuning, learning, peft_methods
from benchmarks.finetuning import FULL, METHODS, OURS, methods_for, plan_for
from benchmarks.gate import Mismatch
from benchmarks.learning import Pupil, ready
from benchmarks.suites import CannotRun

SUPER = "Super-Tuning 1 % (all linear)"


def made(work, method, model=None):
    return ready(method, model or work.model(torch.float32, CPU), work, work.batches(2), CPU, 1)


@pytest.mark.parametrize("work", [BERT, LLAMA], ids=lambda work: work.name)
@pytest.mark.parametrize("method", ON_CPU)
def test_every_method_learns_or_says_why_not(work, method):
    found = made(work, method)
    if method == SUPER and lacking("SupertuningConfig"):
        assert found == f"peft {peft.__version__} has no SupertuningConfig"
    elif (work.name, method) == ("tiny-llama", finetuning.BITFIT):
        assert found == "the model has no biases"
    else:
        assert isinstance(found, Pupil)
        assert found.made > 0
        assert found.first_step > 0


def test_counts_of_scalars_by_hand():
    """BERT of width 32 and 2 layers: 6 linear layers each, the pooler, and a head of 2 x 32 + 2, trained by all."""
    head, square, wide = 66, 32 * 32, 32 * 64
    counts = {method: made(BERT, method) for method in ON_CPU if method != SUPER or not lacking("SupertuningConfig")}
    expected = {method: pupil.trainee.fitted.expected for method, pupil in counts.items()}
    assert expected["LoRA r=8 (q, v)"] == head + 2 * 2 * 8 * (32 + 32)
    assert expected["LoRA r=8 (all linear)"] == head + 8 * (9 * (32 + 32) + 4 * (32 + 64))
    assert expected["SHiRA r=8 (all linear)"] == expected["LoRA r=8 (all linear)"]
    assert expected.get(SUPER) in (None, head + 9 * int(0.01 * square) + 4 * int(0.01 * wide))
    biases = 2 * (4 * 32 + 64 + 32) + 32 + (1 + 2 * 2) * 32  # linear layers, the pooler, layer norms
    assert expected["BitFit (ours)"] == head + biases
    assert expected["PaFi (ours)"] == head + 1000
    assert expected["dense masking"] == expected["ours"] == head + 500
    assert expected["ours, select_every=15"] == head + 514
    assert expected["selective-optimizers"] == head + 1
    assert expected[FULL] == sum(param.numel() for param in BERT.make().parameters())


@pytest.mark.parametrize("method", ["LoRA r=8 (q, v)", "SHiRA r=8 (all linear)"])
def test_adapters_share_weights_and_change_none(method):
    base = BERT.model(torch.float32, CPU)
    before = [param.detach().clone() for param in base.parameters()]
    pupil = made(BERT, method, base)
    addresses = {param.data_ptr() for param in base.parameters()}
    mine = {param.data_ptr() for param in pupil.trainee.fitted.params}
    assert len(addresses & mine) == len(addresses)
    assert all(map(torch.equal, before, base.parameters()))


@pytest.mark.parametrize("method", [FULL, OURS, "dense masking"])
def test_other_methods_train_a_copy(method):
    base = BERT.model(torch.float32, CPU)
    before = [param.detach().clone() for param in base.parameters()]
    pupil = made(BERT, method, base)
    assert all(map(torch.equal, before, base.parameters()))
    assert not all(map(torch.equal, before, pupil.trainee.fitted.params))


def test_bitfit_computes_gradients_of_biases_and_head_only():
    fitted = made(BERT, finetuning.BITFIT).trainee.fitted
    named = [name for name, param in fitted.model.named_parameters() if param.requires_grad]
    assert named
    assert all(name.endswith(".bias") or name.startswith("classifier.") for name in named)


@pytest.mark.parametrize(
    ("package", "method"),
    [
        ("peft", "LoRA r=8 (q, v)"),
        ("selective_optimizers.wrap", finetuning.TOOLKIT),
        ("bitsandbytes", "AdamW 8-bit"),
    ],
)
def test_a_missing_package_is_a_reason(package, method, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert "cannot be imported" in made(BERT, method)


def test_a_configuration_that_peft_lacks_is_a_reason(monkeypatch):
    monkeypatch.delattr(peft, "ShiraConfig")
    assert made(BERT, "SHiRA r=8 (all linear)") == f"peft {peft.__version__} has no ShiraConfig"


def test_wrong_counts_are_found(monkeypatch):
    right = METHODS["LoRA r=8 (q, v)"]

    def wrong(model, work, plan):
        fitted = right(model, work, plan)
        fitted.expected += 1
        return fitted

    monkeypatch.setitem(METHODS, "wrong", wrong)
    with pytest.raises(Mismatch, match="wrong: expected 2115 trained scalars, got 2114"):
        made(BERT, "wrong")


def test_a_method_that_does_not_learn_is_found(monkeypatch):
    monkeypatch.setattr(finetuning, "DENSE_LR", 0.0)
    with pytest.raises(Mismatch, match="expected the loss to fall in 3 steps"):
        made(BERT, FULL)


@pytest.mark.parametrize("work", [BERT, LLAMA], ids=lambda work: work.name)
@pytest.mark.parametrize("limit", [0, 10**9])
def test_ours_is_checked_by_reference_or_certificate(work, limit, monkeypatch):
    calls = []
    certify = certificate.certify
    monkeypatch.setattr(certificate, "certify", lambda *given: calls.append(1) or certify(*given))
    monkeypatch.setattr(learning, "REFERENCE_LIMIT", limit)
    model = work.model(torch.float32, CPU)
    assert learning.check_ours(model, work, work.batches(2)) == plan_for(model, 0).budget == 1000
    assert bool(calls) == (limit == 0)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_wrong_selection_is_found(limit, monkeypatch):
    right = finetuning.ours

    def other(named, head, plan, select_every=1, backend="auto"):
        if backend == "cpu":
            plan = finetuning.Plan(plan.budget, plan.done - 1)
        return right(named, head, plan, select_every, backend)

    monkeypatch.setattr(finetuning, "ours", other)
    monkeypatch.setattr(learning, "REFERENCE_LIMIT", limit)
    with pytest.raises(Mismatch):
        learning.check_ours(BERT.model(torch.float32, CPU), BERT, BERT.batches(2))


def test_methods_are_chosen_by_words():
    assert methods_for("cpu") == [name for name in METHODS if name != "AdamW 8-bit"]
    assert "AdamW 8-bit" in methods_for("cuda")
    assert methods_for("cpu", ["lora"]) == [FULL, "LoRA r=8 (q, v)", "LoRA r=8 (all linear)"]
    assert methods_for("cpu", ["nothing"]) == [FULL]


def test_the_head_and_the_output_are_no_targets():
    assert not [name for name in peft_methods.targets(BERT.make(), BERT) if name.startswith("classifier")]
    assert "lm_head" not in peft_methods.targets(LLAMA.make(), LLAMA)
    assert len(peft_methods.targets(LLAMA.make(), LLAMA)) == 2 * 7
    assert len(peft_methods.targets(LLAMA.make(), LLAMA, LLAMA.query_value)) == 2 * 2


def test_models_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(learning.room, "available_bytes", lambda: 35 * 1000)
    learning.check_room([FULL, OURS], 875, 4, CPU)  # 3 + 1 + 6 times 3,500 bytes
    with pytest.raises(CannotRun, match=r"needs .* name fewer methods with --methods"):
        learning.check_room([FULL, OURS], 876, 4, CPU)


def test_state_of_dense_masking_counts_the_mask():
    fitted = made(BERT, "dense masking").trainee.fitted
    scalars = sum(param.numel() for param in fitted.params)
    assert fitted.state_bytes() == pytest.approx(8 * scalars + (scalars - 66), rel=0.01)
    ours = made(BERT, OURS).trainee.fitted
    assert 20 * 500 <= ours.state_bytes() <= 24 * 520 + 8 * 66 + 2000


def test_a_lesson_is_a_part_of_a_batch():
    batch = {"input_ids": torch.arange(120).view(3, 40), "labels": torch.tensor([0, 1, 0])}
    part = learning.lesson(batch)
    assert torch.equal(part["input_ids"], batch["input_ids"][:2, :32])
    assert part["labels"].tolist() == [0, 1]


def test_gradients_that_are_not_there_count_as_zero():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return type("Out", (), {"loss": (self.used * x).sum()})

    model = Partly()
    used, unused = learning._gradients(model, list(model.parameters()), {"x": torch.tensor([2.0, 3.0])})
    assert used.tolist() == [2.0, 3.0]
    assert unused.tolist() == [0.0] * 3
