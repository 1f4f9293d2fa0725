"""Every number of every preset of every recipe, as it was last agreed on: a change here changes published numbers.

`defaults.json` holds the defaults of each recipe, and for each preset what differs from them. After a wanted change:
`python -m tests.recipes.test_defaults` from the checkout writes it anew; read its diff before committing it.
"""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from mmrl.recipes.__main__ import recipes
from mmrl.recipes.shared.launch import with_defaults

FILE = Path(__file__).with_name("defaults.json")
NAMES = tuple(recipes())


def plain(value):
    """A default as JSON would keep it; records become mappings of their settings."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def resolved(main):
    parameters = inspect.signature(main).parameters.values()
    return {parameter.name: plain(parameter.default) for parameter in parameters}


def changed(old, new):
    """What differs in `new`, field by field."""
    found = {}
    for name, value in new.items():
        if value == old.get(name, ...):
            continue
        nested = isinstance(value, dict) and isinstance(old.get(name), dict)
        found[name] = changed(old[name], value) if nested else value
    return found


def defaults(name):
    recipe = importlib.import_module(f"mmrl.recipes.{name}")
    own = resolved(recipe.main)
    presets = {
        preset: changed(own, resolved(with_defaults(recipe.main, chosen.values)))
        for preset, chosen in recipe.PRESETS.items()
    }
    sizes = {preset: chosen.size for preset, chosen in recipe.PRESETS.items() if chosen.size}
    return {"defaults": own, "presets": presets, "billions": sizes}


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_agreed_ones(name):
    assert defaults(name) == json.loads(FILE.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    found = {name: defaults(name) for name in NAMES}
    FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
