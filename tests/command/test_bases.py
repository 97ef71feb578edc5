"""LoRA and bottleneck adapters through the command: only they are trained, and their files bring the model back."""

import json

import pytest
import torch
from commands import changed, put_in, report_of, train
from peft import PeftModel
from reviewfiles import write_csv, write_jsonl
from safetensors import safe_open
from safetensors.torch import load_file
from selective_peft import loading, tasks
from selective_peft.adapters import add_adapters
from tinymodels import MODELS, tagged, written

CLASSES = ["fresh", "rotten"]


@pytest.fixture
def trained(monkeypatch):
    """The model that the command trains, after its base is in place."""
    from selective_peft import training

    found = []
    monkeypatch.setattr(training.making, "groups_of", spied(training.making.groups_of, found))
    return found


def spied(groups_of, found):
    def groups(loaded, options):
        found.append(loaded)
        return groups_of(loaded, options)

    return groups


def fresh(model, task="classification", classes=CLASSES):
    return loading.load(str(model), 0, classes, tasks.TASKS[task].kind)


def body_is_untouched(loaded, base):
    """Every weight of the base model is there, bit for bit, but for the head that the base has in common."""
    found = {name.replace("base_layer.", ""): param for name, param in loaded.model.named_parameters()}
    for name, param in base.model.named_parameters():
        if name not in base.head:
            mine = next(value for key, value in found.items() if key == name or key.endswith(f".{name}"))
            assert torch.equal(mine, param), name


def sample(loaded):
    tokens = torch.arange(12).reshape(2, 6) % len(loaded.tokenizer)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("method", ["id3", "full"])
def test_lora(method, tiny_model, review_file, tmp_path, trained):
    """The adapter is PEFT's own: it loads as any other, and gives the same logits."""
    output = tmp_path / "out"
    budget = 50 if method == "id3" else None
    assert train(tiny_model, review_file, output, base="lora", rank=4, method=method, budget=budget) == 0
    report, loaded = report_of(output), trained[0]
    body_is_untouched(loaded, fresh(tiny_model))
    matrices = [name for name, p in loaded.model.named_parameters() if ".lora_" in name and p.requires_grad]
    assert len(matrices) == 2 * 2 * 2  # A and B of query and value of two layers
    assert report["base"] == "lora"
    if method == "id3":
        assert report["selected"] == 50
        assert report["trained_whole"] == 66
    settings = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (4, 8, "SEQ_CLS")
    again = PeftModel.from_pretrained(fresh(tiny_model).model, output / "adapter")
    batch = sample(loaded)
    assert torch.equal(logits(again, batch), logits(loaded.model, batch))
    assert not torch.equal(logits(again, batch), logits(fresh(tiny_model).model, batch))
    sparse, whole = changed(output / "delta")
    assert all(".lora_" in name for name in sparse)
    assert all(".modules_to_save." in name or method == "full" for name in whole)


def test_a_share_is_of_the_adapter(tiny_model, review_file, tmp_path):
    assert train(tiny_model, review_file, tmp_path / "out", base="lora", rank=2, budget=0.25) == 0
    assert report_of(tmp_path / "out")["selected"] == 0.25 * 2 * 2 * 2 * 2 * 32


def test_targets_of_lora(tiny_model, review_file, tmp_path, trained, capsys):
    more = ["--target-modules", "key", "dense", "--lora-alpha", "3"]
    assert train(tiny_model, review_file, tmp_path / "a", *more, base="lora", budget=50) == 0
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in trained[0].added}
    assert names == {"key", "dense"}
    assert json.loads((tmp_path / "a" / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 3
    assert train(tiny_model, review_file, tmp_path / "b", "--target-modules", "all-linear", base="lora", budget=50) == 0
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in trained[1].added}
    assert names == {"key", "dense", "query", "value"}
    assert train(tiny_model, review_file, tmp_path / "c", "--target-modules", "nowhere", base="lora") == 2
    assert "--target-modules: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "task"), [("bert", "token"), ("t5", "seq2seq"), ("llama", "causal"), ("gpt2", "causal")]
)
@pytest.mark.parametrize("base", ["lora", "houlsby"])
def test_other_tasks(base, model, task, tmp_path, trained):
    folder = MODELS[model](tmp_path / model)
    file = (
        write_jsonl(tmp_path / "a.jsonl", tagged(30)) if task == "token" else write_csv(tmp_path / "a.csv", written(30))
    )
    output = tmp_path / "out"
    assert train(folder, file, output, "--task", task, base=base, budget=40, steps=3) == 0
    classes = ["B-LOC", "B-PER", "O"] if task == "token" else None
    loaded, plain = trained[0], fresh(folder, task, classes)
    body_is_untouched(loaded, plain)
    assert report_of(output)["trained_whole"] == (3 * 32 + 3 if task == "token" else 0)
    assert report_of(output)["selected"] == 40
    if base == "lora":
        again = PeftModel.from_pretrained(plain.model, output / "adapter")
    else:
        again = with_adapters(plain.model, output, "houlsby", 64)
    batch = sample(loaded)
    if task == "seq2seq":
        batch["labels"] = batch["input_ids"]
    assert torch.equal(logits(again, batch), logits(loaded.model, batch))


