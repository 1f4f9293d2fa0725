"""docs/guarantees.md and docs/pains.md name tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def rows(page):
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and "tests/" in line]


PROMISES, PAINS = rows("guarantees.md"), rows("pains.md")


@cache
def functions(file):
    """Names of the functions of a file, of whatever depth."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_pages_have_rows():
    assert len(PROMISES) > 10
    assert [row.split("|")[1].strip() for row in PAINS] == [str(n) for n in range(1, 26)]


@pytest.mark.parametrize(
    "row", PROMISES + PAINS, ids=lambda row: "-".join(row.split("|")[1:3]).strip()[:60]
)
def test_each_promise_names_a_test_that_exists(row):
    cell = next(cell for cell in reversed(row.split("|")) if "tests/" in cell)
    file = None
    for path, name in re.findall(r"(tests/[\w/]+\.py)?(?:::(\w+))?", cell):
        if path:
            file = ROOT / path
            assert file.is_file(), f"{path} does not exist."
        if name:
            assert file is not None, f"{name} stands before any file."
            assert name in functions(file), f"{file.name} has no test {name}."
