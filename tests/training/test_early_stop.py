"""Early stop: the rule, its state, and a run that ends by it and continues exactly."""

import json

import pytest

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.early_stop import EarlyStop, Plateau
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling

RULE = EarlyStop(window=2, reward=0.1, deviation=0.1, patience=2)


def seen(plateau, rows):
    return [plateau.observe({"reward/total": r, "reward/group_std": d}) for r, d in rows]


def test_it_stops_when_both_rest_for_long_enough():
    plateau = Plateau(RULE)
    seen(plateau, [(0.0, 0.3), (0.5, 0.3), (0.6, 0.3), (0.6, 0.3)])
    assert plateau.resting == 0 and not plateau.reached  # the reward rose by 0.35
    assert seen(plateau, [(0.6, 0.3)])[0]["stop/resting"] == 1.0 and not plateau.reached
    seen(plateau, [(0.6, 0.3)])
    assert plateau.reached


def test_a_deviation_that_still_falls_keeps_the_run_going():
    plateau = Plateau(RULE)
    seen(plateau, [(0.6, 0.9 - 0.1 * step) for step in range(8)])
    assert not plateau.reached
    seen(plateau, [(0.6, 0.1)] * 5)
    assert plateau.reached


def test_a_move_counts_from_anew():
    plateau = Plateau(RULE)
    seen(plateau, [(0.6, 0.3)] * 4)
    assert plateau.resting == 1
    seen(plateau, [(1.0, 0.3)])
    assert plateau.resting == 0


def test_the_state_is_all_there_is():
    whole, half = Plateau(RULE), Plateau(RULE)
    rows = [(0.1 * step % 0.7, 0.3) for step in range(9)]
    seen(whole, rows)
    seen(half, rows[:5])
    other = Plateau(RULE)
    other.load(json.loads(json.dumps(half.state())))
    seen(other, rows[5:])
    assert other == whole


def test_it_is_off_by_default_and_refuses_nonsense():
    plateau = Plateau(EarlyStop())
    assert seen(plateau, [(0.0, 0.0)] * 50)[-1] == {} and not plateau.reached
    with pytest.raises(ValueError, match=r"EarlyStop\.patience is 0"):
        EarlyStop(patience=0)


@in_process
def nothing(rollout):
    return 0.5


def trainer(folder, output, steps=9, early=EarlyStop(window=1, patience=2)):
    return Trainer(
        Policy.load(folder, device="cpu", dtype="float32"),
        prompts=Drawn("lookup", size=8),
        rewards=Rewards(accuracy=nothing),
        sampling=Sampling(2, max_tokens=3),
        optim=Optim(lr=1e-3),
        run=Run(output=output, steps=steps, prompts_per_step=2, save_every=1),
        early=early,
    )


def test_a_run_ends_early_and_is_finished(tiny_folder, tmp_path, capsys):
    trainer(tiny_folder, tmp_path / "run").fit()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3]
    assert (tmp_path / "run" / "finished.json").is_file() and (
        tmp_path / "run" / "model"
    ).is_dir()
    assert "Stopped early after step 3" in capsys.readouterr().err
    trainer(tiny_folder, tmp_path / "run").fit()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3]


def test_a_continued_run_stops_at_the_same_step(tiny_folder, tmp_path):
    cut = trainer(tiny_folder, tmp_path / "run")
    step = cut.step

    def once(now):
        if now.step == 3:
            raise KeyboardInterrupt
        return step(now)

    cut.step = once
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    going_on = trainer(tiny_folder, tmp_path / "run")
    going_on.fit()
    assert going_on.step_done == 3 and going_on.plateau.reached
