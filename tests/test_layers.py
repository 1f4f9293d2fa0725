"""The shape of the project: who imports whom, where heavy dependencies live, how long things may be.

Imports are read from the syntax tree, those inside functions included; `if TYPE_CHECKING:` blocks are not imports.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mmrl", "perception", "data", "recipes")
MAY_IMPORT = {
    "mmrl": {"mmrl"},
    "perception": {"mmrl", "perception"},
    "data": {"mmrl", "data"},
    "recipes": {"mmrl", "perception", "data", "recipes"},
}

# From the bottom: a module imports from its own layer or from one above it in this list. A folder stands for its files.
LAYERS = (
    ("types", "schedules", "seeds"),
    ("kl", "reduce", "advantages", "surrogates", "mismatch", "filters"),
    ("objectives",),
    (
        *(
            "grpo",
            "logprobs",
            "kernels",
            "attention",
            "visual_attention",
            "positions",
            "pixels",
            "chat",
            "sampling",
            "supply",
            "optim",
            "checkpoint",
        ),
        *("answers", "mathruler", "reward_worker", "reward_parts", "deadlines", "isolation"),
        *("tracking", "progress", "parallel"),
    ),
    ("processing", "batching", "features"),
    ("policy", "repeated", "engine", "engine_vllm", "branches", "tiny"),
    (
        *("rollout", "noisy_rollouts", "contrast_rollout", "given_answers", "checklist_rollout"),
        *("reward_functions", "rewards", "rewards_compat", "judge", "judge_http", "judge_ledger"),
    ),
    ("run", "learner", "trainer", "evaluate", "sft", "checks", "monitor", "early_stop"),
)
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# The only modules or packages that may import these.
HOMES = {
    "transformers": {
        *("mmrl.policy", "mmrl.processing", "mmrl.engine", "mmrl.tiny", "mmrl.attention", "mmrl.pixels", "mmrl.chat"),
        *("mmrl.tracking", "mmrl.visual_attention", "perception.saliency"),
    },
    "peft": {"mmrl.policy"},
    "vllm": {"mmrl.engine_vllm"},
    "decord": {"data.readers"},
    "torchcodec": {"data.readers"},
    "av": {"data.readers", "data.video_probe", "data.pretext.bench"},
    "datasets": {"data.sources", "data.pretext.archives"},
    "pyarrow": {"data.tables", "data.arrow_tables", "data.pretext.archives", "data.pretext.export"},
    "math_verify": {"mmrl.answers", "perception.compat"},
    "tensorboard": {"mmrl.tracking"},
    "wandb": {"mmrl.tracking"},
    "flash_attn": set(),
    "tyro": {"recipes"},
}
# Installed only on demand, or slow to import and needed by few: imported inside a function.
ON_DEMAND = {"vllm", "decord", "torchcodec", "flash_attn", "tensorboard", "wandb", "pyarrow", "datasets", "peft"}

MODULE_LINES, FUNCTION_LINES = 500, 90


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def is_type_checking(node):
    test = node.test if isinstance(node, ast.If) else None
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def imports(module, node=None, inside=False):
    """(imported name, line, inside a function?) of every run-time import of a module."""
    node = MODULES[module] if node is None else node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((name, child.lineno, inside) for name in origins(module, child))
        elif is_type_checking(child):
            for other in child.orelse:
                yield from imports(module, other, inside)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(module, child, inside or function)


def origins(module, node):
    """The modules that a `from ... import ...` names: `from mmrl import kl` means mmrl.kl."""
    source = node.module or ""
    if node.level:
        anchor = module.split(".")
        source = ".".join([*anchor[: len(anchor) - node.level], *source.split(".")]).rstrip(".")
    return {f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names}


def test_packages_are_all_read():
    assert {name.split(".")[0] for name in MODULES} == set(PACKAGES)
    assert "mmrl.objectives.papo" in MODULES and len(MODULES) > 40


@pytest.mark.parametrize("module", sorted(MODULES))
def test_packages_import_downwards(module):
    package = module.split(".")[0]
    for name, line, _ in imports(module):
        target = name.split(".")[0]
        if target in PACKAGES:
            allowed = MAY_IMPORT[package]
            assert target in allowed, f"{module}:{line} imports {name}; {package} may only import {sorted(allowed)}."


def core_name(module):
    """The name under which a module of the core stands in LAYERS; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.split(".")[0] == "mmrl"))
def test_the_core_imports_downwards(module):
    own = core_name(module)
    if not own:
        heavy = [name for name, _, _ in imports(module)]
        assert not heavy, f"mmrl/__init__.py must import nothing, it imports {heavy}."
        return
    assert own in LAYER, f"{module} has no layer: add {own!r} to LAYERS of {__file__}, as low as its imports allow."
    for name, line, _ in imports(module):
        target = core_name(name)
        if name.split(".")[0] != "mmrl" or not target:
            continue
        assert target in LAYER, f"{module}:{line} imports {name}, which has no layer in {__file__}."
        assert LAYER[target] <= LAYER[own], (
            f"{module}:{line} imports {name} from a higher layer ({LAYER[target]} > {LAYER[own]}); "
            f"move the shared part down, or the module up in LAYERS of {__file__}."
        )


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("mmrl.objectives.")))
def test_objectives_do_not_know_each_other(module):
    for name, line, _ in imports(module):
        if name.startswith("mmrl.objectives"):
            assert name == "mmrl.objectives.base", f"{module}:{line} imports {name}; objectives share only their base."


def test_no_import_cycle():
    graph = {
        module: {name for name, _, inside in imports(module) if name in MODULES and not inside} for module in MODULES
    }
    done, path = set(), []

    def visit(module):
        if module in done:
            return
        assert module not in path, f"import cycle: {' -> '.join([*path[path.index(module) :], module])}"
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
        assert at_home, f"{module}:{line} imports {name}; only {sorted(homes)} may, go through one of them."
        assert inside or dependency not in ON_DEMAND, f"{module}:{line}: import {dependency} inside the function."


@pytest.mark.parametrize("module", sorted(name for name in MODULES if f"{name}.".startswith("data.pretext.")))
def test_pretext_needs_no_torch(module):
    for name, line, _ in imports(module):
        assert name.split(".")[0] not in ("torch", "torchvision", "mmrl"), f"{module}:{line} imports {name}."


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_and_functions_are_short_and_documented(module):
    tree = MODULES[module]
    assert ast.get_docstring(tree), f"{module} needs a docstring that says what it decides."
    last = max((node.end_lineno or 0 for node in tree.body), default=0)
    assert last <= MODULE_LINES, f"{module} has {last} lines; split it by concern, {MODULE_LINES} are the limit."
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{module}.{node.name} has {lines} lines; {FUNCTION_LINES} are the limit."


def test_no_test_package_shadows_a_package_of_ours():
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("__init__.py"))
    assert not found, f"{found}: tests run in importlib mode and must have no __init__.py."
