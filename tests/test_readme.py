"""README's Python runs as it stands, block after block, and its numbers come from the committed result files."""

import re
from pathlib import Path

import pytest

from benchmarks import tables

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_python_blocks_run_in_order() -> None:
    assert len(BLOCKS) >= 3
    namespace: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)


def test_the_first_sample_comes_early() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert lines.index("```python") < 20


def test_commands_exist_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = set(re.findall(r"`?make ([a-z]+)`?", README.read_text(encoding="utf-8")))
    assert {"demo", "test", "bench"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), f"README names `make {command}`"


def test_tables_are_those_of_the_result_files() -> None:
    """No number in README's tables is typed by hand."""
    text = README.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run: python -m benchmarks.tables"
    for name in tables.TABLES:
        assert f"benchmarks/results/{name}.csv" in text


def test_tables_notice_a_changed_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tables.load("demo.csv")
    rows[0]["accuracy"] = "0.999"
    load = tables.load
    monkeypatch.setattr(tables, "load", lambda name: rows if name == "demo.csv" else load(name))
    text = README.read_text(encoding="utf-8")
    assert tables.filled(text) != text
    with pytest.raises(ValueError, match=r"README\.md: expected '<!-- step -->'"):
        tables.filled(text.replace("<!-- step -->", ""))
