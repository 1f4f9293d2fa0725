"""What PAPO's masked branch adds to a step, against one shared scoring pass that includes tower, view and processing.

    python benchmarks/papo_branch.py

A step learns from the same rollouts with and without PAPO (no gradient through the branch, as in the official code);
the difference of the CPU times is held against one scoring pass of the same answers done by hand: draw the masks, cut
the patches, tower, packed row, head. The three are measured in turn; the value is the median of the rounds' ratios.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import (
    Cell,
    cpu_seconds,
    median,
    model_folder,
    our_trainer,
    result,
    say,
    versions,
    write_rows,
)

from mmrl.model.branches import Views
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.training.run import PhaseTimer
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Rollout, VisualBranch

VISUAL, ANSWER, PROMPTS, ROUNDS = 256, 32, 4, 9
BRANCHES = {"masked": VisualBranch(PatchMask(ratio=0.6, size=16))}


def learn(trainer: Trainer, rollouts: list[Rollout], now: Now) -> float:
    """CPU seconds of scoring and update."""
    return cpu_seconds(lambda: trainer.learner.learn(rollouts, now, PhaseTimer()))


def scoring_pass(trainer: Trainer, rollouts: list[Rollout], now: Now) -> float:
    """CPU seconds of one scoring pass of all answers under a fresh view."""

    def run() -> None:
        views = Views(trainer.policy, rollouts, BRANCHES, now)
        with torch.no_grad():
            groups = views.groups("masked", range(len(rollouts)))
            score_packed(
                trainer.policy,
                {"masked": groups},
                {"masked": ScoreOutputs()},
                (len(rollouts), ANSWER),
            )

    trainer.policy.vision.clear()
    return cpu_seconds(run)


def main() -> None:
    """Measure and print; the last line is JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        rows = write_rows(scratch, VISUAL, PROMPTS)
        cell = Cell(str(model_folder()), str(rows), ANSWER, prompts=PROMPTS)
        plain = our_trainer(cell, scratch)
        papo = our_trainer(cell, scratch, branches=BRANCHES, objectives=[PAPO()])
        now = Now(1, 0.0, 0)
        rollouts = plain.rewards(
            plain.engine.generate(plain.supply.take(), plain.sampling, now)
        )
        plain.rewards.close()
        for trainer in (plain, papo):  # processing belongs to the rollout
            for rollout in rollouts:
                trainer.policy.encode(rollout.prompt)
        ratios = []
        for number in range(ROUNDS + 1):
            now = Now(number + 1, 0.0, 0)
            without, with_, one = (
                learn(plain, rollouts, now),
                learn(papo, rollouts, now),
                scoring_pass(papo, rollouts, now),
            )
            say(f"without {without:.3f} s, with {with_:.3f} s, one scoring pass {one:.3f} s")
            if number:
                ratios.append((with_ - without) / one)
        papo.rewards.close()
    say(f"{versions('torch', 'transformers')}; ratios {[round(x, 2) for x in ratios]}")
    result("papo_branch", median(ratios), 1.15, "added CPU time / one shared scoring pass")


if __name__ == "__main__":
    main()
