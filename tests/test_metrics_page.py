"""docs/metrics.md names every metric: those that the code spells out, and those of a run's `metrics.jsonl`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([a-z_]+/[A-Za-z_/]+)`", PAGE)
"""Names on the page; a part in capitals stands for any."""
GROUPS = sorted({name.split("/")[0] for name in NAMED})
LITERAL = re.compile(rf'"((?:{"|".join(GROUPS)})/[a-z_]+(?:/[a-z_]+)*)"')


def on_the_page(name):
    """Does a line of the page speak of this metric?"""
    return any(
        re.fullmatch(re.sub(r"[A-Z]+", r"[\\w. -]+", named), name) is not None
        for named in NAMED
    )


def spelled_out():
    """Metric -> a file that spells it out."""
    found = {}
    for folder in ("mmrl", "recipes", "perception", "data"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for name in LITERAL.findall(file.read_text(encoding="utf-8")):
                found[name] = file.relative_to(ROOT).as_posix()
    return found


def test_the_page_names_what_the_code_spells_out():
    found = spelled_out()
    assert len(found) > 30
    missing = {name: file for name, file in found.items() if not on_the_page(name)}
    assert not missing


@pytest.mark.parametrize(
    ("name", "there"),
    [("reward/own_part", True), ("branch/masked/kl", True), ("branch/masked/other", False)],
)
def test_capitals_stand_for_any_name(name, there):
    assert on_the_page(name) is there
    assert not on_the_page("policy/nobody_wrote_this")
