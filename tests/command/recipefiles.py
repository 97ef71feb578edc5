"""Small data of each recipe with the columns, splits and label numbers that the Hub's have, and models for them."""

import json
import random

import datasets
from selective_peft.recipes import CONLL_TAGS, RECIPES
from tinymodels import NAMES, PLACES, REST, bert, llama, t5

NUMBERS = [str(number) for number in range(20)]
WORDS = [*NAMES, *PLACES, *REST]
MODEL_OF = {"seq2seq": "t5", "causal": "llama"}


def sentence(rng, *words):
    return " ".join([*words, *(rng.choice(WORDS) for _ in range(rng.randint(2, 5)))])


def glue_rows(name, count, seed):
    """The class follows from a name in the text; the texts of a pair have it both."""
    recipe, rng, rows = RECIPES[name], random.Random(seed), []
    for row in range(count):
        label = row % max(2, len(recipe.classes))
        cells = {recipe.text: sentence(rng, NAMES[label])}
        if recipe.pair:
            cells[recipe.pair] = sentence(rng, NAMES[label])
        number = label if recipe.classes else 5.0 * label * rng.uniform(0.8, 1.0)
        rows.append({**cells, "label": number, "idx": row})
    return rows


def conll_rows(_, count, seed):
    """Names are persons, towns are places, some of two words; the last row is empty, as on the Hub."""
    rng, rows = random.Random(seed), []
    for row in range(count - 1):
        words, tags = [], []
        for _ in range(rng.randint(2, 5)):
            kind = rng.choice(["PER", "LOC", "O"])
            found = [rng.choice({"PER": NAMES, "LOC": PLACES, "O": REST}[kind]) for _ in range(rng.randint(1, 2))]
            words += found
            tags += [kind if kind == "O" else f"{'I' if place else 'B'}-{kind}" for place in range(len(found))]
        numbers = [CONLL_TAGS.index(tag) for tag in tags]
        rows.append({"id": str(row), "tokens": words, "pos_tags": [0] * len(words), "ner_tags": numbers})
    return [*rows, {"id": str(count - 1), "tokens": [], "pos_tags": [], "ner_tags": []}]


def news_rows(_, count, seed):
    rng, rows = random.Random(seed), []
    for row in range(count):
        who = row % 3
        rows.append(
            {
                "article": sentence(rng, NAMES[who]),
                "highlights": f"{NAMES[who]} lives in\n{PLACES[who]}",
                "id": str(row),
            }
        )
    return rows


def math_rows(split, count, seed):
    """Training rows have their answer as a text, tests as a list; AQuA asks for letters."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        answer = rng.choice("ABCDE") if split == "AQuA" else str(float(a + b))
        output = f"the answer is {answer if split == 'AQuA' else a + b}"
        given = answer if split == "train" else [answer]
        question = sentence(rng, str(a), "and", str(b))
        rows.append({"instruction": question, "input": "", "output": output, "answer": given})
    return rows


def rows_of(name, split, count, seed):
    make = {"conll2003": conll_rows, "cnn_dailymail": news_rows, "math10k": math_rows}.get(name, glue_rows)
    return make(split if name == "math10k" else name, count, seed)


def hub_features(name, split="train"):
    """As `datasets` shows them for the Hub's files."""
    text, label = datasets.Value("string"), datasets.ClassLabel
    recipe = RECIPES[name]
    if name == "conll2003":
        lists = {"tokens": datasets.List(text), "pos_tags": datasets.List(datasets.Value("int64"))}
        return datasets.Features({"id": text, **lists, "ner_tags": datasets.List(label(names=list(CONLL_TAGS)))})
    if name == "cnn_dailymail":
        return datasets.Features({"article": text, "highlights": text, "id": text})
    texts = {column: text for column in (recipe.text, recipe.pair) if column}
    kind = label(names=list(recipe.classes)) if recipe.classes else datasets.Value("float32")
    return datasets.Features({**texts, "label": kind, "idx": datasets.Value("int32")})


def splits_of(name):
    recipe = RECIPES[name]
    return [split for split in (recipe.train, recipe.evaluation, *recipe.tests) if split]


def data_folder(folder, name, count=24, kind="parquet"):
    """A folder for --data-folder: parquet files as the Hub's, or as LLM-Adapters has it for math10k."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(splits_of(name)):
        rows = rows_of(name, split, count, seed)
        if name == "math10k":
            path = folder / RECIPES[name].source.files[split]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows, indent=4), encoding="utf-8")
            continue
        table = datasets.Dataset.from_list(rows, features=hub_features(name))
        path = str(folder / f"{split}-00000-of-00001.{kind}")
        {"parquet": table.to_parquet, "jsonl": table.to_json, "csv": table.to_csv}[kind](path)
    return folder


def writer(folder):
    """Knows the words of math10k's instruction and the numbers."""
    fixed = RECIPES["math10k"].template.replace("{}", " ").split()
    return llama(folder, dict.fromkeys([*fixed, *NUMBERS, *WORDS, "answer", "is", *"ABCDE"]), 64)


MODELS = {"bert": bert, "t5": t5, "llama": writer}
