"""Splits of recipes: where they are looked for, in which forms, and what is refused."""

import argparse
import json
from dataclasses import replace

import datasets
import pytest
from recipefiles import data_folder, hub_features, rows_of, splits_of
from selective_peft import recipe_data
from selective_peft.errors import InputError
from selective_peft.recipe_files import Split
from selective_peft.recipes import LLM_ADAPTERS, MATH_TESTS, RECIPES


def read(name, folder, split="train", answer=None):
    return recipe_data.read(RECIPES[name], Split(split, RECIPES[name].source, folder), answer)


def jsonl(folder, rows, split="train"):
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "saved"])
def test_all_forms_say_the_same(kind, tmp_path):
    """Also texts that some readers take for missing ones."""
    rows = [{**row, "sentence2": "null"} for row in rows_of("glue/rte", "train", 6, 0)]
    table = datasets.Dataset.from_list(rows, features=hub_features("glue/rte"))
    if kind == "saved":
        datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path))
    else:
        getattr(table, {"jsonl": "to_json"}.get(kind, f"to_{kind}"))(str(tmp_path / f"train.{kind}"))
    found = read("glue/rte", tmp_path)
    assert found.texts == [row["sentence1"] for row in rows]
    assert found.pairs == ["null"] * 6
    assert found.labels == [row["label"] for row in rows] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("place", ["train-0000{}-of-00002.parquet", "train/000{}.parquet"], ids=["main", "conversion"])
def test_several_files_of_a_split_are_one_after_the_other(place, tmp_path):
    """As the Hub's main branch and its conversion to parquet name them."""
    (tmp_path / "train").mkdir()
    rows = rows_of("glue/cola", "train", 8, 0)
    for part in (1, 0):
        table = datasets.Dataset.from_list(rows[4 * part : 4 * part + 4], features=hub_features("glue/cola"))
        table.to_parquet(str(tmp_path / place.format(part)))
    assert read("glue/cola", tmp_path).texts == [row["sentence"] for row in rows]


def test_classes_by_name_have_the_numbers_of_the_hub(tmp_path):
    names = ["contradiction", "entailment", "neutral", "contradiction"]
    rows = [{"premise": "a", "hypothesis": "b", "label": name} for name in names]
    assert read("glue/mnli", jsonl(tmp_path, rows)).labels == [2, 0, 1, 2]


def test_answers_are_texts_numbers_or_the_last_of_a_list(tmp_path):
    for row, answer in enumerate(["12", 12.5, ["3", "7"], ["C"], 4]):
        folder = jsonl(tmp_path / str(row), [{"instruction": "q", "answer": answer}], "AddSub")
        expected = ["12", "12.5", "7", "C", "4"][row]
        assert read("math10k", folder, "AddSub", "answer").labels == [expected]


@pytest.mark.parametrize("name", RECIPES)
def test_texts_stand_in_the_template(name, tmp_path):
    recipe, folder = RECIPES[name], data_folder(tmp_path, name, 6)
    first, row = read(name, folder).texts[0], rows_of(name, "train", 6, 0)[0]
    assert first == (row["tokens"] if recipe.task == "token" else recipe.template.replace("{}", row[recipe.text]))


def test_rows_without_words_are_left_out_and_a_part_is_split_off(tmp_path):
    options = argparse.Namespace(data_folder=data_folder(tmp_path / "a", "conll2003", 6), eval_split="test", seed=0)
    options.text_column, options.text_pair_column, options.label_column = "tokens", None, "ner_tags"
    parts = recipe_data.read_parts(RECIPES["conll2003"], options)
    assert (len(parts.training), len(parts.evaluation), parts.left_out) == (5, 5, 3)
    assert parts.evaluation.texts == parts.tests["test"].texts != parts.training.texts
    assert parts.seen(parts.training) == 5
    options = argparse.Namespace(data_folder=data_folder(tmp_path / "b", "math10k", 40), eval_share=0.25, seed=0)
    options.text_column, options.text_pair_column, options.label_column = "instruction", None, "output"
    parts = recipe_data.read_parts(RECIPES["math10k"], options)
    assert (len(parts.training), len(parts.evaluation)) == (30, 10)
    assert tuple(parts.tests) == MATH_TESTS


def test_what_is_asked_of_the_hub(monkeypatch):
    asked = []

    def load(*arguments, **named):
        asked.append((arguments, named))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name, split in [("glue/mnli", "validation_mismatched"), ("conll2003", "test"), ("math10k", "SVAMP")]:
        with pytest.raises(InputError, match=r"cannot be loaded \(no network\); without a network, --data-folder"):
            read(name, None, split)
    assert asked == [
        (("nyu-mll/glue", "mnli"), {"split": "validation_mismatched", "revision": None}),
        (("eriktks/conll2003", None), {"split": "test", "revision": "refs/convert/parquet"}),
        (("json",), {"data_files": f"{LLM_ADAPTERS}/dataset/SVAMP/test.json", "split": "train"}),
    ]


