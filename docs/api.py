"""The API reference, read from the source: a page per public module with its classes, functions and constants.

`build.py` writes it to docs/reference/api/. Nothing is imported, so signatures stand as they are written. Names that
are unique among the pages become links wherever a docstring quotes them.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = {
    "The core": ("mmrl/types.py", "mmrl/grpo.py", "mmrl/training/trainer.py"),
    "Settings and opening": (
        *("mmrl/training/run.py", "mmrl/training/optim.py", "mmrl/training/monitor.py"),
        *("mmrl/model/policy.py", "mmrl/model/load.py", "data/rows/sources.py"),
        *("data/rows/templates.py", "mmrl/model/families/family.py"),
    ),
    "Objectives": ("mmrl/objectives",),
    "Losses": ("mmrl/losses",),
    "Rollouts": ("mmrl/rollouts",),
    "Rewards": ("mmrl/rewards",),
    "Perception: views and rewards": ("perception",),
}
"""Heading -> files, or folders with all of their files."""
WIDTH = 88
Link = Callable[[str], str]
"""Turns the inside of a quotation into a link, or leaves it."""


@dataclass(frozen=True)
class Item:
    """A public class, function or constant."""

    name: str
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Assign | ast.AnnAssign
    doc: str


@dataclass(frozen=True)
class Module:
    """A public module."""

    name: str
    """As it is imported."""
    heading: str
    doc: str
    items: tuple[Item, ...]

    @property
    def page(self) -> str:
        """File of its page."""
        return f"{self.name}.md"


@cache
def modules() -> tuple[Module, ...]:
    """All of them, in the order of the rooms."""
    found = []
    for heading, places in ROOMS.items():
        for place in places:
            path = ROOT / place
            files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
            found += [read(file, heading) for file in files if not file.stem.startswith("_")]
    return tuple(module for module in found if module.items)


def read(file: Path, heading: str) -> Module:
    """A module from its file."""
    words = file.relative_to(ROOT).with_suffix("").parts
    # perception/, data/ and recipes/ lie beside mmrl/ and are installed in it.
    name = ".".join(words if words[0] == "mmrl" else ("mmrl", *words))
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return Module(name, heading, ast.get_docstring(tree) or "", tuple(items_of(tree.body)))


def items_of(body: Sequence[ast.stmt]) -> Iterator[Item]:
    """What is public; a constant is if a text below explains it."""
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield Item(node.name, node, ast.get_docstring(node) or "")
        elif (name := assigned(node)) and not name.startswith("_") and (note := text_of(below)):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            yield Item(name, node, note)


def assigned(node: ast.stmt) -> str:
    """The one name that a statement assigns, or nothing."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target: ast.expr = node.targets[0]
    elif isinstance(node, ast.AnnAssign):
        target = node.target
    else:
        return ""
    return target.id if isinstance(target, ast.Name) else ""


def text_of(node: ast.stmt | None) -> str:
    """A text that stands as a statement of its own."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return inspect.cleandoc(node.value.value) if isinstance(node.value.value, str) else ""
    return ""


def places() -> dict[str, str]:
    """Public name -> page and anchor; without names that several modules have."""
    times = Counter(item.name for module in modules() for item in module.items)
    return {
        item.name: f"{module.page}#{item.name}"
        for module in modules()
        for item in module.items
        if times[item.name] == 1
    }


def linked(prefix: str = "") -> Link:
    """Links to the pages, which lie below `prefix`."""
    known = places()

    def link(quoted: str) -> str:
        place = known.get(re.split(r"[.(\[]", quoted, maxsplit=1)[0])
        return f"[`{quoted}`]({prefix}{place})" if place else f"`{quoted}`"

    return link


def api_pages(facade: Mapping[str, str]) -> dict[str, str]:
    """Path -> text. `facade`: name -> module of what `mmrl` itself offers."""
    link = linked()
    pages = {f"api/{module.page}": module_page(module, link) for module in modules()}
    return {"api/index.md": index_page(facade, link), **pages}


def index_page(facade: Mapping[str, str], link: Link) -> str:
    """What `from mmrl import …` offers, and all modules by room."""
    parts = ["# API", "From the docstrings, by `docs/build.py`. `from mmrl import …` offers:"]
    notes = {(m.name, item.name): head(item.doc) for m in modules() for item in m.items}
    rows = [
        f"| [`{name}`]({home}.md#{name}) | {cell(prose(notes[home, name], link))} |"
        for name, home in sorted(facade.items())
    ]
    parts.append("\n".join(["| name | what it is |", "| --- | --- |", *rows]))
    for heading in ROOMS:
        lines = [
            f"- [{module.name}]({module.page}): {prose(head(module.doc), link)}"
            for module in modules()
            if module.heading == heading
        ]
        parts += [f"## {heading}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def module_page(module: Module, link: Link) -> str:
    """The module's text, then its parts in the order of the file."""
    parts = [f"# {module.name}", shown_doc(module.doc, link)]
    for item in module.items:
        parts += [f'<a id="{item.name}"></a>', f"## {item.name}", *described(item, link)]
    return "\n\n".join(part for part in parts if part) + "\n"


