"""Levels and mixtures: they move where they should, agree over ranks, and survive a restart."""

import json

import numpy as np
import pytest

from mmrl.data.pretext.difficulty import (
    DefaultKnobs,
    FixedLevel,
    LevelController,
    LinearLevel,
)
from mmrl.data.pretext.marking.rewards import above_chance
from mmrl.data.pretext.mixture import BaseWeights, LearningProgress


def run(
    controller: LevelController, reward_at, steps: int = 200, chance: float = 0.25
) -> float:
    """The level after feeding rewards that depend on the level."""
    for _ in range(steps):
        level = controller("t", 0.0) or 0.0
        for _ in range(controller.window):
            controller.observe("t", reward_at(level), chance)
        controller.apply(controller.pending())
    return controller("t", 0.0) or 0.0


def test_schedules() -> None:
    line = LinearLevel(0.2, 0.8, until=0.5)
    assert [round(line("t", p), 6) for p in (0.0, 0.25, 0.5, 1.0)] == [0.2, 0.5, 0.8, 0.8]
    assert FixedLevel(0.3)("t", 0.9) == 0.3 and DefaultKnobs()("t", 0.5) is None
    for bad in (
        lambda: FixedLevel(1.2),
        lambda: LinearLevel(0, 1, 0.0),
        lambda: LevelController(step=0.0),
    ):
        with pytest.raises(ValueError):
            bad()


def test_success_is_normalised_above_chance() -> None:
    assert (
        above_chance(1.0, 0.35) == 1.0
        and above_chance(0.35, 0.35) == 0.0
        and above_chance(0.1, 0.35) == 0.0
    )
    assert above_chance(0.675, 0.35) == pytest.approx(0.5) and above_chance(1.0, 1.0) == 0.0


def test_levels_settle_where_half_of_the_answers_succeed() -> None:
    settled = run(LevelController(start=0.0, window=8), lambda level: 0.25 + 0.75 * (1 - level))
    assert abs(settled - 0.5) <= 0.12
    assert run(LevelController(start=0.5, window=8), lambda level: 1.0) == 1.0
    assert run(LevelController(start=0.5, window=8), lambda level: 0.0) == 0.0


def test_noise_around_the_target_does_not_swing_the_level() -> None:
    rng, controller, moves = np.random.default_rng(0), LevelController(window=32), 0
    for _ in range(300):
        for _ in range(32):
            controller.observe("t", float(rng.random() < 0.5), 0.0)
        moves += bool(controller.apply(controller.pending()))
    assert moves < 75


def test_a_step_back_needs_twice_the_band() -> None:
    controller = LevelController(start=0.5, window=1, band=0.1, step=0.1)
    controller.apply({"t": (0.7, 1)})
    assert controller("t", 0) == pytest.approx(0.6)
    controller.apply({"t": (0.35, 1)})
    assert controller("t", 0) == pytest.approx(0.6)
    controller.apply({"t": (0.25, 1)})
    assert controller("t", 0) == pytest.approx(0.5)


def test_ranks_that_add_their_sums_keep_one_level() -> None:
    ranks, alone = [LevelController(window=16) for _ in range(2)], LevelController(window=16)
    rewards = np.random.default_rng(1).random(160)
    for place, reward in enumerate(rewards):
        alone.observe("t", float(reward), 0.1)
        ranks[place % 2].observe("t", float(reward), 0.1)
        if place % 8 == 7:
            parts = [rank.pending() for rank in ranks]
            total = {"t": (sum(p["t"][0] for p in parts), sum(p["t"][1] for p in parts))}
            alone.apply(alone.pending())
            for rank in ranks:
                rank.apply(total)
    assert ranks[0].levels == ranks[1].levels and ranks[0].levels["t"] == pytest.approx(
        alone.levels["t"]
    )


def test_states_are_json_and_continue_exactly() -> None:
    first, rng = LevelController(window=8), np.random.default_rng(2)
    rewards = rng.random(400)

    def feed(controller: LevelController, values) -> None:
        for place, value in enumerate(values):
            controller.observe(f"t{place % 3}", float(value), 0.0)
            if place % 5 == 0:
                controller.apply(controller.pending())

    feed(first, rewards[:200])
    second = LevelController(window=8)
    second.load(json.loads(json.dumps(first.state())))
    feed(first, rewards[200:])
    feed(second, rewards[200:])
    assert first.state() == second.state() and first.levels


def test_learning_progress_prefers_what_changes_and_keeps_a_floor() -> None:
    bandit, base = (
        LearningProgress(floor=0.05),
        {"still": 1.0, "rising": 1.0, "falling": 1.0, "new": 1.0},
    )
    for step in range(60):
        bandit.apply(
            {
                "still": (4.0, 8),
                "rising": (8.0 * step / 60, 8),
                "falling": (8.0 * (1 - step / 60), 8),
            }
        )
    bandit.means["new"] = [0.5, 0.5, 50.0]
    shares = bandit(base)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["still"] == pytest.approx(0.05, abs=0.01) and shares["new"] == pytest.approx(
        0.05, abs=0.01
    )
    assert shares["rising"] > 0.3 and shares["falling"] > 0.3
    again = LearningProgress(floor=0.05)
    again.load(json.loads(json.dumps(bandit.state())))
    assert again(base) == shares


def test_unseen_tasks_are_explored_first_and_base_weights_count() -> None:
    bandit = LearningProgress()
    assert bandit({"a": 3.0, "b": 1.0}) == pytest.approx(
        {"a": 0.05 + 0.9 * 0.75, "b": 0.05 + 0.9 * 0.25}
    )
    assert BaseWeights()({"a": 3.0, "b": 1.0}) == {"a": 0.75, "b": 0.25}
    many = LearningProgress(floor=0.2)({str(index): 1.0 for index in range(10)})
    assert sum(many.values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"slow is 0\.1; it must be above 0 and below quick"):
        LearningProgress(quick=0.01, slow=0.1)