def test_without_a_network_nothing_is_waited_for():
    """The tests' environment says that there is none."""
    with pytest.raises(InputError, match=r"nyu-mll/glue, rte, split 'train': cannot be loaded .*OfflineModeIsEnabled"):
        read("glue/rte", None)


RTE = {"sentence1": "a", "sentence2": "b", "label": 0}
TAGGED = {"tokens": ["Anna"], "ner_tags": [1]}
SCORE = {"sentence1": "a", "sentence2": "b", "label": 1.5}
REFUSED = {  # recipe, rows, what the message says
    "column": ("glue/rte", [{"sentence1": "a", "label": 0}], "a column 'sentence2', found 'sentence1', 'label'"),
    "number": (
        "glue/rte", [RTE, {**RTE, "label": 2}],
        "expected one of entailment (0), not_entailment (1) in column 'label', found 2 in row 2",
    ),
    "half": ("glue/rte", [{**RTE, "label": 0.5}], "found 0.5 in row 1"),
    "name": ("glue/rte", [{**RTE, "label": "neutral"}], "found 'neutral' in row 1"),
    "no label": ("glue/rte", [RTE, {**RTE, "label": None}], "found None in row 2"),
    "hidden": (
        "glue/rte", [RTE, {**RTE, "label": -1}],
        "expected labels in column 'label', found -1 in row 2, which marks hidden ones; this split can be neither",
    ),
    "hidden score": ("glue/stsb", [{**SCORE, "label": -1.0}], "which marks hidden ones"),
    "hidden tag": ("conll2003", [{**TAGGED, "ner_tags": [-1]}], "which marks hidden ones"),
    "score": ("glue/stsb", [{**SCORE, "label": "high"}], "expected a finite number in column 'label', found 'high'"),
    "tag": ("conll2003", [{**TAGGED, "ner_tags": [9]}], "I-MISC (8) in column 'ner_tags', found 9 in row 1"),
    "no tags": ("conll2003", [{**TAGGED, "ner_tags": 1}], "expected a list of tags in column 'ner_tags', found 1"),
    "no words": ("conll2003", [{**TAGGED, "tokens": "Anna"}], "a list of words in column 'tokens', found 'Anna'"),
    "lengths": ("conll2003", [{"tokens": ["a", "b"], "ner_tags": [0]}], "found 2 words and 1 tags in row 1"),
    "no text": ("cnn_dailymail", [{"article": None, "highlights": "b"}], "text in column 'article', found None"),
    "list": ("glue/rte", [{**RTE, "sentence2": ["b"]}], "expected text in column 'sentence2', found ['b'] in row 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    name, rows, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        read(name, jsonl(tmp_path, rows))
    assert str(caught.value).startswith(f"{tmp_path}, split 'train': ")
    assert message in str(caught.value)


@pytest.mark.parametrize(("name", "column"), [("glue/mnli", "label"), ("conll2003", "ner_tags")])
def test_classes_in_another_order_are_refused(name, column, tmp_path):
    """Their numbers would say something else."""
    features = hub_features(name)
    kind = datasets.ClassLabel(names=list(RECIPES[name].classes)[::-1])
    features[column] = datasets.List(kind) if name == "conll2003" else kind
    table = datasets.Dataset.from_list(rows_of(name, "train", 6, 0), features=features)
    table.to_parquet(str(tmp_path / "train.parquet"))
    reverse = ", ".join(RECIPES[name].classes[::-1])
    with pytest.raises(InputError, match=f"in this order in column '{column}', found {reverse}"):
        read(name, tmp_path)


def test_splits_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"--data-folder .*nowhere: expected a folder, found none there"):
        read("glue/rte", tmp_path / "nowhere")
    folder = jsonl(tmp_path / "some", [RTE], "dev")
    with pytest.raises(InputError, match=r"split 'validation': expected validation\.parquet, .*found 'dev\.jsonl'"):
        read("glue/rte", folder, "validation")
    table = datasets.Dataset.from_list([RTE])
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"split 'validation': expected it there, found 'train'"):
        read("glue/rte", tmp_path / "saved", "validation")


def test_files_that_are_none(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="split 'train': cannot be read "):
        read("glue/rte", tmp_path)


def test_rows_of_no_words_are_not_enough(tmp_path):
    options = argparse.Namespace(data_folder=jsonl(tmp_path, [{"tokens": [], "ner_tags": []}]))
    options.text_column, options.text_pair_column, options.label_column = "tokens", None, "ner_tags"
    with pytest.raises(InputError, match="split 'train': expected rows with words in column 'tokens', found none"):
        recipe_data.read_parts(RECIPES["conll2003"], options)


def test_other_columns(tmp_path):
    recipe = replace(RECIPES["glue/rte"], text="premise", pair=None)
    folder = jsonl(tmp_path, [{"premise": " a ", "label": "1"}])
    found = recipe_data.read(recipe, Split("train", recipe.source, folder))
    assert (found.texts, found.pairs, found.labels) == (["a"], None, [1])


def test_every_split_has_a_place():
    for name, recipe in RECIPES.items():
        if recipe.source.files:
            assert list(recipe.source.files) == splits_of(name)
