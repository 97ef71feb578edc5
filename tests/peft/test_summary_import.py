"""Summaries of `selective-optimizers` 0.4, written by that package, as deltas."""

import copy

import pytest
import torch
from deltatests import assert_same_model
from selective_optimizers import load_store
from selective_optimizers.wrap import get_selective_optimizer
from selective_peft import DeltaError, SparseDelta
from selective_peft.exchange import import_summary
from torch import nn

from selective_kernels.testing import assert_bitwise_equal

DTYPES = [torch.float32, torch.bfloat16]  # in float16 the toolkit's eps, 1e-8, is 0, and its updates NaN


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Linear(24, 16)
        self.frozen = nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.frozen(self.body(self.norm(self.conv(x)).flatten(1)).tanh()) * self.scale)


def run(path, dtype=torch.float32, method="id3", budget=80):
    """A base, the same one after training by the toolkit, and the summary on the disk."""
    torch.manual_seed(0)
    base = Model().to(dtype)
    model = copy.deepcopy(base)
    names = dict(model.named_parameters())
    body = [param for name, param in names.items() if not name.startswith(("head", "frozen"))]
    groups = [{"params": body}, {"params": list(model.head.parameters()), "choose_all": True}]
    more = {"max_steps": 5} if method == "id3" else {}
    kind = get_selective_optimizer(torch.optim.AdamW, method)
    optimizer = kind(groups, lr=1e-2, budget=budget, verify=False, **more)
    for step in range(5):
        torch.manual_seed(step)
        model(torch.randn(6, 3, 8, dtype=dtype)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert load_store.write_summary_to_disk(str(path), optimizer.get_summary(model))
    return base, model


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_sets_what_the_toolkit_sets(dtype, tmp_path):
    base, trained = run(tmp_path / "summary", dtype)
    before = copy.deepcopy(base.state_dict())
    delta = import_summary(tmp_path / "summary", base, base_model="org/base")
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert delta.summary()["scalars"] > 40
    assert set(delta.summary()["whole"]) >= {"head.weight", "head.bias", "norm.running_mean", "norm.running_var"}
    assert not any(name.startswith("frozen") for name in delta.changes)
    assert (delta.about.method, delta.about.base_model) == ("selective-optimizers", "org/base")
    theirs = copy.deepcopy(base)
    with torch.serialization.safe_globals([load_store.SelectivePeftSummary, torch.Size]):
        summary = torch.load(tmp_path / "summary", weights_only=True)
    load_store.load_weights_from_summary(theirs, summary)
    delta.save(tmp_path / "delta")
    SparseDelta.load(tmp_path / "delta").apply_(base)
    assert_same_model(base, theirs)
    assert_same_model(base, trained)
    for last in ("running_mean", "running_var"):
        assert_bitwise_equal(getattr(base.norm, last), getattr(trained.norm, last))
    delta.revert_(base)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


@pytest.mark.parametrize("method", ["bitfit", "pafi"])
def test_other_methods(method, tmp_path):
    base, trained = run(tmp_path / "summary", method=method, budget=200)
    import_summary(tmp_path / "summary", base).apply_(base)
    assert_same_model(base, trained)


def test_a_head_that_the_base_lacks(tmp_path):
    base, _ = run(tmp_path / "summary")
    delta = import_summary(tmp_path / "summary", base, new={"head.weight", "head.bias"})
    assert {name for name, change in delta.changes.items() if change.is_new} == {"head.weight", "head.bias"}
    with pytest.raises(DeltaError, match=r"body.weight: expected values for all of what the base lacks, got \d+ of"):
        import_summary(tmp_path / "summary", base, new={"body.weight"})
    with pytest.raises(DeltaError, match=r"frozen.bias: expected values for what the base lacks, got none"):
        import_summary(tmp_path / "summary", base, new={"frozen.bias"})


def test_positions_as_a_gpu_gives_them(tmp_path):
    """There `nonzero` lies in memory by columns; the copy to the CPU keeps that."""
    base, trained = run(tmp_path / "summary")
    with torch.serialization.safe_globals([load_store.SelectivePeftSummary, torch.Size]):
        summary = torch.load(tmp_path / "summary", weights_only=True)
    summary.pointers = [None if p is None else p.t().contiguous().t() for p in summary.pointers]
    assert any(p is not None and not p.is_contiguous() for p in summary.pointers)
    load_store.write_summary_to_disk(str(tmp_path / "other"), summary)
    import_summary(tmp_path / "other", base).apply_(base)
    assert_same_model(base, trained)


def test_a_model_that_is_a_batch_normalisation(tmp_path):
    base = nn.BatchNorm1d(3)
    statistics = {name: torch.full((3,), 2.0) for name in ("running_mean", "running_var")}
    summary = load_store.SelectivePeftSummary([None] * 2, [None] * 2, [None] * 2, [statistics], 0)
    assert load_store.write_summary_to_disk(str(tmp_path / "summary"), summary)
    import_summary(tmp_path / "summary", base).apply_(base)
    for name, tensor in statistics.items():
        assert_bitwise_equal(getattr(base, name), tensor)


def edited(tmp_path, edit):
    """A summary with something else in it."""
    base, _ = run(tmp_path / "summary")
    with torch.serialization.safe_globals([load_store.SelectivePeftSummary, torch.Size]):
        summary = torch.load(tmp_path / "summary", weights_only=True)
    at = next(i for i, (name, _) in enumerate(base.named_parameters()) if name == "body.weight")
    edit(summary, at)
    load_store.write_summary_to_disk(str(tmp_path / "edited"), summary)
    return base


def set_in(field, make):
    def edit(summary, at):
        getattr(summary, field)[at] = make(getattr(summary, field)[at])

    return edit


def beyond(places):
    places = places.clone()
    places[-1, 1] = 24
    return places


EDITS = [
    (set_in("pointers", beyond), r"body.weight: expected positions within \[16, 24\]"),
    (set_in("pointers", lambda p: p - 1), r"body.weight: expected positions within \[16, 24\]"),
    (set_in("pointers", lambda p: torch.cat([p[:1], p[:-1]])), "body.weight: expected ascending positions"),
    (set_in("pointers", lambda p: p.flip(0)), "body.weight: expected ascending positions"),
    (set_in("pointers", lambda p: p[:-1].clone()), "body.weight: expected one position for each value"),
    (
        set_in("pointers", lambda p: p.int().float()),
        "body.weight: expected values of torch.float32 and their positions",
    ),
    (set_in("values", lambda v: v.bfloat16()), "body.weight: expected values of torch.float32 and their positions"),
    (set_in("values", lambda v: v * float("nan")), "body.weight: values: expected finite values"),
    (set_in("values", lambda _: None), "body.weight: expected values of torch.float32 and their positions"),
    (set_in("values", lambda _: "text"), "body.weight: expected values of torch.float32 and their positions"),
    (set_in("shapes", lambda _: torch.Size([24, 16])), r"body.weight: expected the shape \[16, 24\]"),
    (lambda summary, _: summary.values.pop(), "expected values, pointers and a shape for each parameter"),
    (lambda summary, _: summary.bn_metadata.pop(), "expected statistics of 1 batch normalisations, got 0"),
    (lambda summary, _: summary.bn_metadata[0].pop("running_var"), "norm.running_var: expected statistics of 4"),
    (lambda summary, _: setattr(summary, "more", 1), "expected a SelectivePeftSummary"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_what_does_not_fit_is_refused(edit, message, tmp_path):
    base = edited(tmp_path, edit)
    with pytest.raises(DeltaError, match=message):
        import_summary(tmp_path / "edited", base)


def test_another_model(tmp_path):
    run(tmp_path / "summary")
    with pytest.raises(DeltaError, match="expected 2 parameters as the model has, got 11"):
        import_summary(tmp_path / "summary", nn.Linear(3, 3))
    with pytest.raises(FileNotFoundError):
        import_summary(tmp_path / "none", nn.Linear(3, 3))
