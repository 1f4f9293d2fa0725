"""`mmrl doctor` tells what is there, what is missing and what that costs."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from mmrl.recipes.shared import doctor

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_a_healthy_computer_has_nothing_wrong():
    text, code = doctor.report()
    assert code == 0 and text.endswith("Runs will start.") and "WRONG" not in text
    for name in ("torch", "transformers", "torchvision", "cpu", "disk here"):
        assert any(line.split()[1:2] == [name.split()[0]] for line in text.splitlines()), name


def test_every_extra_has_its_cost():
    assert set(doctor.OPTIONAL) == set(PROJECT["optional-dependencies"]) - {"dev", "docs"}


@pytest.mark.parametrize("name", doctor.OPTIONAL)
def test_what_is_missing_costs_something_and_stops_nothing(monkeypatch, name):
    real = importlib.metadata.version

    def version(asked):
        if asked == doctor.STANDS_FOR.get(name, name):
            raise importlib.metadata.PackageNotFoundError(asked)
        return real(asked)

    monkeypatch.setattr(importlib.metadata, "version", version)
    # An editable install keeps the needs of the day it was made.
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: PROJECT["dependencies"])
    text, code = doctor.report()
    (line,) = [line for line in text.splitlines() if line.split()[:2] == ["without", name]]
    assert doctor.OPTIONAL[name] in line and f"mmrl[{name}]" in line and code == 0


@pytest.mark.parametrize(
    ("have", "said"), [(None, "is not installed"), ("0.1", "is 0.1, needed is")]
)
def test_what_every_run_needs_stops_with_the_remedy(monkeypatch, have, said):
    monkeypatch.setattr(doctor, "_version", lambda name: have if name == "peft" else "99")
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda _: ["peft>=0.17", "x; extra == 'dev'"]
    )
    text, code = doctor.report()
    (line,) = [line for line in text.splitlines() if line.startswith("WRONG")]
    assert code == 1 and said in line and "pip install 'peft>=0.17'" in line
    assert text.endswith("1 of these stop every run.")
