"""T-GRPO as a rollout function: golden rewards and advantages, what is trained, and where there is no contrast."""

import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.grounding.video_r1 import t_grpo_bonus
from mmrl.losses.advantages import group_normalized
from mmrl.model.policy import Policy
from mmrl.perception.timing import FrameShuffle, Reverse
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.contrast import ContrastRollout
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Sampling, VisualBranch

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "vtg"
    / "tgrpo_and_shaping.json"
)
CASES = json.loads(GOLDEN.read_text())["t_grpo"]
NOW = Now(1, 0.0, 7)
CLIPS = Drawn("clips", size=4, frames=6)


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


@dataclass
class Scripted:
    """Answers of given lengths, paid from a list: the ordered ones first."""

    policy: Policy
    lengths: tuple[int, ...]

    def generate(self, prompts, sampling, now, *, visual=None, branch="raw"):
        found = HFEngine(self.policy).generate(prompts, replace(sampling, max_tokens=1), now)
        sizes = self.lengths if branch == "raw" else (1,) * sampling.group_size
        tokens = [torch.ones(size, dtype=torch.long) for size in sizes]
        return [replace(r, tokens=t, branch=branch) for r, t in zip(found, tokens, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_golden_rewards_and_advantages(policy, case):
    ordered, shuffled = iter(case["rewards_acc_format"]), iter(case["shuffled_acc"])

    def pay(rollouts):
        scores = [
            next(ordered) if r.branch == "raw" else (next(shuffled), 1.0) for r in rollouts
        ]
        return [
            replace(r, reward=float(sum(s)), parts={"accuracy": s[0], "format": s[1]})
            for r, s in zip(rollouts, scores, strict=True)
        ]

    rollout = ContrastRollout(policy, VisualBranch(FrameShuffle()), t_grpo_bonus)
    engine = Scripted(policy, tuple(case["completion_lengths"]))
    found = rollout(engine, pay, Supply(CLIPS, 1, 0), Sampling(4, max_tokens=4), NOW)
    assert next(ordered, None) is None and next(shuffled, None) is None
    assert [r.reward for r in found] == pytest.approx(case["expected"]["rewards"])
    rewards = torch.tensor([r.reward for r in found])
    advantage = group_normalized(
        rewards, torch.zeros(len(found)).long(), torch.ones(len(found), 1).bool(), eps=1e-4
    )
    assert advantage.tolist() == pytest.approx(case["expected"]["advantages"], abs=1e-4)


def paid(rollouts):
    return [replace(r, reward=1.0, parts={"accuracy": 1.0}) for r in rollouts]


def test_the_contrast_is_compared_and_never_returned(policy):
    seen = Counter()

    def pay(rollouts):
        seen.update(r.branch for r in rollouts)
        return paid(rollouts)

    supply = Supply(CLIPS, 2, 0)
    rollout = ContrastRollout(policy, VisualBranch(Reverse()), t_grpo_bonus, branch="reversed")
    found = rollout(HFEngine(policy), pay, supply, Sampling(4, max_tokens=3), NOW)
    assert (
        seen == {"raw": 8, "reversed": 4}
        and len(found) == 8
        and {r.branch for r in found} == {"raw"}
    )
    assert all(
        r.reward == pytest.approx(1.3) and r.parts["contrast_bonus"] == pytest.approx(0.3)
        for r in found
    )
    assert supply.counters["contrast/answers"] == 4 and supply.counters["contrast/paid"] == 8


def test_pictures_have_no_contrast(policy):
    supply = Supply(Drawn("lookup", size=4), 2, 0)
    rollout = ContrastRollout(policy, VisualBranch(FrameShuffle()), t_grpo_bonus)
    found = rollout(HFEngine(policy), paid, supply, Sampling(2, max_tokens=3), NOW)
    assert all(r.reward == 1.0 for r in found) and not supply.counters["contrast/answers"]


def test_the_branch_keeps_ids_grid_and_stamps_and_decodes_nothing(policy):
    from mmrl.model.branches import render_branch

    prompt = CLIPS[0]
    before = policy.encode(prompt)
    shown = render_branch(
        policy, prompt, "shuffled", VisualBranch(FrameShuffle()), NOW, compared=True
    )
    assert policy.encode(prompt) is before and shown[0].grid == before.visual[0].grid
    assert shown[0].key != before.visual[0].key
    with pytest.raises(ValueError, match="changes the order"):
        render_branch(policy, prompt, "shuffled", VisualBranch(FrameShuffle()), NOW)


@in_process
def accuracy(rollout):
    return float(int(rollout.tokens.sum()) % 5) / 5


def test_it_trains(tiny_folder, tmp_path):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    Trainer(
        policy,
        prompts=CLIPS,
        rewards=Rewards(accuracy=accuracy),
        rollout=ContrastRollout(policy, VisualBranch(FrameShuffle()), t_grpo_bonus),
        sampling=Sampling(4, max_tokens=3),
        optim=Optim(lr=1e-3),
        run=Run(output=tmp_path / "run", steps=2, prompts_per_step=2),
    ).fit()
    rows = read_metrics(tmp_path / "run")
    assert all(row["contrast/answers"] == 4 and row["answer/count"] == 8 for row in rows)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_nonsense_is_refused(policy, share):
    with pytest.raises(ValueError, match="share"):
        ContrastRollout(policy, VisualBranch(Reverse()), t_grpo_bonus, share=share)
