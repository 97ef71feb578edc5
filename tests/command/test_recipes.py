"""Each recipe from local files with the Hub's columns to its metrics, which are computed again by other means."""

import json

import numpy as np
import pytest
import torch
from commands import put_in, report_of
from peft import PeftModel
from recipefiles import MODEL_OF, MODELS, data_folder, rows_of, splits_of
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import pearsonr, spearmanr
from selective_peft import loading
from selective_peft.cli import main
from selective_peft.recipes import MATH_TESTS, RECIPES
from selective_peft.tasks import TASKS
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

ROWS = 24
FAST = ["--steps", "12", "--evaluations", "1", "--lr", "0.01", "--batch-size", "8"]
WRITTEN = ["--precision", "fp32", "--new-tokens", "8", "--test-batch-size", "7"]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder / name) for name, make in MODELS.items()}


@pytest.fixture
def run(models, tmp_path):
    """Runs a recipe; the output folder."""

    def start(name, *more):
        folder, output = data_folder(tmp_path / "data", name, ROWS), tmp_path / "out"
        model = models[MODEL_OF.get(RECIPES[name].task, "bert")]
        given = ["--recipe", name, "--data-folder", str(folder), "--model", str(model), "--output", str(output)]
        assert main(["train", *given, *FAST, *more]) == 0
        return output

    return start


def rows(name, split):
    """What the run has read, as it was written into its files."""
    return rows_of(name, split, ROWS, splits_of(name).index(split))


def rebuilt(model, output, name):
    recipe = RECIPES[name]
    loaded = loading.load(str(model), 99, list(recipe.classes) or None, TASKS[recipe.task].kind)
    if (output / "adapter").exists():
        return PeftModel.from_pretrained(loaded.model, output / "adapter").eval(), loaded.tokenizer
    return put_in(loaded.model, output / "delta"), loaded.tokenizer


def logits(model, tokenizer, *texts):
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt")).logits[0].numpy()


GLUE = {
    "glue/cola": {"matthews": matthews_corrcoef, "accuracy": accuracy_score},
    "glue/sst2": {"accuracy": accuracy_score},
    "glue/mrpc": {"f1": f1_score, "accuracy": accuracy_score},
    "glue/stsb": {"pearson": lambda a, b: pearsonr(a, b)[0], "spearman": lambda a, b: spearmanr(a, b)[0]},
    "glue/qqp": {"f1": f1_score, "accuracy": accuracy_score},
    "glue/mnli": {"accuracy": accuracy_score},
    "glue/qnli": {"accuracy": accuracy_score},
    "glue/rte": {"accuracy": accuracy_score},
}


@pytest.mark.parametrize("name", GLUE)
def test_glue(name, run, models):
    """Labels are the numbers in the files, and what the model says is its class of that number."""
    output, recipe = run(name, "--budget", "300"), RECIPES[name]
    report = report_of(output)
    model, tokenizer = rebuilt(models["bert"], output, name)
    assert report["classes"] == (list(recipe.classes) or None)
    evaluated = {recipe.evaluation: report["metrics"], **report["tests"]}
    assert list(evaluated) == splits_of(name)[1:]
    for split, found in evaluated.items():
        there = rows(name, split)
        outputs = np.stack(
            [logits(model, tokenizer, *(row[c] for c in (recipe.text, recipe.pair) if c)) for row in there]
        )
        answers = outputs.argmax(-1) if recipe.classes else outputs[:, 0]
        for metric, compute in GLUE[name].items():
            expected = compute([row["label"] for row in there], answers)
            assert found["fine_tuned"][metric] == pytest.approx(expected, abs=1e-5), (split, metric)
    main_metric = next(iter(GLUE[name]))
    assert report["metrics"]["fine_tuned"][main_metric] > report["metrics"]["constant_answer"][main_metric]


