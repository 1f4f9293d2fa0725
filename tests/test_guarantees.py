"""docs/guarantees.md names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "tests/" in line]


def test_the_page_has_rows():
    assert len(ROWS) > 10


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_each_promise_names_a_test_that_exists(row):
    cell = row.rstrip(" |").rsplit("|", 1)[1]
    file = None
    for path, name in re.findall(r"(tests/[\w/]+\.py)?(?:::(\w+))?", cell):
        if path:
            file = ROOT / path
            assert file.is_file(), f"{path} does not exist."
        if name:
            assert file is not None, f"{name} stands before any file."
            tree = ast.parse(file.read_text(encoding="utf-8"))
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert name in names, f"{file.name} has no test {name}."
