"""A recipe whose answers come under two views, on two processes: the same run as on one."""

from __future__ import annotations

import pytest

from mmrl.model.policy import Policy
from tests.on_two import differences, trained

CHOSEN = {
    "vogue": {},
}
"""Other flags than those of all. `benchmarks/every_recipe_on_two.py` runs all recipes so, which takes long."""


@pytest.fixture(scope="module", autouse=True)
def imported(tiny_folder):
    """Once here, and not in each fork: what transformers imports when a model is first used."""
    Policy.load(tiny_folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("name", CHOSEN)
def test_a_recipe_is_the_same_run_on_two_processes(name, warm, tmp_path):
    warm(name)
    alone, (ended,) = trained(name, 1, tmp_path / "one", CHOSEN[name])
    assert ended.code == 0, ended.said
    both, ends = trained(name, 2, tmp_path / "two", CHOSEN[name])
    assert [end.code for end in ends] == [0, 0], ends[0].said + ends[1].said
    assert not ends[1].said.strip()  # one voice
    assert not differences(alone, both)
    assert any(row.get("optim/grad_norm", 0.0) > 0 for row in both), "nothing was learned"
