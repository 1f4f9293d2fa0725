"""docs/grounding.md names everything that is public, and each of its lines works as it stands."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest

from mmrl.data.grounding import metrics, qvhighlights, rewards, video_r1
from mmrl.data.grounding.formats import READERS, charades_sta, read_rows
from mmrl.data.grounding.time_encodings import EncodingName
from mmrl.data.video import frame_choice, frame_size, time_text

PAGE = (Path(__file__).parents[3] / "docs" / "grounding.md").read_text()
MODULES = (rewards, video_r1, metrics, frame_choice, frame_size)
USAGES = re.findall(r"^\| `(\w+)` \|.*\| `(.+)` → `(.+)` \|$", PAGE, re.MULTILINE)
ENTRIES = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|$", PAGE, re.MULTILINE))


def public(module: ModuleType) -> set[str]:
    """Functions that a module defines for others."""
    found = inspect.getmembers(module, inspect.isfunction)
    return {
        name
        for name, f in found
        if f.__module__ == module.__name__ and not name.startswith("_")
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_function_has_a_line(module: ModuleType) -> None:
    missing = public(module) - {name for name, _, _ in USAGES}
    assert not missing, f"docs/grounding.md has no line for {sorted(missing)}"


@pytest.mark.parametrize(
    ("name", "usage", "result"), USAGES, ids=[name for name, _, _ in USAGES]
)
def test_each_line_works(name: str, usage: str, result: str) -> None:
    names: dict[str, Any] = {"np": np}
    for module in (*MODULES, qvhighlights):
        names |= {key: value for key, value in vars(module).items() if not key.startswith("__")}
    assert name in usage
    found, expected = eval(usage, names), eval(result, names)
    assert found == (expected if isinstance(expected, str | bool) else pytest.approx(expected))


def test_every_format_has_an_entry() -> None:
    assert set(ENTRIES) == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_each_entry_is_read_and_recognised(name: str, tmp_path: Path) -> None:
    entry = ENTRIES[name]
    suffix = ".txt" if READERS[name] is charades_sta else ".json"
    path = tmp_path / f"rows{suffix}"
    path.write_text(entry + "\n")
    rows = read_rows(path, check_files=False)
    assert len(rows) == 1 and not rows.faults
    assert list(rows) == list(READERS[name](path, check_files=False))


def test_time_encodings_are_named() -> None:
    section = PAGE.partition("## Time encodings")[2]
    assert all(f"`{name}`" in section for name in get_args(EncodingName))
    assert "`check_stamps(clip)`" in section and callable(time_text.check_stamps)
