"""CONTRIBUTING.md taken at its word: its four files, written into a copy of the tree, are a paper that trains."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(
    re.findall(r"^`([\w/]+\.\w+)`\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
)
OBJECTIVE, RECIPE, TEST, TABLE = (
    "mmrl/objectives/steady.py",
    "recipes/steady.py",
    "tests/objectives/test_steady.py",
    "recipes/README.md",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with the four files in it."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("src", "mmrl", "perception", "data", "recipes"):
        # What is compiled comes along; files that somebody is just writing do not.
        forget = shutil.ignore_patterns("*.pyc.*")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=forget)
    (copy / "tests" / "objectives").mkdir(parents=True)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/test_layers.py"):
        shutil.copy(ROOT / name, copy / name)
    for name in (OBJECTIVE, RECIPE, TEST):
        assert not (copy / name).exists()
        (copy / name).write_text(BLOCKS[name], encoding="utf-8")
    table = copy / TABLE
    rows = table.read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(number for number, row in enumerate(rows) if row.startswith("| TempSamp-R1"))
    table.write_text(
        "".join([*rows[: last + 1], BLOCKS[TABLE], *rows[last + 1 :]]), encoding="utf-8"
    )
    return copy


def python(tree: Path, *arguments: str) -> str:
    """Output of Python in the copy; a new interpreter, for ours knows the modules of the checkout."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_there_are_four_files() -> None:
    assert set(BLOCKS) == {OBJECTIVE, RECIPE, TEST, TABLE}


BOTH = """
import json, runpy, sys

import pytest

tests, recipe = map(json.loads, sys.argv[1:])
assert pytest.main(tests) == 0
sys.argv[1:] = recipe
runpy.run_module("recipes.steady", run_name="__main__", alter_sys=True)
"""
"""Its tests, then its recipe, in one interpreter: what costs is to import torch."""


@pytest.fixture(scope="module")
def done(
    tree: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """What both say, and the output of the recipe."""
    # Of the layer test only what new files can change: their own cases, and what looks at the whole tree.
    chosen = "steady or cycle or rooms_are_read or links_lead"
    tests = ["-q", "-n", "0", TEST, "tests/test_layers.py", "-k", chosen]
    sizes = ("--run.steps", "2", "--run.eval-prompts", "2", "--run.prompts-per-step", "2")
    output = tmp_path_factory.mktemp("steady") / "out"
    recipe = ["embedded", *sizes, "--model", str(tiny_folder), "--run.output", str(output)]
    return python(tree, "-c", BOTH, json.dumps(tests), json.dumps(recipe)), output


def test_its_test_and_the_layer_test_pass(done: tuple[str, Path]) -> None:
    passed = re.search(r"(\d+) passed", done[0])
    assert passed and int(passed[1]) >= 12, done[0][-2000:]


def test_its_style_is_ours(tree: Path) -> None:
    files = (OBJECTIVE, RECIPE, TEST)
    python(tree, "-m", "ruff", "check", "--no-cache", *files)
    python(tree, "-m", "ruff", "format", "--no-cache", "--check", *files)


def test_its_recipe_trains(done: tuple[str, Path]) -> None:
    said, output = done
    assert "steady: 2 steps done." in said and "loss/steadiness" in said
    lines = (output / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss/steadiness"] > 0


def test_its_row_has_its_columns_and_its_links_lead_somewhere(tree: Path) -> None:
    rows = (tree / TABLE).read_text(encoding="utf-8").splitlines()
    head = next(row for row in rows if row.startswith("| paper | recipe |"))
    row = BLOCKS[TABLE].strip()
    assert row.count("|") == head.count("|")
    for link in re.findall(r"\]\(([^)]+)\)", row):
        assert (tree / "recipes" / link).exists() or link == "../CONTRIBUTING.md"