def test_conll2003(run, models):
    output, recipe = run("conll2003", "--budget", "300"), RECIPES["conll2003"]
    report = report_of(output)
    assert report["rows_left_out"] == 3  # the last one of each split
    known = [row["tokens"] for row in rows("conll2003", "train")[:-1]]
    seen = sum(row["tokens"] in known for row in rows("conll2003", "test")[:-1])
    assert report["tests"]["test"]["rows_seen_in_training"] == seen
    model, tokenizer = rebuilt(models["bert"], output, "conll2003")
    for split, found in {"validation": report["metrics"], **report["tests"]}.items():
        right, answers = [], []
        for row in rows("conll2003", split)[:-1]:
            encoded = tokenizer(" ".join(row["tokens"]), return_tensors="pt")
            firsts = np.unique([i for i in encoded.word_ids() if i is not None], return_index=True)[1]
            with torch.no_grad():
                numbers = model(**encoded).logits[0].argmax(-1)[torch.from_numpy(firsts)].tolist()
            right.append([recipe.classes[tag] for tag in row["ner_tags"]])
            answers.append([recipe.classes[tag] for tag in numbers])
        assert found["fine_tuned"]["entity_f1"] == pytest.approx(entity_f1(right, answers), abs=1e-6), split
        assert found["fine_tuned"]["entity_f1"] > found["not_fine_tuned"]["entity_f1"]


def written(output):
    lines = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    return {(line["test"], line["when"], line["row"]): line for line in lines}


def greedy(model, tokenizer, prompt, beams):
    encoded = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(
        input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], do_sample=False, num_beams=beams,
        max_new_tokens=8, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )[0]  # fmt: skip
    begin = 0 if model.config.is_encoder_decoder else encoded["input_ids"].shape[1]
    return tokenizer.decode(tokens[begin:], skip_special_tokens=True).strip()


def test_cnn_dailymail(run, models):
    """What is written in batches is what is written one by one, and ROUGE is that of what is written."""
    output = run("cnn_dailymail", "--budget", "3000", "--steps", "60", *WRITTEN, "--beams", "2", "--test-before")
    report, answers = report_of(output), written(output)
    model, tokenizer = rebuilt(models["t5"], output, "cnn_dailymail")
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = []
    for number, row in enumerate(rows("cnn_dailymail", "test"), 1):
        answer = answers["test", "fine_tuned", number]
        assert answer["right"] == row["highlights"]
        assert answer["written"] == greedy(model, tokenizer, f"summarize: {row['article']}", 2)
        scores.append(
            {name: each.fmeasure for name, each in scorer.score(row["highlights"], answer["written"]).items()}
        )
    for name, value in report["tests"]["test"]["fine_tuned"].items():
        assert value == pytest.approx(np.mean([score[name] for score in scores]))
    assert report["tests"]["test"]["fine_tuned"]["rouge1"] > 0.5 > report["tests"]["test"]["not_fine_tuned"]["rouge1"]
    assert len(answers) == 2 * ROWS


@pytest.mark.parametrize("base", ["lora", "full"])
def test_math10k(base, run, models):
    """On LoRA, as the recipe has it, and on the model's own weights, which alone let a random model learn anything."""
    more = [] if base == "lora" else ["--base", "full", "--budget", "20000", "--steps", "60"]
    output = run("math10k", *WRITTEN, *more)
    report, answers = report_of(output), written(output)
    assert ({"base": "lora", "rank": 32}.items() <= report["recipe"]["recipe"].items()) == (base == "lora")
    assert report["selected"] == (512 if base == "lora" else 20_000)  # as many as rank 2 has
    model, tokenizer = rebuilt(models["llama"], output, "math10k")
    means = []
    for test in MATH_TESTS:
        right = []
        for number, row in enumerate(rows("math10k", test), 1):
            answer = answers[test, "fine_tuned", number]
            prompt = RECIPES["math10k"].template.format(row["instruction"])
            assert answer["written"] == greedy(model, tokenizer, prompt, 1)
            last = answer["written"].split()[-1:] or [""]
            wanted = row["answer"][0] if test == "AQuA" else str(int(float(row["answer"][0])))
            right.append(last[0] == wanted)
        assert report["tests"][test]["fine_tuned"]["exact_match"] == pytest.approx(np.mean(right)), test
        means.append(np.mean(right))
    assert report["tests_mean"]["fine_tuned"]["exact_match"] == pytest.approx(np.mean(means))
    if base == "full":
        assert 0 < np.mean(means) < 1
    assert "not_fine_tuned" not in report["tests"]["AddSub"]
