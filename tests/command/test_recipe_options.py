"""Recipes on the command line: what they say, what a user says instead, and what does not go together."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from commands import report_of
from recipefiles import MODELS, data_folder
from selective_peft import recipe_listing, recipe_options
from selective_peft.cli import main, parser
from selective_peft.errors import InputError
from selective_peft.methods import METHODS
from selective_peft.options import BASE_OPTIONS, METHOD_OPTIONS, settle
from selective_peft.recipes import RECIPES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def completed(*words):
    options = parser().parse_args(["train", *words])
    recipe_options.complete(options, words)
    return options


def of(name, *more):
    return completed("--recipe", name, "--output", "out", *more)


PAPER = {  # Table 11: recipes -> learning rates, batch, exp, eps, budgets
    ("glue/", "conll2003"): ((1e-4, 3e-4, 5e-4, 7e-4), 16, 2.0, 1.0, (103_000, 320_000)),
    ("cnn_dailymail",): ((1e-4,), 64, 1.0, 1e-3, (100_000, 320_000, 1_000_000)),
    ("math10k",): ((3e-4,), 4, 1.0, 1.0, (0.0625,)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_values_of_the_paper(name):
    ((lrs, batch, exp, eps, budgets),) = (values for names, values in PAPER.items() if name.startswith(names))
    options, recipe = of(name), RECIPES[name]
    assert (recipe.lrs, recipe.budgets) == (lrs, budgets)
    assert (options.batch_size, options.score_exp, options.score_eps) == (batch, exp, eps)
    assert options.lr in lrs
    assert options.budget in budgets
    assert options.chosen.paper.keys() == {"lr", "budget", "batch_size", "score_exp", "score_eps"}
    assert {"model", "epochs", "max_length"} <= options.chosen.recipe.keys()
    assert options.chosen.user == {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["glue/rte", "cnn_dailymail"])
def test_every_method_takes_a_recipe(method, name):
    """What does not go with it is left out, so that the run does not refuse it."""
    options = of(name, "--method", method)
    settle(options, "method", METHOD_OPTIONS)
    settle(options, "base", BASE_OPTIONS)
    assert options.lr == (RECIPES[name].full_lr if method == "full" else RECIPES[name].lr)
    assert (options.budget is None) == (method in ("full", "bitfit"))


def test_full_learning_rates_are_the_papers():
    low, high = RECIPES["glue/rte"].full_lrs
    assert (low, high) == (5e-6, 3e-5)
    assert low <= of("glue/rte", "--method", "full").lr <= high
    assert of("math10k", "--base", "full", "--method", "full", "--lr", "1e-5").lr == 1e-5
    with pytest.raises(
        InputError, match="--lr: expected one, since the paper has none for full fine-tuning in math10k, got none"
    ):
        of("math10k", "--method", "full", "--base", "full")
    assert of("math10k", "--method", "full").lr == 3e-4  # all of LoRA


def test_what_the_user_says_counts():
    options = of("glue/rte", "--lr", "1e-3", "--steps", "10", "--text-column", "premise", "--model", "other")
    assert (options.lr, options.steps, options.text_column, options.model) == (1e-3, 10, "premise", "other")
    assert options.batch_size == 16
    assert options.chosen.user == {"lr": 1e-3, "steps": 10, "text_column": "premise", "model": "other"}
    assert not options.chosen.user.keys() & (options.chosen.paper.keys() | options.chosen.recipe.keys())
    assert "epochs" not in options.chosen.recipe
    assert of("glue/rte", "--epochs", "1").epochs == 1.0  # which is what the parser has without a recipe, too
    base = of("math10k", "--base", "full")
    assert (base.base, base.rank) == ("full", None)


def test_what_comes_from_where_is_said():
    paper, recipe, given = recipe_options.announce(of("glue/rte", "--lr", "1e-3").chosen)
    assert paper == "from the paper: batch_size 16, budget 320,000, score_eps 1, score_exp 2"
    assert recipe.startswith(
        "from the recipe glue/rte: epochs 10, label_column label, max_length 256, method id3, model m"
    )
    assert given == "given: lr 0.001"
    assert recipe_options.announce(None) == []


REFUSED = {
    "nothing": (["--data", "a.csv"], "--model: expected one, or a --recipe, which names one; got neither"),
    "folder": (["--data", "a.csv", "--model", "m", "--data-folder", "f"], "--data-folder: expected --recipe with it"),
    "before": (["--data", "a.csv", "--model", "m", "--test-before"], "--test-before: expected --recipe with it"),
    "task": (["--recipe", "glue/rte", "--task", "token"], "--task: expected none with --recipe glue/rte, got token"),
    "file": (["--recipe", "glue/rte", "--eval-data", "b.csv"], "--eval-data: expected none with --recipe glue/rte"),
    "group": (["--recipe", "glue/rte", "--group-column", "g"], "--group-column: expected none with --recipe"),
    "share": (["--recipe", "glue/rte", "--eval-share", "0.1"], "--eval-share: expected none with --recipe glue/rte"),
    "split": (["--recipe", "math10k", "--eval-split", "test"], "--eval-split: expected none with --recipe math10k"),
    "beams": (["--recipe", "glue/rte", "--beams", "2"], "--beams: expected none with --recipe glue/rte, got 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path, capsys):
    words, message = REFUSED[case]
    assert main(["train", *words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"selective-peft: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--model", "m"], ["--model", "m", "--data", "a.csv", "--recipe", "glue/rte"], ["--recipe", "glue/wnli"]]
)
def test_usage(words, capsys):
    """Either data or a recipe, and one that exists."""
    with pytest.raises(SystemExit) as caught:
        main(["train", *words, "--output", "out"])
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return MODELS["bert"](tmp_path_factory.mktemp("models") / "bert")


def test_a_run_stores_where_its_values_come_from(bert, tmp_path, capsys):
    folder = data_folder(tmp_path / "data", "glue/sst2")
    words = ["--recipe", "glue/sst2", "--data-folder", folder, "--model", bert, "--budget", 300, "--steps", 2]
    assert main(["train", *map(str, words), "--evaluations", "1", "--output", str(tmp_path / "out")]) == 0
    report, printed = report_of(tmp_path / "out"), " ".join(capsys.readouterr().out.split())
    found = report["recipe"]
    assert (found["name"], found["source"]) == ("glue/sst2", "nyu-mll/glue, sst2")
    assert found["paper"] == {"batch_size": 16, "lr": 5e-4, "score_exp": 2.0, "score_eps": 1.0}
    assert found["recipe"]["max_length"] == 128
    assert found["user"] == {
        "data_folder": str(folder), "model": str(bert), "budget": 300, "steps": 2, "evaluations": 1
    }  # fmt: skip
    assert "from the paper: batch_size 16, lr 0.0005, score_eps 1, score_exp 2" in printed
    assert report["options"]["recipe"] == "glue/sst2"
    assert "chosen" not in report["options"]


def test_hidden_labels_are_refused(bert, tmp_path, capsys):
    """Those of GLUE's test sets, whatever one evaluates on."""
    folder = data_folder(tmp_path / "data", "glue/rte")
    row = {"sentence1": "a", "sentence2": "b", "label": -1}
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--recipe", "glue/rte", "--data-folder", str(folder), "--model", str(bert), "--eval-split", "test"]
    assert main(["train", *words, "--output", str(tmp_path / "out")]) == 2
    assert f"{folder}, split 'test': expected labels in column 'label', found -1 in row 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    words = ["--recipe", "cnn_dailymail", "--data-folder", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert "train needs more packages (import of rouge_score.rouge_scorer halted" in error
    assert "pip install 'selective-kernels[train]'" in error


def test_recipes_lists_all(capsys):
    assert main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(RECIPES)
    assert found["glue/mnli"]["tests"] == ["validation_mismatched"]
    assert found["math10k"]["source"]["files"]["AQuA"] == "dataset/AQuA/test.json"
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)


def test_the_page_has_the_table_of_the_code(capsys):
    assert main(["recipes", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed == recipe_listing.markdown()
    begin, end = "<!-- recipes -->\n", "<!-- end of recipes -->"
    page = PAGE.read_text(encoding="utf-8")
    assert page[page.index(begin) + len(begin) : page.index(end)] == printed, "run: selective-peft recipes --markdown"


def test_the_loops_of_the_page_are_understood(tmp_path):
    """Run by a shell in which the command only says what it is given."""
    loops = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert loops
    for loop in loops:
        script = f'selective-peft() {{ for word in "$@"; do printf "%s\\037" "$word"; done; echo; }}\n{loop}'
        done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, cwd=tmp_path)
        commands = [line.split("\037")[:-1] for line in done.stdout.splitlines()]
        assert len(commands) > 1
        for command in commands:
            recipe_options.complete(parser().parse_args(command), command[1:])
        assert len({command[command.index("--output") + 1] for command in commands}) == len(commands)
