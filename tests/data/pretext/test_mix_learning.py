"""A scripted policy on the whole of our mix under GRPO: for every task, right answers win against guesses."""

from __future__ import annotations

from collections import defaultdict

import torch

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.presets import Ingredient, TaskMix, preset
from mmrl.data.pretext.stream.sources import DrawnSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.ground.seeds import philox
from mmrl.losses.advantages import group_centered
from mmrl.losses.surrogates import clipped

GROUP = 8


class Scripted:
    """Knows every answer, and gives it with a probability per task that it learns; else it guesses."""

    def __init__(self, tasks):
        self.logits = {task: torch.nn.Parameter(torch.zeros(())) for task in tasks}

    def answers(self, sample, rng):
        """(replies, whether each was meant to be right)."""
        task = find(sample.task)
        right = rng.random(GROUP) < float(torch.sigmoid(self.logits[sample.task].detach()))
        bodies = [
            task.format(sample.truth) if known else task.guess(sample.truth, rng)
            for known in right
        ]
        return [sample.surface.wrap(body) for body in bodies], torch.tensor(right)

    def logp(self, task, right):
        """Log-probability [G, 1] of having chosen to be right or to guess."""
        logit = self.logits[task]
        log = torch.nn.functional.logsigmoid
        return torch.where(right, log(logit), log(-logit))[:, None]


def test_a_scripted_policy_improves_on_our_mix_under_grpo():
    mix = preset("mmrl-mix-v1")
    names = list(dict.fromkeys(part.task for part in mix.ingredients))
    source, policy, paid = (
        DrawnSource(0, (192, 256), (96, 128)),
        Scripted(names),
        defaultdict(list),
    )
    streams = {
        n: SampleStream(source, TaskMix(n, (Ingredient(n),), mix.surface), seed=4)
        for n in names
    }
    optimizer = torch.optim.Adam(policy.logits.values(), lr=0.3)
    for round_ in range(6):
        optimizer.zero_grad()
        for name in names:
            sample = next(
                s
                for i in range(round_ * 20, round_ * 20 + 20)
                if (s := streams[name].sample(i)) is not None
            )
            replies, right = policy.answers(sample, philox("scripted", name, round_))
            scores = [
                find(name).score(reply, sample.truth, sample.surface) for reply in replies
            ]
            reward = torch.tensor([score.reward for score in scores])
            assert all(
                score.correct for score, known in zip(scores, right, strict=True) if known
            ), name
            mask = torch.ones(GROUP, 1)
            advantage = group_centered(reward, torch.zeros(GROUP, dtype=torch.long), mask)[
                :, None
            ]
            logp = policy.logp(name, right)
            loss = clipped(
                logp,
                logp.detach(),
                advantage,
                mask,
                clip_low=0.2,
                clip_high=0.28,
                dual_clip=3.0,
            )
            loss.mean().backward()
            paid[name].append(float(reward.mean()))
        optimizer.step()
    learned = {name: float(torch.sigmoid(policy.logits[name].detach())) for name in names}
    assert min(learned.values()) > 0.6, {
        name: value for name, value in learned.items() if value <= 0.6
    }
    first, last = (sum(rewards[at] for rewards in paid.values()) / len(paid) for at in (0, -1))
    assert last > first + 0.15, (first, last)
