"""The notebooks run from top to bottom at tiny sizes, and lie in the repository without outputs.

There is no kernel: the cells are executed one after the other in one namespace, as a kernel would, so that no further
package is needed. What a notebook would show is the value of a cell's last expression; it is made into a picture here
where it can be one.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
BOOKS = {
    "own_objective": {"STEPS": 2, "PROMPTS": 2, "HELDOUT": 4},
    "branches": {"PROMPTS": 2, "ANSWERS": 2},
}
"""Notebook -> what its cell of parameters is replaced by."""


def cells(name, kind="code"):
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def run(name, monkeypatch):
    """Execute the code; returns the values of last expressions."""
    here = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, here)  # dataclasses look their module up
    shown = []
    for number, cell in enumerate(cells(name)):
        tree = ast.parse("".join(cell["source"]), f"{name}.ipynb, code cell {number + 1}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, tree_name := f"{name}.ipynb:{number + 1}", "exec"), vars(here))
        if last is not None:
            shown.append(
                eval(compile(ast.Expression(last.value), tree_name, "eval"), vars(here))
            )
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(BOOKS[name]) <= set(vars(here))
            vars(here).update(BOOKS[name])
    return shown


@pytest.mark.parametrize("name", BOOKS)
def test_a_notebook_runs_from_top_to_bottom(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shown = [value for value in run(name, monkeypatch) if hasattr(value, "_repr_png_")]
    assert len(shown) == (name == "branches")
    for picture in shown:
        assert picture._repr_png_()[:4] == b"\x89PNG"


def test_all_notebooks_are_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(BOOKS)


@pytest.mark.parametrize("name", BOOKS)
def test_a_notebook_has_no_outputs_and_its_links_lead_somewhere(name):
    for cell in cells(name):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    written = "".join("".join(cell["source"]) for cell in cells(name, "markdown"))
    for target in re.findall(r"\]\(([^)\s]+)\)", written):
        assert (FOLDER / target).resolve().exists(), target
