"""Pages that are written from the code: `python docs/build.py` makes docs/reference/ (not kept in the repository).

    settings.md         every record that a command line can set, field by field: flag, default, meaning
    papers/NAME.md      each recipe: what it does, its method, its presets, and the source of every published number
    api/MODULE.md       each public module: classes, functions and constants with their docstrings (api.py)
    notebooks/NAME.md   each notebook to read, without its outputs

Texts are docstrings; numbers with sources come from tests/recipes/preset_sources.json, which tests hold to the code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # api.py lies here, whoever loads this file

import api

import mmrl
from mmrl.recipes.__main__ import recipes

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "reference"
SOURCES = ROOT / "tests" / "recipes" / "preset_sources.json"
OURS = "ours"
"""What the table of sources says of a number that is in no paper."""


def build(output: Path) -> list[Path]:
    """Write all pages into a folder; returns them."""
    loaded = {name: importlib.import_module(f"mmrl.recipes.{name}") for name in recipes()}
    sources = json.loads(SOURCES.read_text(encoding="utf-8"))
    pages = {"settings.md": settings_page(loaded)}
    for name, recipe in loaded.items():
        pages[f"papers/{name}.md"] = paper_page(name, recipe, sources.get(name, {}))
    pages["papers/index.md"] = index_page(loaded)
    pages |= api.api_pages(mmrl._HOMES)
    for book in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        pages[f"notebooks/{book.stem}.md"] = notebook_page(book)
    written = []
    for path, text in pages.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_text(text, encoding="utf-8")
        written.append(output / path)
    return written


def records(recipe: ModuleType) -> Iterator[tuple[str, Any]]:
    """Name and default of each argument of a recipe that is a record."""
    for name, parameter in inspect.signature(recipe.main).parameters.items():
        if is_dataclass(parameter.default):
            yield name, parameter.default


def settings_page(loaded: Mapping[str, ModuleType]) -> str:
    """Each kind of record once, with the names under which recipes have it."""
    link = api.linked("api/")
    kinds: dict[type, dict[str, list[str]]] = {}
    for name, recipe in loaded.items():
        for flag, record in records(recipe):
            kinds.setdefault(type(record), {}).setdefault(flag, []).append(name)
    parts = [
        "# Settings",
        "Written by `docs/build.py` from the records. Recipes and presets have defaults of their own: "
        "`python -m recipes.NAME PRESET --print-config` shows what a run would use.",
    ]
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        parts += [
            f"## {kind.__name__}",
            f"{link(kind.__name__)} of `{kind.__module__}`. {doc(kind)}",
            _used(kinds[kind], len(loaded)),
            _table(kind),
        ]
    return "\n\n".join(parts) + "\n"


def _used(flags: Mapping[str, list[str]], number: int) -> str:
    """Under which name which recipes have a record."""
    where = [
        f"`--{dashed(flag)}.…` of {'all recipes' if len(names) == number else ', '.join(names)}"
        for flag, names in flags.items()
    ]
    return "; ".join(where) + "."


def _table(kind: type) -> str:
    notes = field_notes(kind)
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for field in fields(kind):
        if field.init:
            default = shown(getattr(kind(), field.name, None)) if _plain(kind) else ""
            rows.append(
                f"| `{dashed(field.name)}` | {default} | {cell(notes.get(field.name, ''))} |"
            )
    return "\n".join(rows)


def _plain(kind: type) -> bool:
    """Can it be made without arguments?"""
    try:
        kind()
    except TypeError:
        return False
    return True


def field_notes(kind: type) -> dict[str, str]:
    """Field -> the text below it, of the class and those it derives from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def paper_page(name: str, recipe: ModuleType, sources: Mapping[str, Any]) -> str:
    """What a recipe does, its method, its presets and where its numbers come from."""
    head, _, rest = inspect.cleandoc(recipe.__doc__ or name).partition("\n")
    parts = [f"# {head.rstrip('.')}"]
    if rest.strip():
        parts.append(_fenced(rest.strip("\n")))
    presets = ["| preset | what it is |", "| --- | --- |"]
    presets += [
        f"| `{preset}` | {cell(chosen.note)} |" for preset, chosen in recipe.PRESETS.items()
    ]
    parts += ["## Presets", "\n".join(presets)]
    methods = {
        type(r).__module__ for _, r in records(recipe) if "objectives" in type(r).__module__
    }
    for module in sorted(methods):
        text = _fenced(doc(importlib.import_module(module)))
        parts += ["## Method", f"[{module}](../api/{module}.md) is all of it:", text]
    published = _published(sources)
    if published:
        rows = [
            "| preset | setting | value | source |",
            "| --- | --- | --- | --- |",
            *published,
        ]
        parts += ["## Published numbers", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _published(sources: Mapping[str, Any]) -> list[str]:
    """Rows of the numbers that a paper or its code has; those of all presets first."""
    found = []
    groups = {"all": sources.get("every", {}), **sources.get("presets", {})}
    for preset, numbers in groups.items():
        for setting, (value, source) in numbers.items():
            if source != OURS:
                found.append(f"| {preset} | `{setting}` | {shown(value)} | {cell(source)} |")
    return found


def index_page(loaded: Mapping[str, ModuleType]) -> str:
    """A list of the pages about recipes."""
    lines = [
        f"- [{name}]({name}.md): {doc(recipe).splitlines()[0]}"
        for name, recipe in loaded.items()
    ]
    return "# Papers and recipes\n\n" + "\n".join(lines) + "\n"


def notebook_page(book: Path) -> str:
    """A notebook as a page: its texts as they are, its code in blocks."""
    parts = []
    for piece in json.loads(book.read_text(encoding="utf-8"))["cells"]:
        text = "".join(piece["source"])
        if piece["cell_type"] == "code":
            parts.append(f"```python\n{text}\n```")
            continue
        # The page lies one folder deeper than the notebook, and beside the pages of the others.
        deeper = re.sub(r"\]\((?=\.\./)", "](../", text)
        parts.append(re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", deeper))
    source = f"To run it: [docs/notebooks/{book.name}](../../notebooks/{book.name})."
    return "\n\n".join([*parts, source]) + "\n"


def doc(thing: Any) -> str:
    """Docstring without its indentation."""
    return inspect.cleandoc(thing.__doc__ or "")


def dashed(name: str) -> str:
    """As a flag is written."""
    return name.replace("_", "-")


def cell(text: str) -> str:
    """One cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def shown(value: Any) -> str:
    """A default or a value; functions by their name."""
    name = getattr(value, "__name__", None) if callable(value) else None
    return f"`{cell(name or str(value))}`" if name or str(value) else "empty"


def _fenced(text: str) -> str:
    """Formulas and commands stand as they were written."""
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    made = build(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
    sys.stdout.write(f"{len(made)} pages below {made[0].parent}\n")
