"""Each method through the command, and which options go with which method."""

import pytest
import torch
from commands import changed, put_in, report_of, train
from selective_peft import SelectiveAdamW, SparseDelta, loading, making, methods, results
from selective_peft.cli import main
from selective_peft.options import D3_METHODS, GROWING

BUDGET = 300
HEAD = {"classifier.weight", "classifier.bias"}
CLASSES = ["fresh", "rotten"]


def base(model):
    return loading.load(str(model), 0, CLASSES)


def keep(monkeypatch):
    """The model that the command trains, once it has loaded it."""
    found = []

    def loads(*arguments):
        found.append(load(*arguments))
        return found[-1]

    load = loading.load
    monkeypatch.setattr(loading, "load", loads)
    return found


@pytest.mark.parametrize("method", methods())
def test_every_method(method, tiny_model, review_file, tmp_path, monkeypatch):
    """What is saved is all that changed, within the budget; put into the base model it gives the trained model."""
    trained = keep(monkeypatch)
    output = tmp_path / "out"
    free = method in ("bitfit", "full")
    assert train(tiny_model, review_file, output, method=method, budget=None if free else BUDGET) == 0
    report = report_of(output)
    assert report["method"] == method
    assert report["score"] == ({"exp": 2.0, "eps": 1.0} if method in D3_METHODS else None)
    model = trained[0].model
    again = put_in(base(tiny_model).model, output / "delta")
    for (name, param), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(param.cpu(), other), name
    before = dict(base(tiny_model).model.named_parameters())
    body = {name: param for name, param in model.named_parameters() if name not in HEAD}
    differing = {name: int((param != before[name]).sum()) for name, param in body.items()}
    sparse, whole = changed(output / "delta")
    assert whole >= HEAD
    if method == "full":
        assert sum(differing.values()) > 0.5 * sum(param.numel() for param in body.values())
        assert not sparse
    elif method == "bitfit":
        assert {name for name, count in differing.items() if count} <= {name for name in body if "bias" in name}
        assert report["selected"] == sum(p.numel() for name, p in body.items() if name.endswith("bias"))
    elif method == "d3-repeat":
        assert BUDGET <= sum(differing.values()) <= 6 * BUDGET
        assert sum(map(len, sparse.values())) == sum(differing.values())
        assert whole == HEAD
    else:
        assert report["selected"] == BUDGET
        assert sum(report["selected_per_step"]) == BUDGET
        assert sum(map(len, sparse.values())) == BUDGET
        assert 0 < sum(differing.values()) <= BUDGET
    if method in GROWING:
        assert report["selected_per_step"] == [BUDGET // 6] * 6
    about = SparseDelta.load(output / "delta").about
    assert about.method == method
    assert about.base_model == tiny_model.name
    told = {"task": "classification", "base": "full", "seed": 0, "lr": 0.01, "steps": 5 if method == "diff" else 6}
    assert told.items() <= about.hyperparameters.items()


def selected_by(output):
    return {(name, i) for name, found in changed(output / "delta")[0].items() for i in found}


def test_random_follows_the_seed(tiny_model, review_file, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(tiny_model, review_file, tmp_path / name, method="random", seed=seed, steps=1) == 0
    first, same, other = (selected_by(tmp_path / name) for name in "abc")
    assert first == same
    assert len(first & other) < 0.2 * BUDGET


@pytest.mark.parametrize("kind", ["label", "expected"])
def test_fish_scores_are_of_the_training_rows(kind, tiny_model, review_file, tmp_path, monkeypatch, capsys):
    """Exactly the scalars with the largest Fisher information on the drawn rows."""
    seen = []
    scores = making.fisher_scores

    def spy(model, loader, samples, sample_type):
        seen.append((samples, sample_type, scores(model, loader, samples, sample_type)))
        return seen[-1][2]

    monkeypatch.setattr(making, "fisher_scores", spy)
    output = tmp_path / "out"
    more = ["--fish-samples", "24", "--fish-type", kind]
    assert train(tiny_model, review_file, output, *more, method="fish") == 0
    samples, sample_type, found = seen[0]
    assert (samples, sample_type) == (24, kind)
    body = [
        (value, name, i)
        for name, score in found.items()
        if name not in HEAD
        for i, value in enumerate(score.flatten().tolist())
    ]
    best = {(name, i) for _, name, i in sorted(body, key=lambda entry: -entry[0])[:BUDGET]}
    assert selected_by(output) == best
    assert report_of(output)["options"]["fish_samples"] == 24


def test_diff_from_a_tuned_model(tiny_model, review_file, tmp_path, monkeypatch):
    """Just the scalars that differ most from the tuned model are trained."""
    model = base(tiny_model).model
    generator = torch.Generator().manual_seed(0)
    altered = {}
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name not in HEAD:
                mask = torch.rand(param.shape, generator=generator) < 0.02
                param[mask] += 1.0
                altered[name] = mask
    tuned = tmp_path / "tuned"
    model.save_pretrained(tuned)
    base(tiny_model).tokenizer.save_pretrained(tuned)
    count = sum(int(mask.sum()) for mask in altered.values())
    output = tmp_path / "out"
    assert train(tiny_model, review_file, output, method="diff", budget=count, diff_tuned=str(tuned)) == 0
    sparse, _ = changed(output / "delta")
    for name, mask in altered.items():
        assert sparse.get(name, []) == mask.reshape(-1).nonzero().reshape(-1).tolist(), name
    assert report_of(output)["options"]["diff_tuned"] == str(tuned)


def test_diff_refuses_what_is_no_tuned_model(tiny_model, review_file, tmp_path, capsys):
    missing = str(tmp_path / "none")
    assert train(tiny_model, review_file, tmp_path / "a", method="diff", diff_tuned=missing) == 2
    assert f"--diff-tuned {missing}: cannot be loaded" in capsys.readouterr().err
    assert train(tiny_model, review_file, tmp_path / "b", method="diff", diff_tuned=str(tiny_model), base="lora") == 2
    assert "expected --base full with it, got lora" in capsys.readouterr().err


def test_a_budget_that_is_not_spent_is_said(tiny_model, review_file, tmp_path, capsys):
    """Fresh LoRA under SNIP: one factor of each product is zero, so no score is above zero, ever."""
    with pytest.warns(UserWarning, match="none of the budget of 100 was selected in 6 steps"):
        assert train(tiny_model, review_file, tmp_path / "out", method="snip", base="lora", budget=100) == 0
    assert "--budget: 0 of 100 scalars were selected" in " ".join(capsys.readouterr().out.split())


def test_diff_warms_up_for_a_tenth_of_the_steps(tiny_model, review_file, tmp_path):
    assert train(tiny_model, review_file, tmp_path / "a", method="diff", steps=20) == 0
    report = report_of(tmp_path / "a")
    assert report["options"]["diff_warmup"] == 2
    assert train(tiny_model, review_file, tmp_path / "b", method="diff", steps=20, diff_warmup=5) == 0
    assert report_of(tmp_path / "b")["options"]["diff_warmup"] == 5
    assert selected_by(tmp_path / "a") != selected_by(tmp_path / "b")


def test_scope_by_tensor(tiny_model, review_file, tmp_path):
    """Each tensor has a part of the budget in proportion to its size."""
    assert train(tiny_model, review_file, tmp_path / "out", scope="tensor", budget=0.1) == 0
    sparse, _ = changed(tmp_path / "out" / "delta")
    params = {name: p for name, p in base(tiny_model).model.named_parameters() if name not in HEAD}
    for name, param in params.items():
        if param.grad is None and "embeddings" in name:
            continue  # words that no text has are not selectable
        assert abs(len(sparse.get(name, ())) - 0.1 * param.numel()) <= 1, name


def test_patterns(tiny_model, review_file, tmp_path):
    output = tmp_path / "out"
    more = ["--train-fully", "LayerNorm.bias", "--exclude", "*.embeddings.*", "pooler", "--weight-decay", "0.1"]
    assert train(tiny_model, review_file, output, *more) == 1 * 2  # one of them is in both: which is meant?
    more[1] = "encoder.layer.1.output.LayerNorm.bias"
    assert train(tiny_model, review_file, output, *more) == 0
    (sparse, replaced), report = changed(output / "delta"), report_of(output)
    whole = HEAD | {"bert.encoder.layer.1.output.LayerNorm.bias"}
    assert set(report["whole_parameters"]) == whole
    assert whole == replaced
    assert not [name for name in sparse if "embeddings" in name or "pooler" in name]
    assert report["trained_whole"] == 66 + 32
    assert report["selected"] == BUDGET


# what is given besides a good run, and what the message says
REFUSED = {
    "budget for bitfit": (["--method", "bitfit", "--budget", "5"], "--budget: expected --method d3-repeat or"),
    "budget for full": (["--method", "full", "--budget", "5"], "with it, got full"),
    "scope for full": (["--method", "full", "--scope", "tensor"], "--scope: expected --method "),
    "exp for pafi": (["--method", "pafi", "--score-exp", "1"], "--score-exp: expected --method d3-repeat or"),
    "eps for random": (["--method", "random", "--score-eps", "1"], "--score-eps: expected --method d3-repeat"),
    "fish samples": (["--fish-samples", "5"], "--fish-samples: expected --method fish with it, got id3"),
    "fish type": (["--fish-type", "label"], "--fish-type: expected --method fish with it, got id3"),
    "schedule": (["--method", "pafi", "--schedule", "cosine"], "--schedule: expected --method "),
    "every": (["--method", "full", "--select-every", "2"], "--select-every: expected --method "),
    "warm-up": (["--diff-warmup", "5"], "--diff-warmup: expected --method diff with it, got id3"),
    "long warm-up": (["--method", "diff", "--diff-warmup", "6"], "--diff-warmup 6: expected fewer than the 6 steps"),
    "static sizes": (["--method", "pafi", "--save-at", "0.5"], "--save-at: expected --method gradient or id3 or"),
    "pattern": (["--exclude", "nothing.like.it"], "--exclude: expected patterns that fit a parameter, got 'nothing"),
    "whole pattern": (["--train-fully", "x"], "--train-fully: expected patterns that fit a parameter, got 'x'"),
    "nothing left": (["--exclude", "bert"], "expected parameters to select from"),
    "budget beyond patterns": (["--exclude", "encoder", "embeddings", "--budget", "9999"], "expected 1 to 1056 "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tiny_model, review_file, tmp_path, capsys):
    more, message = REFUSED[name]
    assert train(tiny_model, review_file, tmp_path / "out", *more, budget=None) == 2
    error = capsys.readouterr().err
    assert error.startswith("selective-peft: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [["--method", "magic"], ["--fish-samples", "0"], ["--scope", "layer"]])
def test_usage(given, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--model", "m", "--data", "d.csv", "--output", "o", *given])
    assert caught.value.code == 2
    assert given[0] in capsys.readouterr().err


def test_the_list_of_methods(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name, line in methods().items():
        row = next(row for row in printed.splitlines() if name in row.split())
        assert line in row


def test_full_needs_no_list_of_offsets(tiny_model, review_file, tmp_path):
    """Whole tensors."""
    assert train(tiny_model, review_file, tmp_path / "out", method="full", budget=None) == 0
    assert changed(tmp_path / "out" / "delta") == ({}, {name for name, _ in base(tiny_model).model.named_parameters()})


def test_changed_bits_are_found():
    """-0 is another value than 0, and what is not selected any more may have changed."""
    layer = torch.nn.Linear(3, 2)
    first = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    groups = [{"params": [("weight", layer.weight)]}, {"params": [("bias", layer.bias)], "selective": False}]
    optimizer = SelectiveAdamW(groups, budget=1, total_steps=1, method="d3-repeat")
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, -0.0, 1.0], [0.0, 0.0, 0.0]]))
        layer.bias.copy_(torch.tensor([0.0, 2.0]))
    delta = results.trained_delta(layer, optimizer, frozenset({"bias"}), frozenset(), first, {"task": "none"})
    assert delta.changes["weight"].indices.tolist() == [1, 2]
    assert [str(value) for value in delta.changes["weight"].values.tolist()] == ["-0.0", "1.0"]
    assert delta.changes["weight"].originals.tolist() == [0.0, 0.0]
    assert delta.changes["bias"].is_whole  # whatever the base has there: it may be a head that is drawn anew
    assert (delta.about.method, delta.about.hyperparameters["task"]) == ("d3-repeat", "none")


def test_values_that_no_delta_holds():
    layer = torch.nn.Linear(3, 2)
    optimizer = SelectiveAdamW(layer.named_parameters(), budget=2, total_steps=1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.weight.fill_(torch.inf)
        layer.bias.fill_(torch.inf)
    with pytest.raises(RuntimeError, match=r"training ended with values that no delta holds: .*inf or NaN"):
        results.trained_delta(layer, optimizer, frozenset(), frozenset(), None, {})
