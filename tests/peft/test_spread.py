"""Models over several devices: whole runs give the same bits as on one (the places are pretended, see `testing`)."""

import io
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from elsewhere import AWAY, two_devices
from harness import KINDS, SHAPES, assert_same_picture, make_grads, make_params, picture, set_grads
from selective_peft import D3, Random, SelectiveAdamW, SelectiveSGD, SmallestMagnitude, Snip, selective
from selective_peft.updates import Updates
from torch.nn import Parameter

from selective_kernels import dispatch
from selective_kernels.testing import DEALS, pretended_places

DTYPES = {
    "fp32": [torch.float32], "bf16": [torch.bfloat16], "mixed": [torch.float32, torch.bfloat16, torch.float16],
}  # fmt: skip
STEPS, END, BUDGET = 6, 9, 600


def own(name, param, grad):
    """A score of one's own, with ties."""
    return (grad.float().abs() * 4).round()


SCORES = {"d3": D3(exp=2.0, eps=1.0), "gradient": D3(exp=0.0), "product": Snip(), "magnitude": SmallestMagnitude(),
          "random": Random(seed=3), "own": own}  # fmt: skip
OPTIONS = {
    "plain": {},
    "clipped": {"max_grad_norm": 0.5},
    "per entry": {"bias_correction": "per_entry", "select_every": 2},
    "each tensor": {"scope": "tensor"},
    "static": {"strategy": "static"},
}


def model(mix):
    dtypes = DTYPES[mix]
    return [Parameter(p.detach().to(dtypes[i % len(dtypes)])) for i, p in enumerate(make_params(SHAPES, seed=1))]


def make(params, kind, backend, **options):
    """Three groups, the last one dense, with options that differ."""
    named = [(f"layer.{i}", param) for i, param in enumerate(params)]
    groups = [
        {"params": named[:3], "lr": 3e-3},
        {"params": [*named[3:6], *named[7:]], "weight_decay": 0.3},
        {"params": named[6:7], "selective": False},
    ]
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    options = {"budget": BUDGET, "total_steps": STEPS, "lr": 1e-2, "backend": backend, **momentum, **options}
    return KINDS[kind](groups, **options)


def go(opt, params, first, last):
    """Some gradients are missing at times, one is not finite in a selecting and in a later step."""
    for step in range(first, last):
        grads = make_grads(params, step)
        if step in (4, 7):
            grads[3].fill_(float("inf"))
        missing = [param.numel() in (35, 294) and step % 3 == 1 for param in params]
        set_grads(params, [None if gone else grad for gone, grad in zip(missing, grads, strict=True)])
        opt.step()


