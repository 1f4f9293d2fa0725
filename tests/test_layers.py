"""The shape of the project: who imports whom, where heavy dependencies live, how long things may be.

Imports are read from the syntax tree: those inside functions and under `if TYPE_CHECKING:` count like all others.
A folder is a layer, so a new file needs no entry here.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mmrl", "perception", "data", "recipes")
"""Top-level folders; all are installed below `mmrl`."""
UPPER = ("perception", "data", "recipes")

# From the bottom: a module imports from its own layer or from one before it in this list. `rollouts` and `rewards` do
# not know each other, nor do `perception` and `data`.
LAYERS = (
    ("ground",),
    ("report",),
    ("types", "losses"),
    ("objectives",),
    ("grpo", "model", "tools"),
    ("rollouts", "rewards"),
    ("training",),
    ("perception", "data"),
    ("recipes",),
)
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}
STRANGERS = ({"rollouts", "rewards"}, {"perception", "data"})

# The only rooms or modules that may import these.
HOMES = {
    "transformers": {
        "mmrl.model",
        "mmrl.rollouts.engine",
        "mmrl.training.tracking",
        "mmrl.perception.saliency",
    },
    "peft": {"mmrl.model.load"},
    "vllm": {"mmrl.rollouts"},
    "decord": {"mmrl.data.video"},
    "torchcodec": {"mmrl.data.video"},
    "av": {"mmrl.data.video", "mmrl.data.pretext.audit.bench"},
    "datasets": {"mmrl.data.rows", "mmrl.data.pretext.stream"},
    "pyarrow": {"mmrl.ground.tables", "mmrl.data.pretext.stream"},
    "math_verify": {"mmrl.rewards", "mmrl.perception.compat"},
    "tensorboard": {"mmrl.training.loggers"},
    "wandb": {"mmrl.training.loggers"},
    "trackio": {"mmrl.training.loggers"},
    "mlflow": {"mmrl.training.loggers"},
    "flash_attn": {"mmrl.model.ragged"},
    "torchao": {"mmrl.training.optim"},
    "tyro": {"mmrl.recipes"},
}
# Installed only on demand, or slow to import and needed by few: imported inside a function.
ON_DEMAND = {
    "vllm",
    "decord",
    "torchcodec",
    "flash_attn",
    "torchao",
    "tensorboard",
    "wandb",
    "trackio",
    "mlflow",
    "pyarrow",
    "datasets",
    "peft",
}

# Pretext tasks run in processes without torch; these turn them into prompts and may know the core.
PRETEXT_WITH_TORCH = {
    f"mmrl.data.pretext.{name}" for name in ("prompts", "curriculum", "evaluate", "rac")
}
TORCH_FREE = ("mmrl.ground", "mmrl.report", "mmrl.data.pretext", "mmrl.data.video")

MODULE_LINES, FUNCTION_LINES = 500, 90


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "mmrl" else ("mmrl", *parts)
    return ".".join(inside[:-1] if inside[-1] == "__init__" else inside)


def files():
    """Every file once: the links inside mmrl/ lead to folders that are read by themselves."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            if not (parts[0] == "mmrl" and parts[1] in UPPER):
                yield path


MODULES = {module_name(path): path for path in files()}


