"""README's Python runs as it stands, block after block, and its numbers come from the committed result files."""

import csv
import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", ["step.csv", "demo.csv"])
def test_tables_quote_the_result_files(name: str) -> None:
    """Each number that README marks with a result file's row stands in that row."""
    with (ROOT / "benchmarks" / "results" / name).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) > 1
    assert f"benchmarks/results/{name}" in README.read_text(encoding="utf-8")