def described(item: Item, link: Link) -> Iterator[str]:
    """Signature, text, and of a class its fields and methods."""
    node = item.node
    if isinstance(node, ast.Assign | ast.AnnAssign):
        yield fenced(shortened(ast.unparse(node)))
        yield shown_doc(item.doc, link)
        return
    if not isinstance(node, ast.ClassDef):
        yield fenced(signature(node))
        yield shown_doc(item.doc, link)
        return
    start = next((m for m in methods(node) if m.name == "__init__"), None)
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    head_line = f"class {node.name}({bases})" if bases else f"class {node.name}"
    yield fenced(f"{head_line}\n{signature(start)}" if start else head_line)
    yield shown_doc(item.doc, link)
    yield shown_doc(ast.get_docstring(start) or "" if start else "", link)
    yield field_table(node, link)
    for method in methods(node):
        if method is not start:
            yield fenced(signature(method))
            yield shown_doc(ast.get_docstring(method) or "", link)


def methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public ones, and how an object is made and called."""
    return [
        part
        for part in node.body
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
        and (not part.name.startswith("_") or part.name in ("__init__", "__call__"))
    ]


def field_table(node: ast.ClassDef, link: Link) -> str:
    """Public annotated names of the class body with type, default and the text below."""
    rows = []
    for part, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(part, ast.AnnAssign) or not (name := assigned(part)):
            continue
        kind = ast.unparse(part.annotation)
        if name.startswith("_"):
            continue
        default = f"`{cell(shortened(ast.unparse(part.value)))}`" if part.value else ""
        note = cell(prose(text_of(below), link))
        rows.append(f"| `{name}` | `{cell(kind)}` | {default} | {note} |")
    lines = ["| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n".join(lines) if rows else ""


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """As it is written; one argument a line where it is long."""
    properties = {ast.unparse(mark) for mark in node.decorator_list} & {
        "property",
        "classmethod",
    }
    marks = "".join(f"@{mark}\n" for mark in sorted(properties))
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{word} {node.name}({ast.unparse(node.args)}){result}"
    if len(line) > WIDTH:
        arguments = "".join(f"    {one},\n" for one in split_arguments(ast.unparse(node.args)))
        line = f"{word} {node.name}(\n{arguments}){result}"
    return marks + line


def split_arguments(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def shown_doc(text: str, link: Link) -> str:
    """A docstring as Markdown: paragraphs and numbered lists as such, formulas and tables as they were written."""
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    # Four spaces make a formula; a gap within a line is that of a table. Lists go on with two or three.
    drawn = [bool(re.search(r"^ {4}|\S {2,}\S", block, re.M)) for block in blocks]
    shown = []
    for block, as_it_is in zip(blocks, drawn, strict=True):
        numbered = re.sub(
            r"(?<!\n)\n(?=1\. |- )", "\n\n", block
        )  # a list wants a blank line before it
        shown.append(fenced(block) if as_it_is else prose(numbered, link))
    return "\n\n".join(shown)


def prose(text: str, link: Link) -> str:
    """Text with links; what Markdown would take for its own is escaped outside of quotations."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        link(" ".join(piece[1:-1].split()))
        if piece.startswith("`") and len(piece) > 2
        else escaped(piece)
        for piece in pieces
    )


def escaped(text: str) -> str:
    """Without the signs of Markdown and HTML."""
    return re.sub(r"([\\*_\[\]])", r"\\\1", text).replace("<", "&lt;")


def head(text: str) -> str:
    """The first sentence, or what stands before the first blank line."""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", first, maxsplit=1)[0]


def shortened(text: str, limit: int = 200) -> str:
    """A long value is cut."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def cell(text: str) -> str:
    """One cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def fenced(text: str) -> str:
    """Code, or text that keeps its form."""
    kind = "python" if re.match(r"(@|def |async def |class |\w+(: .*)? = )", text) else "text"
    return f"```{kind}\n{textwrap.dedent(text)}\n```"
