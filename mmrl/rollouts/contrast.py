"""A second group of answers to other pixels, which the first group is compared with and which is never trained.

T-GRPO (Video-R1, arXiv 2503.21776) answers each clip a second time with its frames in random order, with half as many
answers, and pays a bonus where the ordered clip is answered at least nearly as well: then the order was used. What the
bonus is, says the function given (`mmrl.data.grounding.video_r1.t_grpo_bonus`); which pixels, the view
(`mmrl.perception.timing`).

The contrast shows the frames that were decoded for the prompt, on the same grid, with the same stamps and ids. Prompts
without a clip have none. As its answers are only compared, the view may change what the right answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mmrl.ground.require import require
from mmrl.model.policy import Policy
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, by_group, group_rollout
from mmrl.rollouts.noisy import generate_under, rendered
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.types import Now, Prompt, Rollout, Sampling, VisualBranch

Bonus = Callable[[Sequence[float], Sequence[float], Sequence[int]], Sequence[float]]
"""(accuracies of a group, of its contrast, tokens of the group's answers) -> what each answer is paid on top."""


@dataclass(frozen=True)
class ContrastRollout(RolloutFunction):
    """Pay a bonus that depends on how well the same prompt is answered under another view."""

    policy: Policy
    contrast: VisualBranch
    """The other view."""
    bonus: Bonus
    branch: str = "shuffled"
    """Name of the view: keys its draws and marks `Rollout.branch`."""
    share: float = 0.5
    """Answers of the contrast as a share of the group, in (0, 1]; at least one."""
    part: str = "accuracy"
    """Reward part that is compared."""
    inner: RolloutCall = group_rollout
    """Makes the groups that are trained."""

    needs: ClassVar[Collection[Ability]] = ("other pixels",)

    def __post_init__(self) -> None:
        require(self, share=(0 < self.share <= 1, "in (0, 1]"))

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        groups = by_group(self.inner(engine, pay, supply, sampling, now))
        # Only what was kept is contrasted: a group that the inner function drops costs no second pass.
        clips = [number for number, group in enumerate(groups) if _shows_a_clip(group)]
        others: dict[int, list[Rollout]] = {}
        if clips:
            prompts = [groups[number][0].prompt for number in clips]
            answers = self._contrast(engine, prompts, sampling, now)
            supply.counters["contrast/answers"] += len(answers)
            for group in by_group(pay(answers)):
                # The engine numbers groups by the prompts that it was given, the clips alone.
                others[clips[group[0].group]] = group
        out: list[Rollout] = []
        for number, group in enumerate(groups):
            extra = self._extra(group, others.get(number, []), supply)
            for rollout, value in zip(group, extra, strict=True):
                out.append(_with_bonus(rollout, value))
        return out

    def _contrast(
        self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, now: Now
    ) -> list[Rollout]:
        """Unpaid answers to the prompts under the other view. Not `sampled_under`: nothing of them is trained."""
        seen = rendered(self.policy, prompts, self.branch, self.contrast, now, compared=True)
        count = max(1, int(sampling.group_size * self.share))
        few = replace(sampling, group_size=count)
        return generate_under(self.policy, engine, prompts, few, now, seen, self.branch)

    def _extra(
        self, group: Sequence[Rollout], others: Sequence[Rollout], supply: Supply
    ) -> Sequence[float]:
        """What each answer of a group is paid on top."""
        ours, theirs = self._values(group), self._values(others)
        lengths = [len(rollout.tokens) for rollout in group]
        extra = self.bonus(ours, theirs, lengths)
        if theirs:
            better = sum(ours) / len(ours) > sum(theirs) / len(theirs)
            supply.counters["contrast/groups"] += 1
            supply.counters["contrast/better"] += better
        # The bonus may be paid without a contrast, too: the function given decides.
        supply.counters["contrast/paid"] += sum(value > 0 for value in extra)
        return extra

    def _values(self, rollouts: Sequence[Rollout]) -> list[float]:
        for rollout in rollouts:
            if self.part not in rollout.parts:
                raise ValueError(
                    f"ContrastRollout.part is {self.part!r}, but the rewards have {sorted(rollout.parts)}; name one."
                )
        return [float(rollout.parts[self.part] or 0.0) for rollout in rollouts]


def _shows_a_clip(group: Sequence[Rollout]) -> bool:
    return any(medium.is_video for medium in group[0].prompt.media)


def _with_bonus(rollout: Rollout, value: float) -> Rollout:
    parts = {**rollout.parts, "contrast_bonus": float(value)}
    reward = (rollout.reward or 0.0) + value
    return replace(rollout, reward=reward, parts=parts)
