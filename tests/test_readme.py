"""The Python of README and docs runs as it stands, their commands exist, and numbers come from committed files."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from selective_peft import cli

from benchmarks import tables
from benchmarks.report import write_csv
from selective_kernels.testing import num_threads

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_in_order(page: Path) -> None:
    assert len(blocks(page, "python")) >= 2
    namespace: dict[str, object] = {}
    with num_threads(1):  # models this small get slower with more, many times so on a busy machine
        for number, block in enumerate(blocks(page, "python")):
            exec(compile(block, f"{page.name}, Python block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_commands_are_understood() -> None:
    """Each `selective-peft` line of the pages and of the Makefile parses, with every option there is to it."""
    shell = "\n".join(block for page in PAGES for block in blocks(page, "sh"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)/", "")
    joined = re.sub(r"\\\n\s*", "", f"{shell}\n{makefile}")
    commands = re.findall(r"^.*?selective-peft (.+)$", joined, flags=re.MULTILINE)
    assert {command.split()[0] for command in commands} == set(cli.MODULES)
    for command in commands:
        cli.parser().parse_args(shlex.split(command, comments=True))


def test_the_first_sample_comes_early() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert lines.index("```python") < 20


def test_commands_exist_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = set(re.findall(r"`?make ([a-z-]+)`?", README.read_text(encoding="utf-8")))
    assert {"demo", "test", "bench"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), f"README names `make {command}`"


@pytest.mark.parametrize("page", sorted(tables.PAGES))
def test_tables_are_those_of_the_result_files(page: str) -> None:
    """No number in a table of measurements is typed by hand."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.filled(text, page) == text, "run: python -m benchmarks.tables"
    named = set(re.findall(r"benchmarks/results/(\w+\.csv)", text))
    expected = {f"{name}.csv" for name in ("step", "end2end", "memory", "updates", "quality")}
    assert named >= expected if page == "README.md" else named
    for name in named:
        assert (tables.RESULTS / name).exists(), name


GPU_ROW = {
    "model": "qwen2.5-7b",
    "budget": "320000",
    "method": "ours",
    "step": "last",
    "ms_median": "11.2345",
    "ratio_to_read": "1.0876",
    "read_ms": "10.3299",
    "read_gb_per_s": "2949.1",
    "gpu": "GPU X",
    "torch": "2.11.0",
    "triton": "3.6.0",
}


def test_a_table_of_gpu_times_needs_measured_ones(tmp_path, monkeypatch) -> None:
    """Without a result file nothing stands there, not even what stood there before; with one, its numbers."""
    marks = "<!-- gpu -->\n{}<!-- end of gpu -->"
    text = README.read_text(encoding="utf-8")
    head = text.replace(marks.format(""), "")
    for path in tables.RESULTS.glob("*.csv"):
        if not path.name.startswith("gpu"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.filled(head) == head
    assert tables.filled(head + marks.format("| old | 1.0 |\n")) == head + marks.format("")
    dense = {**GPU_ROW, "budget": "", "method": "AdamW fused", "step": "", "ms_median": "45.0", "ratio_to_read": "4.36"}
    left_out = {**GPU_ROW, "method": "dense masking", "step": "middle", "ms_median": "", "ratio_to_read": ""}
    write_csv(tmp_path / "gpu.csv", [GPU_ROW, dense, left_out])
    filled = tables.filled(head + marks.format(""))
    assert "GPU X, torch 2.11.0, triton 3.6.0" in filled
    assert "| SelectiveAdamW, last steps | 11.23 | 1.09 |" in filled
    assert "| torch AdamW(fused=True), dense | 45.00 | 4.36 |" in filled
    assert "| only reading parameters and gradients | 10.33 | 1.00 |" in filled
    assert "torch.topk" not in filled
    with pytest.raises(ValueError, match=r"README\.md: expected '<!-- gpu -->'"):
        tables.filled(head)


def test_tables_notice_a_changed_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tables.load("quality.csv")
    for row in rows:
        row["test"] = "0.999" if row["method"] == "full" else row["test"]
    load = tables.load
    monkeypatch.setattr(tables, "load", lambda name: rows if name == "quality.csv" else load(name))
    text = README.read_text(encoding="utf-8")
    assert tables.filled(text) != text
    with pytest.raises(ValueError, match=r"README\.md: expected '<!-- step -->'"):
        tables.filled(text.replace("<!-- step -->", ""))


def constants(folders: tuple[str, ...]) -> list[str]:
    """All strings of the sources; of an f-string, the parts between what is put in."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_errors_that_are_explained_are_those_that_are_raised() -> None:
    """Each quoted part of a message in the first columns of docs/troubleshooting.md stands in the sources."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]+) \|", text, flags=re.MULTILINE)
    quoted = [part for cell in cells for part in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 20
    known = constants(("selective_kernels", "python"))
    assert [part for part in quoted if not any(part in constant for constant in known)] == []