@cache
def tree_of(module):
    path = MODULES[module]
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def room(module):
    """The layer's name of a module; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(module):
    """(imported name, line, inside a function?) of every import of a module."""
    return tuple(imports_below(module, tree_of(module), False))


def imports_below(module, node, inside):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((name, child.lineno, inside) for name in origins(module, child))
        elif not isinstance(child, ast.expr):  # imports are statements
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports_below(module, child, inside or function)


def origins(module, node):
    """The modules that a `from ... import ...` names: `from mmrl.losses import kl` means mmrl.losses.kl."""
    source = node.module or ""
    if node.level:
        anchor = module.split(".")
        source = ".".join([*anchor[: len(anchor) - node.level], *source.split(".")]).rstrip(".")
    return {
        f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source
        for alias in node.names
    }


def test_all_rooms_are_read():
    assert {room(name) for name in MODULES} == {*LAYER, ""} and len(MODULES) > 40


def test_links_lead_to_the_folders():
    for name in UPPER:
        assert (ROOT / "mmrl" / name).resolve() == ROOT / name, (
            f"mmrl/{name} must be a link to ../{name}."
        )


@pytest.mark.parametrize("module", sorted(MODULES))
def test_rooms_import_downwards(module):
    own = room(module)
    if not own:
        return  # the façade loads its names when they are asked for
    assert own in LAYER, f"{module} stands in no room; the rooms are {sorted(LAYER)}."
    for name, line, _ in imports(module):
        target = room(name) if name.split(".")[0] == "mmrl" else ""
        if not target:
            assert name.split(".")[0] not in UPPER, (
                f"{module}:{line}: import mmrl.{name} instead of {name}."
            )
            continue
        assert LAYER[target] <= LAYER[own], (
            f"{module}:{line} imports {name} from a higher room; move what is shared down."
        )
        assert {own, target} not in STRANGERS, (
            f"{module}:{line} imports {name}; {own} and {target} do not know each other."
        )


def test_the_facade_is_light():
    """`import mmrl` loads nothing of ours but the version; type checkers see the names of the façade."""
    for node in tree_of("mmrl").body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmrl"):
            assert node.module == "mmrl.ground.version"


@pytest.mark.parametrize(
    "module", sorted(name for name in MODULES if name.startswith("mmrl.objectives."))
)
def test_objectives_do_not_know_each_other(module):
    for name, line, _ in imports(module):
        if name.startswith("mmrl.objectives"):
            assert name == "mmrl.objectives.base", (
                f"{module}:{line} imports {name}; objectives share only their base."
            )


def test_no_import_cycle():
    graph = {
        module: {name for name, _, _ in imports(module) if name in MODULES}
        for module in MODULES
    }
    graph["mmrl"] = set()  # the façade names what lies above it
    done, path = set(), []

    def visit(module):
        if module in done:
            return
        assert module not in path, (
            f"import cycle: {' -> '.join([*path[path.index(module) :], module])}"
        )
        path.append(module)
        for target in sorted(graph[module]):
            visit(target)
        done.add(path.pop())

    for module in graph:
        visit(module)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_heavy_dependencies_stay_at_home(module):
    for name, line, inside in imports(module):
        dependency = name.split(".")[0]
        homes = HOMES.get(dependency)
        if homes is None:
            continue
        at_home = any(module == home or module.startswith(f"{home}.") for home in homes)
        assert at_home, (
            f"{module}:{line} imports {name}; only {sorted(homes)} may, go through one of them."
        )
        assert inside or dependency not in ON_DEMAND, (
            f"{module}:{line}: import {dependency} inside the function."
        )


def is_torch_free(module):
    return module.startswith(TORCH_FREE) and module not in PRETEXT_WITH_TORCH


@pytest.mark.parametrize(
    "module",
    sorted(name for name in MODULES if name.startswith(("mmrl.data.pretext", "mmrl.report"))),
)
def test_pretext_and_reports_need_no_torch(module):
    if not is_torch_free(module):
        return
    for name, line, inside in imports(module):
        asked_for = inside and module == "mmrl.data.pretext.__main__"  # `eval` loads a model
        assert name.split(".")[0] not in ("torch", "torchvision"), (
            f"{module}:{line} imports {name}."
        )
        assert asked_for or name.split(".")[0] != "mmrl" or is_torch_free(name), (
            f"{module}:{line} imports {name}."
        )


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_and_functions_are_short_and_documented(module):
    tree = tree_of(module)
    assert ast.get_docstring(tree), f"{module} needs a docstring that says what it decides."
    last = max((node.end_lineno or 0 for node in tree.body), default=0)
    assert last <= MODULE_LINES, (
        f"{module} has {last} lines; split it by concern, {MODULE_LINES} are the limit."
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_LINES, (
                f"{module}.{node.name} has {lines} lines; {FUNCTION_LINES} are the limit."
            )


def test_no_test_package_shadows_a_package_of_ours():
    found = sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("__init__.py")
    )
    assert not found, f"{found}: tests run in importlib mode and must have no __init__.py."
