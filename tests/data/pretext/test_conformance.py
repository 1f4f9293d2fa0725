"""Every task of the catalogue keeps the contract, on drawn media."""

from __future__ import annotations

from functools import cache

import pytest

from mmrl.data.pretext.audit.conformance import CHECKS, Case, drawn_cases
from mmrl.data.pretext.catalogue import TASKS, find


@cache
def cases(name: str) -> list[Case]:
    return drawn_cases(find(name))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [task.name for task in TASKS])
def test_task_keeps_the_contract(name: str, check) -> None:
    check(find(name), cases(name))


def test_names_are_unique() -> None:
    names = [task.name for task in TASKS]
    assert len(set(names)) == len(names)


def test_unknown_task_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="jigsaw"):
        find("jigsaww")
