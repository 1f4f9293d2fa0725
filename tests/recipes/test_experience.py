"""Recipes that remember something from step to step: a run goes on to the same bits, and is one run on two processes.

Each trains two or three steps in this process. The same run, as it would lie on the disk after kill -9 in its second
step, goes on here, too; two forks are the ranks of all runs on two processes. `benchmarks/kill_sweep.py` does
the first with real kills, `benchmarks/every_recipe_on_two.py` the second with larger runs.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mmrl.rewards.pay import Rewards
from mmrl.training.tracking import read_metrics
from tests.on_two import differences, flags_of, launched
from tests.several import several, values

SMALL = {
    "run.steps": 2,
    "run.prompts-per-step": 3,
    "run.save-every": 1,
    "run.keep": 0,
    "run.eval-prompts": 0,
    "monitor.probe-every": 0,
}
# Where the memory is of questions, the same ones come in every step.
CHOSEN: dict[str, dict[str, object]] = {
    # The seed for which the second step trains what the first one put by.
    "rorecomp": {"recomp.compensate": 1.0, "run.steps": 3, "run.seed": 6},
    "seele": {"data.limit": 3, "seele.rounds": 2},
    "ssb": {"data.limit": 12, "sampling.group-size": 8},
    "deepsearch": {"data.limit": 3, "sampling.group-size": None},
    "knowrl": {"data.limit": 3},
    "recap": {"recap.window": 1},
    "urlvr": {},
}
REMEMBERED = {
    "rorecomp": "remembered/0:RoRecompRollout/groups",
    "seele": "remembered/0:SEELERollout/of_prompts",
    "ssb": "remembered/0:SSBRollout/known",
    "deepsearch": "remembered/0:DeepSearchRollout",
    "knowrl": "remembered/0:KnowRLRollout/lines",
    "recap": "objectives/0:RECAP/values/accuracy",
    "urlvr": "plateau/seen",
}
"""Recipe -> where its memory lies in a checkpoint. MEL, SvS and MoDoMoDo remember their place in the data alone."""
ON_TWO = ("ssb", "seele")
"""Whose memory is made of what each process found; `benchmarks/every_recipe_on_two.py` runs all, which takes long."""


@pytest.fixture(scope="module", autouse=True)
def rewards_here():
    """No workers, which would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Rewards.__init__.__kwdefaults__, "isolate", False)
        yield


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory):
    """The folder of a recipe's run in one process, which nothing happened to."""

    @cache
    def made(name: str) -> Path:
        warm(name)
        folder = tmp_path_factory.mktemp(name) / "whole"
        run(name, folder)
        return folder

    return made


def run(name: str, folder: Path) -> None:
    """Train or go on in this process."""
    given = flags_of({**SMALL, **CHOSEN[name]})
    launched(name, ["embedded", *given, "--run.output", str(folder)])


def as_killed(whole: Path, again: Path) -> None:
    """A copy of a run as a kill behind its second line, before the checkpoint of that step, would have left it."""
    shutil.copytree(whole, again)
    shutil.rmtree(again / "model")
    (again / "finished.json").unlink()
    for later in (again / "checkpoints").glob("step-[2-9]"):
        shutil.rmtree(later)


def timeless(folder: Path) -> list[dict[str, float]]:
    """Metrics without what is measured."""
    away = ("time/", "memory/")
    return [
        {name: value for name, value in row.items() if not name.startswith(away)}
        for row in read_metrics(folder)
    ]


def state_of(folder: Path, step: int) -> dict[str, Any]:
    """The numbers of a checkpoint."""
    return json.loads((folder / "checkpoints" / f"step-{step}" / "state.json").read_text())


def inside(state: Any, path: str) -> Any:
    """What lies there in a state."""
    for name in path.split("/"):
        state = state[name]
    return state


@pytest.mark.parametrize("name", CHOSEN)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(name, whole, tmp_path):
    before, again = whole(name), tmp_path / "again"
    as_killed(before, again)
    remembered = inside(state_of(again, 1), REMEMBERED[name])
    assert remembered, "nothing that could be forgotten"
    run(name, again)
    assert timeless(again) == timeless(before)
    last = len(timeless(before))
    kept = [folder / "checkpoints" / f"step-{last}" for folder in (before, again)]
    for file in ("weights.safetensors", "optimizer.pt"):
        assert (kept[0] / file).read_bytes() == (kept[1] / file).read_bytes(), file
    assert state_of(before, last) == state_of(again, last)
    learned = any(row["optim/grad_norm"] > 0 for row in timeless(before))
    # With a part of its warm-up its model is never right; what it measures is what could be lost.
    assert learned or name == "knowrl", "nothing was learned"


@pytest.mark.parametrize("name", ON_TWO)
def test_a_run_on_two_processes_is_the_same(name, whole, tmp_path):
    alone = whole(name)  # here first: what is imported and traced once, the forks have
    values(several(2, run, name, tmp_path / "two", limit=300.0))
    found = differences(read_metrics(alone), read_metrics(tmp_path / "two"))
    if name == "ssb":
        # A question that was of no use comes again in the same step, and may come to the other process, whose cache
        # does not hold its picture.
        found = [
            one for one in found if "patches/tower" not in one and "/recomputed" not in one
        ]
    assert not found
    if name in REMEMBERED:  # what each has found, both remember
        folders = alone, tmp_path / "two"
        one, two = (inside(state_of(folder, 2), REMEMBERED[name]) for folder in folders)
        assert sorted(one) == sorted(two) if isinstance(one, dict) else len(one) == len(two)
