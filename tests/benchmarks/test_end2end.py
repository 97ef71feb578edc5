"""The suite of whole training steps, from the command to its files, with tiny models."""

import csv

import peft
import pytest
from matplotlib.image import imread
from tinyruns import ON_CPU, one_thread  # noqa: F401

from benchmarks import __main__ as entry
from benchmarks import end2end, learning, workloads
from benchmarks.finetuning import FULL, OURS, OURS_RARELY
from benchmarks.gate import Mismatch
from benchmarks.reviews import MissingData

PARTS = list(end2end.PARTS)


def run(tmp_path, *words):
    """Exit code, and rows if a file was written."""
    path = tmp_path / "end2end.csv"
    code = entry.main(["end2end", "--preset", "small", "--csv", str(path), *words])
    if not path.exists():
        return code, []
    with path.open(newline="") as file:
        return code, list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of everything, without SHiRA in the installed PEFT."""
    folder = tmp_path_factory.mktemp("end2end")
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(peft, "ShiraConfig")
        code, rows = run(folder, "--rounds", "2", "--threads", "1", "--plot", str(folder / "picture.png"))
    assert code == 0
    return rows, folder / "picture.png"


def test_there_is_a_row_for_each_method_of_each_model(whole):
    rows, _ = whole
    assert [(row["model"], row["method"]) for row in rows] == [
        (model, method) for model in ("tiny-bert", "tiny-llama") for method in ON_CPU
    ]
    assert list(rows[0])[: len(end2end.COLUMNS)] == list(end2end.COLUMNS)
    assert all(row[key] for row in rows for key in ("cpu", "threads", "torch", "commit", "utc", "transformers", "peft"))


def test_the_split_adds_up_to_the_whole(whole):
    measured = [row for row in whole[0] if row["ms_median"]]
    assert len(measured) >= 18
    for row in measured:
        whole_ms = float(row["ms_median"])
        assert sum(float(row[part]) for part in PARTS) == pytest.approx(whole_ms, abs=0.003)
        shares = (float(row["selection_ms"]) + float(row["update_ms"])) / whole_ms
        assert float(row["optimizer_share"]) == pytest.approx(shares, abs=0.002)
        assert float(row["tokens_per_s"]) == pytest.approx(2 * 16 / (whole_ms / 1e3), rel=0.001)
        assert 0 < float(row["ms_min"]) <= float(row["ms_max"])
        assert row["rounds"] == "2"
        assert row["note"] == ""


def test_ratios_are_to_full_adamw_and_to_ours(whole):
    for row in whole[0]:
        if row["method"] == FULL:
            assert row["of_full"] == "1.0000"
        if row["method"] == OURS:
            assert row["of_ours"] == "1.0000"
    first = {row["method"]: row for row in whole[0] if row["model"] == "tiny-bert"}
    assert float(first[OURS]["of_full"]) * float(first[FULL]["of_ours"]) == pytest.approx(1.0, rel=0.2)


def test_only_what_selects_has_a_selection(whole):
    for row in whole[0]:
        if row["ms_median"]:
            selects = row["method"] in (OURS, OURS_RARELY, "dense masking", "selective-optimizers")
            assert (float(row["selection_ms"]) > 0) == selects, row["method"]


def test_what_peft_lacks_has_a_row_that_says_so(whole):
    notes = {(row["model"], row["method"]): row for row in whole[0] if row["note"]}
    row = notes["tiny-bert", "SHiRA r=8 (all linear)"]
    assert row["note"] == f"peft {peft.__version__} has no ShiraConfig"
    assert {row[column] for column in (*PARTS, "ms_median", "of_full", "trained")} == {""}
    assert notes["tiny-llama", "BitFit (ours)"]["note"] == "the model has no biases"


def test_the_picture_is_drawn_from_the_rows(whole):
    assert imread(whole[1]).shape[2] == 4


def test_tables_and_no_bars_for_tiny_models(tmp_path, capsys):
    code, _ = run(tmp_path, "--models", "tiny-bert", "--methods", "ours")
    said = capsys.readouterr().out
    assert code == 0
    assert "tiny-bert (25,762 scalars), float32, batches of 2 x 16 tokens, budget 1,000" in said
    assert "Table 9 of the paper, and tiny-bert" in said
    assert "Bars" not in said


def test_another_dtype(tmp_path):
    code, rows = run(tmp_path, "--models", "tiny-llama", "--methods", "ours", "lora", "--dtype", "bfloat16")
    assert code == 0
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert all(row["ms_median"] or row["note"] for row in rows)


def test_a_wrong_result_is_reported_instead_of_times(tmp_path, monkeypatch, capsys):
    def wrong(*_):
        raise Mismatch("tensor 3: other scalars")

    monkeypatch.setattr(learning, "check_ours", wrong)
    assert run(tmp_path, "--models", "tiny-bert", "--methods", "ours") == (1, [])
    assert "WRONG RESULT, no time is reported: tensor 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "nothing"], "models: expected some of"),
        (["--models", "tiny-bert", "--rounds", "1"], "--rounds: expected 2 or more, got 1"),
        (["--with", "/no/such.csv"], "--with: expected a CSV file"),
    ],
)
def test_what_cannot_be_run_is_said(words, message, tmp_path, capsys):
    assert run(tmp_path, *words) == (2, [])
    assert message in capsys.readouterr().err


def test_missing_weights_are_said(tmp_path, monkeypatch, capsys):
    def missing(*_):
        raise MissingData("The package is not installed")

    monkeypatch.setattr(workloads, "package_file", missing)
    assert run(tmp_path, "--models", "minilm-l6") == (2, [])
    assert "The package is not installed" in capsys.readouterr().err


def made_up(method, share, of_full, model="minilm-l6", dtype="float32"):
    return {"model": model, "dtype": dtype, "method": method, "ms_median": "1", "optimizer_share": share,
            "of_full": of_full, "of_full_min": "0.8", "of_full_max": "1.5", "rounds": "7"}  # fmt: skip


def test_bars_of_made_up_rows():
    rows = [
        made_up(OURS, "0.04", "1.02"),
        made_up(OURS_RARELY, "0.06", "0.97"),
        made_up(FULL, "0.5", "1.0"),
        made_up(OURS, "0.5", "0.9", model="smollm2-135m"),
        made_up(OURS, "0.5", "1.9", model="tiny-bert"),
        made_up(OURS, "0.5", "1.9", dtype="bfloat16"),
    ]
    spread = "(0.80 to 1.50 over 7 rounds)"
    assert [str(bar) for bar in end2end.bars(rows)] == [
        "minilm-l6, ours: selection and update of a step: 0.04, bar <= 0.05: met",
        f"minilm-l6, ours: whole step of full AdamW's {spread}: 1.02, bar <= 1: NOT MET",
        "minilm-l6, ours, select_every=15: selection and update of a step: 0.06, bar <= 0.05: NOT MET",
        f"minilm-l6, ours, select_every=15: whole step of full AdamW's {spread}: 0.97, bar <= 1: met",
        f"smollm2-135m, ours: whole step of full AdamW's {spread}: 0.9, bar <= 1: met",
    ]


def test_the_full_preset_is_what_is_claimed():
    assert end2end.MODELS["full"] == ["minilm-l6", "smollm2-135m"]
    work = workloads.WORKLOADS["minilm-l6"]
    assert (work.sequences, work.tokens) == (16, 128)
