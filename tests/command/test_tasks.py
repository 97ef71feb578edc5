"""Each task from its file to its metrics, which the rebuilt model must have, too."""

import math

import pytest
import torch
from commands import put_in, report_of, train
from reviewfiles import write_csv, write_jsonl
from selective_peft import loading, metrics, options, tasks
from selective_peft.files import Columns
from tinymodels import MODELS, tagged, written

STEPS = 60  # enough to learn names and towns


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder / name) for name, make in MODELS.items()}


def rebuilt(folder, output, task, classes=None):
    loaded = loading.load(str(folder), 99, classes, tasks.TASKS[task].kind)
    put_in(loaded.model, output / "delta")
    return loaded


def found(loaded, file, columns, task, classes=None):
    """Metrics, row by row, without a Trainer."""
    chosen = tasks.TASKS[task]
    examples, _ = chosen.read(file, columns, classes, ())
    rows, collate, measure = chosen.encode(examples, loaded, 32), chosen.collator(loaded), chosen.measure(classes)
    kept = []
    for row in rows:
        batch = collate([row])
        with torch.no_grad():
            kept.append(measure.reduce(loaded.model(**batch).logits, batch["labels"])[0].tolist())
    return measure.compute(kept, [row["labels"] for row in rows]), rows


def test_the_parser_knows_the_tasks_and_bases():
    from selective_peft.bases import BASES

    assert tuple(tasks.TASKS) == options.TASKS
    assert tuple(BASES) == options.BASES


@pytest.mark.parametrize(
    ("prefix", "name", "constant"), [("B-", "entity_f1", 0.0), ("", "accuracy", None)], ids=["iob", "other tags"]
)
def test_token(prefix, name, constant, models, tmp_path):
    file, held_out = (write_jsonl(tmp_path / f"{i}.jsonl", tagged(60, i, prefix)) for i in (0, 1))
    output = tmp_path / "out"
    assert train(models["bert"], file, output, "--task", "token", "--eval-data", held_out, steps=STEPS) == 0
    report = report_of(output)
    classes = [f"{prefix}LOC", f"{prefix}PER", "O"] if prefix else ["LOC", "O", "PER"]
    assert report["classes"] == classes
    assert report["trained_whole"] == 3 * 32 + 3
    loaded = rebuilt(models["bert"], output, "token", classes)
    again, rows = found(loaded, held_out, Columns("text", "label", words=True), "token", classes)
    assert set(again) == set(report["metrics"]["fine_tuned"]) - {"loss"}
    for metric, value in again.items():
        assert value == pytest.approx(report["metrics"]["fine_tuned"][metric], abs=1e-6), metric
    assert report["metrics"]["fine_tuned"][name] > 0.8 > report["metrics"]["not_fine_tuned"][name]
    labels = [label for row in rows for label in row["labels"] if label != metrics.IGNORED]
    most = classes.index("O")
    assert report["metrics"]["constant_answer"]["accuracy"] == pytest.approx(labels.count(most) / len(labels))
    if constant is not None:
        assert report["metrics"]["constant_answer"][name] == constant


def test_token_from_csv_is_the_same(models, tmp_path):
    rows = tagged(40)
    plain = [{key: " ".join(value) for key, value in row.items()} for row in rows]
    files = write_jsonl(tmp_path / "a.jsonl", rows), write_csv(tmp_path / "a.csv", plain)
    reports = []
    for file in files:
        output = tmp_path / file.suffix[1:]
        assert train(models["bert"], file, output, "--task", "token") == 0
        reports.append(report_of(output)["metrics"])
    assert reports[0] == reports[1]


def test_a_head_for_tags_is_kept(models, tmp_path):
    """In its own order, and selective as all else."""
    classes = ["O", "B-PER", "B-LOC"]
    loaded = loading.load(str(models["bert"]), 0, classes, loading.TOKEN)
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(tmp_path / "model")
    file = write_jsonl(tmp_path / "a.jsonl", tagged(40))
    assert train(tmp_path / "model", file, tmp_path / "out", "--task", "token") == 0
    assert report_of(tmp_path / "out")["classes"] == classes
    assert report_of(tmp_path / "out")["trained_whole"] == 0


def greedy(loaded, task, prompt, length):
    """What greedy decoding writes, as tokens."""
    begin = loaded.tokenizer(prompt, return_tensors="pt")
    written = loaded.model.generate(
        input_ids=begin["input_ids"], attention_mask=begin["attention_mask"], do_sample=False, max_new_tokens=length,
        eos_token_id=loaded.tokenizer.eos_token_id, pad_token_id=loaded.tokenizer.pad_token_id,
    )[0].tolist()  # fmt: skip
    return written[1:] if task == "seq2seq" else written[begin["input_ids"].shape[1] :]


@pytest.mark.parametrize(
    ("task", "model", "column"),
    [("seq2seq", "t5", None), ("causal", "llama", "text"), ("causal", "gpt2", "text"), ("causal", "llama", None)],
)
def test_text(task, model, column, models, tmp_path):
    """Perplexity, token accuracy and exact match; the last one as greedy decoding gives it."""
    file, held_out = (write_csv(tmp_path / f"{i}.csv", written(60, i)) for i in (0, 1))
    output = tmp_path / "out"
    more = ["--task", task, "--eval-data", held_out] + (["--text-column", column] if column else [])
    assert train(models[model], file, output, *more, steps=STEPS, budget=3000) == 0
    report = report_of(output)
    tuned, before = report["metrics"]["fine_tuned"], report["metrics"]["not_fine_tuned"]
    assert report["trained_whole"] == 0
    assert report["classes"] is None
    assert "constant_answer" not in report["metrics"]
    loaded = rebuilt(models[model], output, task)
    columns = Columns(column or (None if task == "causal" else "text"), "label")
    again, rows = found(loaded, held_out, columns, task)
    for metric, value in again.items():
        assert value == pytest.approx(tuned[metric], rel=1e-4, abs=1e-6), metric
    assert tuned["perplexity"] < before["perplexity"] / 3
    assert tuned["token_accuracy"] > before["token_accuracy"]
    if columns.text is None:
        return
    right = 0
    for example, row in zip(written(60, 1), rows, strict=True):
        answer = [token for token in row["labels"] if token != metrics.IGNORED]
        right += greedy(loaded, task, example["text"], len(answer)) == answer
    assert tuned["exact_match"] == pytest.approx(right / 60)
    if model != "gpt2":  # which would have to learn to spell
        assert tuned["exact_match"] > 0.5 > before["exact_match"]