@torch.no_grad()
def with_adapters(model, output, placement, size):
    """As docs/command.md does it."""
    add_adapters(model, placement, size)
    params, values = dict(model.named_parameters()), load_file(output / "adapter.safetensors")
    for name, value in values.items():
        params[name].copy_(value)
    return model


@pytest.mark.parametrize(("base", "count"), [("pfeiffer", 2), ("houlsby", 4)])
def test_bottlenecks(base, count, tiny_model, review_file, tmp_path, trained):
    output = tmp_path / "out"
    assert train(tiny_model, review_file, output, base=base, adapter_size=4, budget=50) == 0
    report, loaded = report_of(output), trained[0]
    body_is_untouched(loaded, fresh(tiny_model))
    assert sum(p.numel() for name, p in loaded.model.named_parameters() if name in loaded.added) == count * (
        2 * 4 * 32 + 36
    )
    assert (report["base"], report["selected"], report["trained_whole"]) == (base, 50, 66)
    batch = sample(loaded)
    again = with_adapters(fresh(tiny_model).model, output, base, 4)
    assert torch.equal(logits(again, batch), logits(loaded.model, batch))
    with safe_open(output / "adapter.safetensors", "pt") as file:
        about = file.metadata()
    told = {"format": "selective-peft adapter", "version": "1", "placement": base, "size": "4"}
    assert about == {**told, "base_model": tiny_model.name}
    start = fresh(tiny_model).model
    add_adapters(start, base, 4, seed=0)
    put_in(start, output / "delta")
    assert torch.equal(logits(start, batch), logits(loaded.model, batch))


def test_a_head_of_the_checkpoint_is_trained_whole_beside_adapters(tiny_model, review_file, tmp_path):
    """As PEFT does; without a base all of it is selective."""
    loaded = fresh(tiny_model)
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(tmp_path / "model")
    for base in ("lora", "pfeiffer"):
        assert train(tmp_path / "model", review_file, tmp_path / base, base=base, budget=20) == 0
        assert report_of(tmp_path / base)["trained_whole"] == 66


def test_a_new_pooler_is_saved_with_lora(tiny_model, review_file, tmp_path, trained):
    """What is drawn anew is in the adapter's files, or it could not be loaded."""
    from transformers import BertModel

    folder = tmp_path / "model"
    loaded = fresh(tiny_model)
    loaded.tokenizer.save_pretrained(folder)
    BertModel(loaded.model.config, add_pooling_layer=False).save_pretrained(folder)
    assert train(folder, review_file, tmp_path / "out", base="lora", budget=20, seed=5) == 0
    assert report_of(tmp_path / "out")["trained_whole"] == 66 + 32 * 32 + 32
    again = PeftModel.from_pretrained(fresh(folder).model, tmp_path / "out" / "adapter")
    batch = sample(loaded)
    assert torch.equal(logits(again, batch), logits(trained[0].model, batch))


REFUSED = {
    "rank without lora": (["--rank", "4"], "--rank: expected --base lora with it, got full"),
    "alpha": (["--base", "houlsby", "--lora-alpha", "4"], "--lora-alpha: expected --base lora with it, got houlsby"),
    "targets": (["--target-modules", "query"], "--target-modules: expected --base lora with it, got full"),
    "size": (["--base", "lora", "--adapter-size", "4"], "--adapter-size: expected --base houlsby or pfeiffer with it"),
    "budget beyond": (["--base", "lora", "--rank", "1", "--budget", "999"], "expected 1 to 256 "),
    "frozen pattern": (["--base", "lora", "--train-fully", "LayerNorm"], "--train-fully: expected patterns that fit a"),
    "no biases": (["--base", "lora", "--method", "bitfit", "--exclude", "classifier"], "--exclude: "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tiny_model, review_file, tmp_path, capsys):
    more, message = REFUSED[name]
    assert train(tiny_model, review_file, tmp_path / "out", *more, budget=None) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_bitfit_needs_biases(tiny_model, review_file, tmp_path, capsys):
    """LoRA has none."""
    assert train(tiny_model, review_file, tmp_path / "out", base="lora", method="bitfit", budget=None) == 2
    assert "bias" in capsys.readouterr().err
