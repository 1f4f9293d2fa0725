"""The curriculum inside a run: levels and shares move, and a resumed run equals one that was never stopped."""

from __future__ import annotations

import pytest
import torch

from mmrl.data.pretext.curriculum import FollowCurriculum
from mmrl.data.pretext.difficulty import LevelController
from mmrl.data.pretext.mixture import LearningProgress
from mmrl.data.pretext.presets import Ingredient, TaskMix
from mmrl.data.pretext.prompts import Curriculum, PretextPrompts
from mmrl.data.pretext.stream.sources import DrawnSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.data.pretext.surface import Surface
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling

MIX = TaskMix(
    "two",
    (
        Ingredient("rotation", 1.0, {"side": 32}),
        Ingredient(
            "jigsaw", 1.0, {"rows": 2, "columns": 1, "unit": 16, "side": 64, "gap": 0.1}
        ),
    ),
    Surface(variant=0),
)


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 5) / 5


def trainer(folder, output, stop_after=None):
    """A run whose answers "succeed" by their token sum, so that levels and shares move quickly."""
    stream = SampleStream(DrawnSource(size=(96, 128)), MIX, seed=3)
    curriculum = Lucky(
        stream,
        LevelController(start=0.2, step=0.1, window=6, band=0.0),
        LearningProgress(warmup=1),
    )
    made = Trainer(
        Policy.load(folder, device="cpu", dtype="float32"),
        prompts=PretextPrompts(stream),
        rewards=Rewards(puzzle=pay),
        objectives=[FollowCurriculum(curriculum)],
        sampling=Sampling(3, max_tokens=4),
        optim=Optim(lr=1e-3),
        run=Run(output=output, steps=6, prompts_per_step=3, save_every=2),
    )
    if stop_after is not None:
        take, count = made.step, iter(range(stop_after))

        def step(now):
            if next(count, None) is None:
                raise KeyboardInterrupt  # nothing is saved beyond the last checkpoint, as after a kill
            return take(now)

        made.step = step
    return made, curriculum


class Lucky(Curriculum):
    """Takes the paid reward for the success."""

    def observe(self, rollouts):
        totals = {}
        for rollout in rollouts:
            total, count = totals.get(rollout.prompt.extra["task"], (0.0, 0))
            totals[rollout.prompt.extra["task"]] = (total + rollout.reward, count + 1)
        return totals


def rows_of(folder):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
        for row in read_metrics(folder)
    ]


def test_a_resumed_curriculum_equals_an_uninterrupted_one(tiny_folder, tmp_path):
    whole, moved = trainer(tiny_folder, tmp_path / "whole")
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(tiny_folder, tmp_path / "cut", stop_after=5)[
            0
        ].fit()  # one step after the checkpoint of step 4
    again, resumed = trainer(tiny_folder, tmp_path / "cut")
    again.fit()
    assert moved.state() == resumed.state() and moved.state()["levels"]["levels"]
    assert set(moved.levels.levels.values()) != {0.2}, "the levels moved"
    first, second = rows_of(tmp_path / "whole"), rows_of(tmp_path / "cut")
    assert first == second and any("followcurriculum/level_rotation" in row for row in first)
    pairs = zip(whole.policy.named_parameters(), again.policy.named_parameters(), strict=True)
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


def test_the_listener_leaves_the_advantage_alone(tiny_folder, tmp_path):
    made, curriculum = trainer(tiny_folder, tmp_path / "run")
    before = curriculum.state()
    follow = made.objectives[0]
    assert follow.score_requests() == () and follow.start_memory().state() == before
    made.fit()
    shares = {
        k: v
        for k, v in rows_of(tmp_path / "run")[-1].items()
        if k.startswith("followcurriculum/share_")
    }
    assert set(shares) == {"followcurriculum/share_rotation", "followcurriculum/share_jigsaw"}
    assert sum(shares.values()) == pytest.approx(1.0)
