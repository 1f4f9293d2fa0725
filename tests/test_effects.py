"""The verdicts of the effects benchmark, and where its table goes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "effects.py"


@pytest.fixture(scope="module")
def effects():
    sys.path.insert(0, str(FILE.parent))  # as when the script is called
    try:
        yield importlib.import_module("effects")
    finally:
        sys.path.remove(str(FILE.parent))


def verdict(effects, values, others, larger=True, number="a"):
    found = {("m", i): {"a": v, "b": 0.1} for i, v in enumerate(values)}
    found |= {("grpo", i): {"a": v, "b": 0.1} for i, v in enumerate(others)}
    claim = effects.Claim("", number, larger=larger)
    return effects.judged("m", claim, found, {"a": 0.0, "b": 0.0}, range(len(values)))


def test_verdicts_follow_the_interval(effects):
    rise = verdict(effects, [0.5, 0.6, 0.55], [0.3, 0.4, 0.34])
    assert rise.verdict == "shown" and rise.difference == pytest.approx(0.2033, abs=1e-3)
    assert rise.half == pytest.approx(4.3027 * 0.005774 / 3**0.5, rel=1e-3)
    assert (
        verdict(effects, [0.5, 0.6, 0.55], [0.3, 0.4, 0.34], larger=False).verdict == "opposite"
    )
    assert verdict(effects, [0.5, 0.2, 0.9], [0.3, 0.4, 0.34]).verdict == "not shown"
    assert verdict(effects, [0.5], [0.3]).verdict == "not shown (one seed)"
    assert verdict(effects, [0.5, 0.6], [0.5, 0.6]).verdict == "not shown"
    assert verdict(effects, [0.5, 0.7], [0.1, 0.2], number="a-b").value == pytest.approx(0.5)


def test_every_method_is_a_recipe_with_claims(effects):
    for name, method in effects.METHODS.items():
        assert (
            FILE.parents[1] / "recipes" / f"{method.recipe}.py"
        ).is_file() and method.claims, name


def test_a_section_is_replaced_or_added(effects, tmp_path):
    documents = sys.modules["documents"]
    once = documents.inserted("# Title\n\nprose\n", "numbers", "first")
    assert once.startswith("# Title\n\nprose\n\n") and "first" in once
    twice = documents.inserted(once + "\nafter\n", "numbers", "second")
    assert "first" not in twice and twice.index("prose") < twice.index("second") < twice.index(
        "after"
    )
    both = documents.inserted(twice, "others", "third")
    assert "second" in both and "third" in documents.inserted(both, "numbers", "fourth")
    documents.write_section(tmp_path / "new.md", "numbers", "only")
    assert (tmp_path / "new.md").read_text().count("only") == 1
