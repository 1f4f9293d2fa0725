"""What the pages say is so: quoted messages are in the code, commands parse, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import posixpath
import re
import shlex
import sys
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import mmrl
from mmrl.recipes.__main__ import PRETEXT_ROWS, recipes
from mmrl.recipes.shared.exporting import EXPORT_HELP
from mmrl.recipes.shared.launch import resolved

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md")),
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "reference" not in p.parts),
]
TROUBLE = ROOT / "docs" / "guide" / "troubleshooting.md"
ROOMS = ("mmrl", "perception", "data", "recipes")
RUNS = re.compile(
    r"(?:python -m recipes\.|(?:torchrun .*)-m recipes\.|mmrl (?:plan |preview )?)"
)
COMMAND = re.compile(rf"^\s*(?:\$ )?({RUNS.pattern}\S.*)$")
INLINE = re.compile(rf"`({RUNS.pattern}[^`]+)`")
NOT_RUNS = {
    "list",
    "report",
    "doctor",
    "eval",
    "export",
    "check",
    "plan",
    "preview",
    "mixture",
    "extrapolate",
    "choices",
    "geometry",
}
EXAMPLE = "steady"
"""The paper that CONTRIBUTING.md adds; tests/test_contributing.py runs it."""
OF_THE_PAGE_ITSELF = ("--machine", "--tflops", "--terabytes", "--rows", "--output")


@cache
def said():
    """Every text of the source in one line, with … for what is put in."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found = []
    for path in files:  # one tree at a time: all at once they are millions of objects
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [" ".join(t.split()) for node in ast.walk(tree) if (t := text(node))]
    return found


def text(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages():
    """First cells of the tables; a cell is one quotation."""
    lines = TROUBLE.read_text(encoding="utf-8").splitlines()
    return [line[3 : line.index("` | ")] for line in lines if line.startswith("| `")]


def test_there_are_messages_to_look_up():
    found = messages()
    assert len(found) > 40 and len(set(found)) == len(found)


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_is_in_the_code(message):
    assert any(message in one for one in said()), f"Nothing says {message!r}."


def test_a_message_that_is_not_in_the_code_is_seen():
    assert not any("It does not quite fit:" in one for one in said())


def commands():
    """Command lines of recipes in blocks and in the text; those with blanks to fill in are left out."""
    found = []
    for page in PAGES:
        written = page.read_text(encoding="utf-8").replace("\\\n", " ").replace(r"\|", "|")
        lines = [m.group(1) for line in written.splitlines() if (m := COMMAND.match(line))]
        for line in [*lines, *INLINE.findall(written)]:
            if "…" not in line and "NAME" not in line and "RECIPE" not in line:
                found.append(line)
    return sorted(set(found))


def arguments(line):
    """The recipe and its arguments; "" for a command that is no recipe's."""
    words = shlex.split(RUNS.sub("", line, count=1), comments=True)
    words = words[: next((n for n, word in enumerate(words) if word in "|>&;"), len(words))]
    for flag in OF_THE_PAGE_ITSELF if re.match("mmrl (plan|preview) ", line) else ():
        if flag in words:
            at = words.index(flag)
            del words[at : at + 2]
    return ("", []) if words[0] in {EXAMPLE, *NOT_RUNS} else (words[0], words[1:])


def test_there_are_commands_to_try():
    assert len(commands()) > 40


@pytest.mark.parametrize("line", commands())
def test_a_command_is_understood(line):
    name, args = arguments(line)
    if name == "pretext" and args and args[0] in PRETEXT_ROWS:
        return  # a command about rows, which tests/recipes/test_commands.py tries
    if not name:
        command = line.split()[1]  # of `mmrl`, for recipes have a name
        main = (ROOT / "recipes" / "__main__.py").read_text(encoding="utf-8")
        assert f'"{command}"' in main or EXAMPLE in line, f"There is no command mmrl {command}."
        return
    assert name.replace("-", "_") in recipes(), f"There is no recipe {name}."
    if "--help" in args or "--help-all" in args:
        return
    recipe = importlib.import_module(f"mmrl.recipes.{name.replace('-', '_')}")
    resolved(recipe.main, recipe.PRESETS, args)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    written = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", written):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.name} leads to {target}, which is not there."
            if anchor and there.suffix == ".md":
                assert anchor in anchors(there), f"{there.name} has no heading {anchor}."


def anchors(page):
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    plain = [re.sub(r"[^\w\- ]", "", head.lower()) for head in heads]
    return {head.strip().replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_a_page_imports_what_is_there(page):
    written = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", written, re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmrl"):
                if EXAMPLE in node.module:
                    continue
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}."


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The pages that are written from the code."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("reference")
    return {str(p.relative_to(folder)): p.read_text() for p in script.build(folder)}


def test_every_setting_is_explained(made):
    rows = [r for r in made["settings.md"].splitlines() if r.startswith("| `")]
    assert len(rows) > 150
    silent = [row for row in rows if re.search(r"\|  \|$", row)]
    assert not silent, silent