def test_perplexity_is_the_mean_over_tokens():
    """Not over rows: a short row counts less."""
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 1] = 5.0
    labels = torch.tensor([[1, metrics.IGNORED, metrics.IGNORED], [2, 3, 0]])
    counts = metrics.text_counts((logits, "more"), labels, ahead=0)
    sure = math.log(3 + math.exp(5)) - 5
    assert counts[:, 0].tolist() == pytest.approx([sure, 3 * math.log(4)], rel=1e-5)
    assert counts[:, 1:].tolist() == [[1, 1], [3, 1]]
    expected = {"perplexity": math.exp((sure + 3 * math.log(4)) / 4), "token_accuracy": 0.5, "exact_match": 0.5}
    assert metrics.text(counts) == pytest.approx(expected, rel=1e-5)


def test_causal_logits_predict_the_token_after_them():
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = logits[0, 1, 3] = 9.0
    counts = metrics.text_counts(logits, torch.tensor([[metrics.IGNORED, 2, 3]]), ahead=1)
    assert counts[0, 1:].tolist() == [2, 2]
    assert counts[0, 0] < 0.01


def test_entities_are_counted_whole():
    """As conlleval counts: half an entity is none, and where no label is nothing counts."""
    classes = ["O", "B-PER", "I-PER", "B-LOC"]
    labels = [[1, 2, 0, 3, metrics.IGNORED], [1, 0, metrics.IGNORED, 3, 0]]
    answers = [[1, 0, 0, 3, 1], [1, 0, 3, 3, 3]]
    score = metrics.tagging(answers, labels, classes)
    assert score["precision"] == pytest.approx(3 / 5)
    assert score["recall"] == pytest.approx(3 / 4)
    assert score["entity_f1"] == pytest.approx(2 * 3 / 9)
    assert score["accuracy"] == pytest.approx(6 / 8)
    assert metrics.tagging([[0, 0]], [[0, 0]], classes)["entity_f1"] == 0.0


@pytest.mark.parametrize(
    ("classes", "iob"),
    [(["O", "B-X"], True), (["B-X", "I-X"], True), (["O"], False), (["NOUN", "O"], False), (["B", "I", "O"], False)],
)
def test_which_tags_mark_entities(classes, iob):
    assert metrics.is_iob(classes) == iob


# what is given besides a good file, and what the message says
REFUSED = {
    "words as text": ("bert", "token", [{"text": "Anna", "label": "O"}], [], "row 1 has no list of words in column"),
    "lengths": ("bert", "token", [{"text": ["Anna", "in"], "label": ["O"]}], [], "found 2 words and 1 tags in row 1"),
    "empty word": ("bert", "token", [{"text": ["Anna", " "], "label": ["O", "O"]}], [], "row 1 has an empty word in"),
    "empty list": ("bert", "token", [{"text": [], "label": []}], [], "found 1 empty ones, the first in row 1"),
    "list in list": ("bert", "token", [{"text": [["a"]], "label": ["O"]}], [], "row 1 has a list in column 'text'"),
    "one tag": ("bert", "token", [{"text": ["a"], "label": ["O"]}] * 3, [], "two classes or more in column 'label'"),
    "many tags": (
        "bert", "token", [{"text": ["a"], "label": [str(i)]} for i in range(40)], [], "40 different values in 40 words",
    ),
    "empty target": ("t5", "seq2seq", [{"text": "a", "label": ""}], [], "found 1 empty ones, the first in row 1"),
    "pair": ("t5", "seq2seq", written(9), ["--text-pair-column", "text"], "--text-pair-column: expected none with"),
    "no prompt there": ("gpt2", "causal", written(9), ["--text-column", "q"], "expected a column 'q', found 'text'"),
    "encoder for seq2seq": ("bert", "seq2seq", written(9), [], "cannot be loaded (Unrecognized configuration class"),
    "encoder for causal": ("bert", "causal", written(9), [], "expected weights that fit its config.json"),
    "too short": ("t5", "seq2seq", written(9), ["--max-length", "1"], "expected more than the 1 special tokens"),
    "too short to predict": ("llama", "causal", written(9), ["--max-length", "2"], "expected more than the 2 special"),
    "classes for fish": (
        "t5", "seq2seq", written(30), ["--method", "fish", "--fish-type", "expected"], "--method fish: sample_type: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, models, tmp_path, capsys):
    model, task, rows, more, message = REFUSED[name]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    assert train(models[model], file, tmp_path / "out", "--task", task, *more) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("selective-peft: ")
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_tag_that_only_the_evaluation_file_has(models, tmp_path, capsys):
    file = write_jsonl(tmp_path / "a.jsonl", tagged(20))
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"text": ["a", "b"], "label": ["O", "B-ORG"]}])
    assert train(models["bert"], file, tmp_path / "out", "--task", "token", "--eval-data", held_out) == 2
    assert "found 'B-ORG' in row 1" in capsys.readouterr().err