def run(kind, mix, deal, backend, stop=None, **options):
    """A picture of a whole run; `stop`: goes through a file after that step, onto a model that is not dealt out."""
    params = model(mix)
    with nullcontext() if deal is None else pretended_places(params, DEALS[deal]):
        opt = make(params, kind, backend, **options)
        go(opt, params, 0, END if stop is None else stop)
        assert opt._table.spread == (deal is not None)
        if stop is None:
            return picture(opt, params)
        file = io.BytesIO()
        torch.save({"model": [param.detach() for param in params], "optimizer": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    params = [Parameter(value) for value in saved["model"]]
    with pretended_places(params, DEALS["in turn"]) if deal is None else nullcontext():
        opt = make(params, kind, backend, **options)
        opt.load_state_dict(saved["optimizer"])
        go(opt, params, stop, END)
        assert opt._table.spread == (deal is None)
        return picture(opt, params)


@pytest.mark.filterwarnings("ignore:step .. skipped")
@pytest.mark.parametrize("deal", sorted(DEALS))
@pytest.mark.parametrize("mix", sorted(DTYPES))
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("deferring", [False, True])
def test_a_run_over_several_places(deferring, kind, mix, deal, backend, monkeypatch):
    """C4, C6, C9: selections, parameters and state; skipped steps, too, and if nobody waits to know of them."""
    expected = run(kind, mix, None, backend)
    if deferring:
        monkeypatch.setattr(dispatch, "defers", lambda device, backend: True)
    assert_same_picture(run(kind, mix, deal, backend), expected)
    assert expected["/state/selective/skipped_steps"] == 2


@pytest.mark.filterwarnings("ignore:step .. skipped")
@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.parametrize("options", sorted(OPTIONS))
def test_scores_and_options(options, score, backend):
    given = {**OPTIONS[options], "score": SCORES[score]}
    assert_same_picture(
        run("AdamW", "mixed", "in turn", backend, **given), run("AdamW", "mixed", None, backend, **given)
    )


@pytest.mark.filterwarnings("ignore:step .. skipped")
@pytest.mark.parametrize("deal", [None, "three places"])
@pytest.mark.parametrize("stop", [1, 3, 7])
def test_c11_a_run_goes_on_with_other_places(stop, deal):
    """C11: from several places to one, and the other way, bit for bit."""
    options = {"bias_correction": "per_entry"}
    expected = run("AdamW", "mixed", None, "cpu", **options)
    assert_same_picture(run("AdamW", "mixed", deal, "cpu", stop, **options), expected)


@pytest.mark.filterwarnings("ignore:strategy 'repeat'")
@pytest.mark.parametrize("options", [{"strategy": "repeat"}, {"method": "diff", "method_kwargs": {"warmup_steps": 2}}])
def test_methods_with_dense_state(options):
    pictures = []
    for deal in (None, "halves"):
        params = model("fp32")
        with nullcontext() if deal is None else pretended_places(params, DEALS[deal]):
            opt = SelectiveAdamW(params, lr=1e-2, budget=100, total_steps=STEPS, **options)
            for step in range(4):
                set_grads(params, make_grads(params, step))
                opt.step()
            assert opt._table.spread == (deal is not None)
            pictures.append(picture(opt, params))
    assert_same_picture(*pictures)


def test_other_optimizers_and_the_record_of_a_run():
    """`selective`, and reading the changed scalars back."""
    records = []
    for deal in (None, "home comes late"):
        params = model("mixed")
        with nullcontext() if deal is None else pretended_places(params, DEALS[deal]):
            opt = selective(torch.optim.RMSprop, params, lr=1e-3, budget=BUDGET, total_steps=STEPS)
            for step in range(STEPS):
                set_grads(params, make_grads(params, step))
                opt.step()
            record = Updates.from_optimizer(opt)
        assert opt._table.spread == (deal is not None)
        records.append({name: getattr(record, name) for name in ("offsets", "before", "after", "chosen")})
    assert_same_picture(*records)


def test_c14_a_forced_backend_is_refused_before_anything_is_changed(monkeypatch):
    params = model("fp32")
    set_grads(params, make_grads(params, 0))
    before = [param.detach().clone() for param in params]
    opt = SelectiveAdamW(params, lr=1e-2, budget=9, total_steps=3, backend="cpu")
    monkeypatch.setattr(dispatch, "unavailable", lambda backend, device: "its kernels are not there")
    with (
        pretended_places(params, DEALS["halves"]),
        pytest.raises(RuntimeError, match=r"^params: expected devices that one backend serves, got tensors on cpu"),
    ):
        opt.step()
    assert opt.num_selected == 0
    assert opt.budget is None
    assert all(map(torch.equal, params, before))


MAKERS = {
    **{
        f"{options}, {score}": partial(SelectiveAdamW, score=SCORES[score], **OPTIONS[options])
        for options in OPTIONS
        for score in ("d3", "magnitude", "random", "own")
    },
    "repeat": partial(SelectiveSGD, momentum=0.9, strategy="repeat", max_grad_norm=0.5),
    "warm-up": partial(SelectiveAdamW, method="diff", method_kwargs={"warmup_steps": 2}),
    "another optimizer": partial(selective, torch.optim.RMSprop),
}


@pytest.mark.filterwarnings("ignore:strategy 'repeat'")
@pytest.mark.parametrize("maker", sorted(MAKERS))
def test_devices_are_not_mixed(maker):
    """Tensors of a second device, which refuse to be computed with together with the CPU's."""
    dtypes = [torch.float32] if maker in ("repeat", "warm-up") else DTYPES["mixed"]
    pictures = []
    for devices in (["cpu"], ["cpu", AWAY]):
        with nullcontext() if len(devices) == 1 else two_devices():
            params = [
                param.detach().to(devices[i % len(devices)], dtypes[i % len(dtypes)]).requires_grad_()
                for i, param in enumerate(model("fp32"))
            ]
            opt = MAKERS[maker](params=params, lr=1e-2, budget=BUDGET, total_steps=STEPS)
            for step in range(END):
                for i, (param, grad) in enumerate(zip(params, make_grads(params, step), strict=True)):
                    param.grad = grad.to(devices[i % len(devices)])
                opt.step()
            assert opt._table.spread == (len(devices) > 1)
            assert opt.num_selected == BUDGET
            pictures.append([param.cpu() for param in params])
            pictures[-1] += [opt._selection.index.valid, *opt._selection.arrays.values()]
    for i, (mine, theirs) in enumerate(zip(*pictures, strict=True)):
        assert torch.equal(mine, theirs), f"result {i}"