def test_every_recipe_has_a_page_with_its_published_numbers(made):
    sources = json.loads((ROOT / "tests/recipes/preset_sources.json").read_text())
    for name in recipes():
        page = made[f"papers/{name}.md"]
        groups = {"all": sources.get(name, {}).get("every", {})}
        groups |= sources.get(name, {}).get("presets", {})
        for preset, numbers in groups.items():
            for setting, (_, source) in numbers.items():
                row = f"| {preset} | `{setting}` |"
                assert (row in page) == (source != "ours"), f"{name}: {row}"
    assert (
        "arXiv 2507.06448" in made["papers/papo.md"] and "`7b-no-ref`" in made["papers/papo.md"]
    )


def public(folder):
    """(module, name) of the classes and functions of a room, by their definitions."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        words = file.relative_to(ROOT).with_suffix("").parts
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            defines = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if defines and not node.name.startswith("_") and file.stem != "__init__":
                yield ".".join(words if words[0] == "mmrl" else ("mmrl", *words)), node.name


@pytest.mark.parametrize(
    "folder",
    [*(f"mmrl/{r}" for r in ("objectives", "losses", "rollouts", "rewards")), "perception"],
)
def test_every_public_name_of_a_room_is_in_the_reference(made, folder):
    names = list(public(folder))
    assert len(names) > 10
    for module, name in names:
        assert f'<a id="{name}"></a>' in made[f"api/{module}.md"], f"{module}.{name}"


def test_the_facade_and_the_records_are_in_the_reference(made):
    for name, home in mmrl._HOMES.items():
        assert f'<a id="{name}"></a>' in made[f"api/{home}.md"], name
        assert f"[`{name}`]({home}.md#{name})" in made["api/index.md"]
    assert "| `temperature` |" in made["api/mmrl.types.md"]


def test_a_notebook_is_a_page_of_the_site(made):
    page = made["notebooks/own_objective.md"]
    assert "```python\nSTEPS = 60" in page and "[effects.md](../../effects.md)" in page
    assert "[branches.ipynb](branches.md)" in page
    for book in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{book.stem}.md" in made


def test_links_between_the_written_pages_lead_somewhere(made):
    found = 0
    for page, text in made.items():
        for target in re.findall(
            r"\]\(([^)\s]+\.md[^)\s]*)\)", re.sub(r"```.*?```", "", text, flags=re.S)
        ):
            path, _, anchor = target.partition("#")
            there = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
            if there.startswith(".."):  # pages that are written by hand
                assert (ROOT / "docs" / "reference" / there).resolve().exists(), (
                    f"{page}: {target}"
                )
                continue
            assert there in made, f"{page} leads to {target}"
            assert not anchor or f'<a id="{anchor}"></a>' in made[there], f"{page}: {target}"
            found += 1
    assert found > 200


def test_the_texts_of_the_reference_are_shown_as_they_are_meant(made):
    page = made["api/mmrl.losses.kl.md"]
    # A formula keeps its form, a numbered list is one, names are links, and nothing is taken for HTML.
    assert "```text\nk1  = -u              unbiased" in page
    assert "\n\n1. verl, EasyR1 and PAPO clamp" in page
    quoted = "here [`Rewards`](mmrl.rewards.pay.md#Rewards) drops it for the whole group"
    assert quoted in made["api/mmrl.rewards.parts.md"]
    for name, text in made.items():
        if name.startswith("api/"):
            plain = re.sub(r"```.*?```|`[^`]*`|<a id=\"\w+\"></a>", "", text, flags=re.S)
            assert not re.search(r"<[a-z/]", plain), name


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "guide").glob("*.md")), ids=lambda p: p.stem
)
def test_python_of_the_guide_runs(page, monkeypatch):
    monkeypatch.setitem(sys.modules, "guide", ModuleType("guide"))  # dataclasses look it up
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        exec(compile(block, page.name, "exec"), {"__name__": "guide"})


@cache
def flags():
    """Every flag of every recipe, and those of the commands around them."""
    found = {
        "--help",
        "--help-all",
        "--config",
        "--print-config",
        "--reward",
        *OF_THE_PAGE_ITSELF,
        *re.findall(r"--[a-z-]+", EXPORT_HELP),
    }
    for name in recipes():
        main = importlib.import_module(f"mmrl.recipes.{name}").main
        for argument, parameter in inspect.signature(main).parameters.items():
            record = parameter.default
            inner = [f.name for f in fields(record)] if is_dataclass(record) else [""]
            for n in inner:
                found.add(f"--{argument}.{n}".rstrip(".").replace("_", "-"))
                found.add(f"--{argument}.no-{n}".rstrip(".").replace("_", "-"))  # of switches
    return found | {"--run.from"}  # `from` is no name for a field


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "guide").glob("*.md")), ids=lambda p: p.stem
)
def test_flags_that_a_guide_names_are_there(page):
    quoted = re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))
    named = {f for q in quoted for f in re.findall(r"(?<!\S)--[a-z][\w.-]*\w", q)}
    assert named and named - flags() == set()


def test_every_page_is_in_the_site():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w/]+\.md)$", nav, re.M))
    here = {
        str(p.relative_to(ROOT / "docs")) for p in PAGES if "docs" in p.parts[len(ROOT.parts) :]
    }
    assert here - named == set()  # an entry without a page is reported by mkdocs
