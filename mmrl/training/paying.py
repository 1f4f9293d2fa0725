"""How the answers of a step are paid: rewards, the penalty for overlong ones, and the judgement that somebody needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.grpo import GRPO, with_overlong_penalty
from mmrl.rewards.pay import Rewards, RewardStopped
from mmrl.types import Rollout


@dataclass(frozen=True)
class Payer:
    """Pays rollouts; whatever samples is given it as `pay`."""

    rewards: Rewards
    grpo: GRPO
    max_tokens: int
    needs_correct: bool
    """Does some part read whether an answer is right?"""
    counters: Counter[str]

    def begin(self, rollouts: Sequence[Rollout]) -> None:
        """Begin to score answers of a whole group, while others are still being drawn (`streaming.paid_answers`)."""
        self.rewards.begin(rollouts)

    def forget(self) -> None:
        """What was begun will not be paid."""
        self.rewards.forget()

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Paid answers, without those that were dropped. Raises RewardStopped if none is left."""
        paid = with_overlong_penalty(self.grpo, self.rewards(rollouts), self.max_tokens)
        if not self.needs_correct:
            return paid
        # Neither right nor wrong: a method that asks can do nothing with it.
        judged = [rollout for rollout in paid if rollout.correct is not None]
        if len(judged) < len(paid):
            self.counters["reward_failures/answers_not_judged"] += len(paid) - len(judged)
        if paid and not judged:
            assert self.rewards.correct is not None
            raise RewardStopped(
                f"None of the {len(paid)} answers of this step was judged: the reward part "
                f"{self.rewards.correct[0]!r}, which says whether an answer is right, was not available."
            )
        return judged
