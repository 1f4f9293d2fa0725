"""Steps that are not finite: tried again, left out or the end, never repeated for ever, and never in a saved weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch
from safetensors.torch import load_file

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.policy import Policy
from mmrl.objectives.base import Objective
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.checkpoint import read_state
from mmrl.training.optim import Optim
from mmrl.training.retries import RETRIES, SKIPPED_IN_A_ROW, NonFiniteStep, Retries
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer, TrainingError
from mmrl.types import Sampling

POISON = {}
"""What the next terms are multiplied with, by (step, prompt of the first answer) or step; empty: all is well."""
SEEN = []
"""(step, seed, prompts) of every attempt."""


@dataclass(frozen=True)
class Poisoned(Objective):
    """No number where POISON says so."""

    def terms(self, live, batch, now):
        SEEN.append((now.step, now.seed, tuple(r.prompt.id for r in batch.rollouts)))
        key = (now.step, len([each for each in SEEN if each[0] == now.step]))
        value = POISON.get(key, POISON.get(now.step, POISON.get("always", 0.0)))
        return {"poison": live["raw"].logp * value}


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


@pytest.fixture(autouse=True)
def clean():
    POISON.clear()
    SEEN.clear()
    yield
    POISON.clear()


def trainer(tiny_folder, output, mode="retry", steps=4, lr=1e-3, dtype="float32", **run):
    return Trainer(
        Policy.load(tiny_folder, device="cpu", dtype=dtype),
        prompts=Drawn("lookup", size=40),
        rewards=Rewards(accuracy=pay),
        objectives=[Poisoned()],
        sampling=Sampling(3, max_tokens=3),
        optim=Optim(lr=lr, nonfinite=mode),
        run=Run(output=output, steps=steps, **({"prompts_per_step": 2, "save_every": 1} | run)),
    )


def all_finite(output):
    for file in [*output.rglob("*.safetensors")]:
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file
    return True


def timeless(rows):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_step_is_tried_again_with_other_prompts_and_draws(tiny_folder, tmp_path, value):
    POISON.update({(2, 1): value, (2, 2): value})
    trainer(tiny_folder, tmp_path).fit()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("update/retried") for row in rows] == [None, 2.0, None, None]
    attempts = [each for each in SEEN if each[0] == 2]
    assert len(attempts) == 3 and len({seed for _, seed, _ in attempts}) == 3
    assert len({prompts for _, _, prompts in attempts}) == 3
    others = {seed for step, seed, _ in SEEN if step != 2}
    assert others == {attempts[0][1]}, "the next step draws as the run's seed says"
    assert all_finite(tmp_path)


def test_a_run_with_retries_is_the_same_when_it_is_cut_off(tiny_folder, tmp_path):
    """The n-th attempt at a step is the same in every start."""
    POISON.update({(2, 1): float("nan"), (3, 1): float("nan")})
    whole = tmp_path / "whole"
    trainer(tiny_folder, whole, steps=4, keep=0).fit()
    for step in (1, 2):
        cut = Path(copytree(whole, tmp_path / f"cut-{step}"))
        for gone in range(step + 1, 5):
            rmtree(cut / "checkpoints" / f"step-{gone}")
        (cut / "finished.json").unlink()
        rmtree(cut / "model")
        SEEN.clear()
        trainer(tiny_folder, cut, steps=4, keep=0).fit()
        assert {each[0] for each in SEEN} == set(range(step + 1, 5)), "it went on from there"
        ours, theirs = (place / "model" / "model.safetensors" for place in (whole, cut))
        assert ours.read_bytes() == theirs.read_bytes()
        assert timeless(read_metrics(whole)) == timeless(read_metrics(cut))


def test_a_step_that_stays_so_ends_the_run_and_is_not_repeated_at_each_start(
    tiny_folder, tmp_path
):
    POISON[3] = float("nan")
    draws = set()
    for start in range(2):
        SEEN.clear()
        with pytest.raises(
            TrainingError, match=r"Step 3 failed: the loss is nan[\s\S]*is saved"
        ):
            trainer(tiny_folder, tmp_path).fit()
        tried = [each for each in SEEN if each[0] == 3]
        assert len(tried) == RETRIES + 1
        draws |= set(tried)
        state = read_state(tmp_path / "checkpoints" / "step-2")
        assert state["attempts"] == (start + 1) * (RETRIES + 1)
    assert len(draws) == 2 * (RETRIES + 1), "no prompts and draws were met twice"
    POISON.clear()
    trainer(tiny_folder, tmp_path).fit()
    assert read_metrics(tmp_path)[2]["update/retried"] == 2 * (RETRIES + 1)
    assert all_finite(tmp_path)


def test_stop_ends_at_once_and_the_next_start_draws_otherwise(tiny_folder, tmp_path):
    POISON[(2, 1)] = float("nan")
    with pytest.raises(TrainingError, match="Step 2 failed: the loss is nan"):
        trainer(tiny_folder, tmp_path, "stop").fit()
    first = SEEN[-1]
    trainer(tiny_folder, tmp_path, "stop").fit()
    (again, *_) = [each for each in SEEN if each[0] == 2 and each != first]
    assert again[1] != first[1] and again[2] != first[2]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_skip_leaves_the_update_out_and_counts_it(tiny_folder, tmp_path):
    POISON[2] = float("nan")
    trainer(tiny_folder, tmp_path, "skip", keep=0).fit()
    rows = read_metrics(tmp_path)
    assert [row.get("update/nonfinite") for row in rows] == [None, 1.0, None, None]
    one, two, three = (
        load_file(tmp_path / "checkpoints" / f"step-{step}" / "weights.safetensors")
        for step in (1, 2, 3)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(two[name], three[name]) for name in one)
    assert all_finite(tmp_path)


def test_so_many_skipped_steps_end_the_run(tiny_folder, tmp_path):
    POISON["always"] = float("nan")
    with pytest.raises(
        TrainingError, match=rf"{SKIPPED_IN_A_ROW} steps in a row were not finite"
    ):
        trainer(tiny_folder, tmp_path, "skip", steps=30, save_every=0).fit()
    assert len(read_metrics(tmp_path)) == SKIPPED_IN_A_ROW - 1 and all_finite(tmp_path)


@pytest.mark.parametrize("mode", ["retry", "skip"])
def test_a_later_update_of_a_step_is_left_out(tiny_folder, tmp_path, mode):
    POISON[(2, 2)] = float("nan")
    trainer(tiny_folder, tmp_path, mode, steps=3, updates_per_step=2).fit()
    rows = read_metrics(tmp_path)
    assert [row.get("update/nonfinite") for row in rows] == [None, 1.0, None]
    assert all(row.get("update/retried") is None for row in rows) and all_finite(tmp_path)


def test_weights_that_are_not_finite_are_never_saved_even_if_the_update_made_them(
    tiny_folder, tmp_path, monkeypatch
):
    """A step after which weights are spoilt ends the run, and the checkpoint before is the last."""
    one = trainer(tiny_folder, tmp_path)
    real = one.optimizer.step

    def step(planned):
        rate = real(planned)
        if one.optimizer.steps == 3:
            one.policy.parameters()[0].data.view(-1)[0] = float("nan")
        return rate

    monkeypatch.setattr(one.optimizer, "step", step)
    with pytest.raises(Exception, match="not finite"):
        one.fit()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2"]
    assert not (tmp_path / "model").exists() and all_finite(tmp_path)


def test_gradients_whose_squares_overflow_are_not_finite_without_clipping():
    from mmrl.training.optim import Optimizer

    named = [("w", torch.nn.Parameter(torch.ones(2, 2)))]
    for limit, largest in ((1.0, float("inf")), (0.0, 1e18)):
        assert Optimizer(named, Optim(max_grad_norm=limit)).largest_norm == largest


def test_other_failures_are_not_repeated():
    def broken(seed):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Retries("retry", 0).run(broken, lambda: None, lambda: True)


def test_an_attempt_after_which_weights_have_moved_is_not_repeated():
    calls = []

    def moved(seed):
        calls.append(seed)
        raise NonFiniteStep("the loss is nan")

    with pytest.raises(NonFiniteStep):
        Retries("retry", 0).run(moved, lambda: None, lambda: False)
    assert calls == [0]
