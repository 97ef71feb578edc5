"""docs/support.md: each cell of its tables is tied to a test that is there and runs."""

import ast
import re
from pathlib import Path

import pytest
from families import FAMILIES
from selective_peft import methods

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"
CELL = re.compile(r"untested|-|\[(yes|no)\]\[[^]]+\]( \[(yes|no)\]\[[^]]+\])*")
TEXT = PAGE.read_text(encoding="utf-8")
TESTS = {
    key: (PAGE.parent / file, name)
    for key, file, name in re.findall(r'^\[([^]]+)\]: (\S+) "(test_\w+)"$', TEXT, flags=re.MULTILINE)
}
USES = re.findall(r"\[(yes|no)\]\[([^]]+)\]", TEXT)


def tables():
    """Each table as rows of cells, its head among them."""
    for block in re.findall(r"(?:^\|.*\|\n)+", TEXT, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
        yield [rows[0], *rows[2:]]


def found(key):
    """The test of a cell, and the decorators and the `pytestmark` of its module that it runs under."""
    file, name = TESTS[key]
    module = ast.parse(file.read_text(encoding="utf-8"))
    tests = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(tests) == 1, f"{key}: expected {name} in {file.name}, got {len(tests)} of it"
    marks = [node.value for node in module.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    return tests[0], [ast.unparse(node) for node in [*tests[0].decorator_list, *marks]]


def test_cells_say_yes_no_untested_or_nothing():
    """All but the first column, and the notes in columns without a head."""
    cells = 0
    for head, *rows in tables():
        for row in rows:
            assert len(row) == len(head), row
            for title, cell in zip(head[1:], row[1:], strict=True):
                assert not title or CELL.fullmatch(cell), f"{row[0]}, {title}: {cell!r}"
                cells += bool(title)
    assert cells > 200


def test_all_tests_are_used_and_known():
    assert {key for _, key in USES} == set(TESTS)
    assert len(re.findall(r"^\[[^]]+\]: ", TEXT, flags=re.MULTILINE)) == len(TESTS)


@pytest.mark.parametrize("key", TESTS)
def test_each_is_there_and_not_skipped(key):
    _, marks = found(key)
    assert not [mark for mark in marks if re.search(r"mark\.(skip|xfail)", mark)]


@pytest.mark.parametrize("key", sorted({key for word, key in USES if word == "no"}))
def test_what_does_not_work_is_refused(key):
    """The test of a "no" expects an error, itself or by a function that does."""
    test, _ = found(key)
    assert re.search(r"pytest\.raises|assert_refused", ast.unparse(test))


def test_no_method_or_family_is_missing():
    first = [[row[0].strip("`") for row in table[1:]] for table in tables()]
    assert sorted(methods()) in [sorted(column) for column in first]
    assert any(set(FAMILIES) <= set(column) for column in first)
