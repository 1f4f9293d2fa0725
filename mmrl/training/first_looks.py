"""Does a run with visual branches show its policy anything? Asked before it starts, and after its first steps.

A branch changes pictures. Where there are none, or where they never reach the model, every branch sees what the policy
sees, its divergence is 0, and the run is a plain one under another name that learns to guess. So

    refuse_text   before the first step: rows of which none shows a picture or a clip are refused
    first look    after each of the first `Monitor.probe_first` steps: `probe/difference_blank`, the mean over tokens of
                  |log p(real) - log p(blank)| in nats, of some answers that the step sampled anyway. Two forward passes
                  over at most `LOOKED_AT` answers, and no generation; nothing but this metric changes, to the bit.

A difference below `Monitor.least_difference` stops the run as the blind probe does. All of this is ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mmrl.ground.faults import BadRow
from mmrl.ground.progress import Progress
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.objectives.base import Objective
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.groups import RolloutCall, chain
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.monitor import BlackPixels, Monitor, differences
from mmrl.training.run import PhaseTimer, Run
from mmrl.training.stuck import Stuck
from mmrl.training.tracking import chat_as_line
from mmrl.types import Now, Prompts, Rollout, VisualBranch

LOOKED_AT = 16
"""Answers of a first look, one per prompt."""
MOST_ROWS = 1000
"""How many rows are looked through for a picture, evenly spread."""


@dataclass(frozen=True)
class FirstLooks:
    """Looks, at the start of a run, whether its visual branches have anything to change."""

    monitor: Monitor
    run: Run
    branches: Sequence[str]
    """Names of the visual branches that something reads; without any nothing is looked at."""
    stuck: Stuck = field(default_factory=Stuck, compare=False)
    """Also asked after each step."""

    @staticmethod
    def of(
        monitor: Monitor,
        run: Run,
        objectives: Sequence[Objective],
        branches: Mapping[str, VisualBranch],
        rollout: RolloutCall,
    ) -> FirstLooks:
        """For a run of these parts."""
        return FirstLooks(monitor, run, visual_branches(objectives, branches, rollout))

    def refuse_text(self, prompts: Prompts) -> None:
        """Raise ValueError if no row shows anything.

        Asked when a run starts: single steps on text are allowed, and bit-equal to those without the branch.
        """
        if not self.branches or _shows_anything(prompts):
            return
        size = MOST_ROWS if prompts.size is None else prompts.size
        looked = f"none of the {min(size, MOST_ROWS)} rows"
        if size > MOST_ROWS:
            looked += " looked at"
        names = ", ".join(map(repr, self.branches))
        raise ValueError(
            f"The visual branch {names} changes pictures, but {looked} shows a picture or a clip, so that the branch "
            "would change nothing and the policy would learn to guess. Name the column that holds them: "
            "--data.columns images=THE_COLUMN (or videos=); unread columns with media are named where the data is "
            "opened. To train on text alone, leave the branch out (python -m recipes.grpo)."
        )

    def __call__(
        self,
        policy: Policy,
        rollouts: Sequence[Rollout],
        step: int,
        ranks: Ranks | None = None,
    ) -> dict[str, float]:
        """What the look after this step found, and its seconds; empty after the first steps.

        Each of several ranks looks at some of its own answers, and all get the mean over the tokens of all.
        """
        self.stuck.observe(rollouts)
        if not self.branches or step > self.monitor.probe_first:
            return {}
        clock, now = PhaseTimer(), Now(step, 0.0, self.run.seed)
        ranks = Ranks.alone() if ranks is None else ranks
        chosen = looked_at(rollouts, max(1, LOOKED_AT // ranks.world))
        with clock("probe"):
            found = first_look(policy, chosen, now, self.run.tokens_per_pass)
        found = _mean_over_tokens(ranks, found, sum(len(r.tokens) for r in chosen))
        difference = found.get("probe/difference_blank")
        if difference is None:
            return {}
        # Once, and only the good news: a blind policy is said by the error that stops it.
        if step == 1 and difference >= self.monitor.least_difference:
            Progress.say(
                f"The policy looks at its pictures: blank ones change the log-prob of a token by {difference:.2g} "
                "nats on average."
            )
        return {**found, "time/probe": clock.read()["time/probe"]}


def visual_branches(
    objectives: Sequence[Objective], branches: Mapping[str, VisualBranch], rollout: RolloutCall
) -> list[str]:
    """Names of the branches that something reads: an objective that is not switched off, or who samples under one."""
    requests = [request for objective in objectives for request in objective.score_requests()]
    asked = [request.branch for request in requests if request.branch in branches]
    sampled = [name for part in chain(rollout) for name in part.sampled_under()]
    return list(dict.fromkeys([*asked, *sampled]))


def first_look(
    policy: Policy, rollouts: Sequence[Rollout], now: Now, tokens_per_pass: int = 16384
) -> dict[str, float]:
    """How much blank pictures change the log-probs of answers to the real ones: `probe/difference_blank`, nats.

    Of each prompt with media the first answer that the policy wrote before the real pictures, at most `LOOKED_AT`;
    empty without any. The policy, its features and its counters are left as they were.
    """
    chosen = looked_at(rollouts)
    if not chosen:
        return {}
    branches = {"blank": VisualBranch(BlackPixels())}
    counted = dict(policy.counters)
    with policy.vision.aside(), torch.no_grad():
        found = differences(policy, chosen, branches, now, tokens_per_pass)
    policy.counters.clear()
    policy.counters.update(counted)
    return {f"probe/{name}": value for name, value in found.items()}


def looked_at(rollouts: Sequence[Rollout], most: int = LOOKED_AT) -> list[Rollout]:
    """The answers that a first look is about."""
    answers: dict[int, Rollout] = {}
    for rollout in rollouts:
        own = rollout.origin == "policy" and rollout.branch == "raw" and len(rollout.tokens) > 0
        if own and rollout.prompt.media:
            answers.setdefault(rollout.group, rollout)
    return list(answers.values())[:most]


def _mean_over_tokens(
    ranks: Ranks, found: Mapping[str, float], tokens: int
) -> dict[str, float]:
    """Means of all ranks from those of each over its tokens; of ranks that looked at nothing none count."""
    if not ranks.several:
        return dict(found)
    told = [(means, count) for means, count in ranks.gathered((dict(found), tokens)) if means]
    count = sum(tokens for _, tokens in told)
    return {
        name: sum(means[name] * tokens for means, tokens in told) / count
        for name in (told[0][0] if told else ())
    }


def _shows_anything(prompts: Prompts) -> bool:
    """Has a row a picture or a clip, among the first thousand, or a thousand evenly spread ones?"""
    size = MOST_ROWS if prompts.size is None else prompts.size
    count = min(size, MOST_ROWS)
    readable = False
    for number in range(count):
        with contextlib.suppress(BadRow):
            if prompts[number * size // count].media:
                return True
            readable = True
    # Where no row can be read, the supply says better what is wrong with them.
    return not readable


def show_example(supply: Supply, policy: Policy, rewards: Rewards) -> None:
    """Print the first prompt as the model reads it, and what is to be known of its tags."""
    prompt = supply.peek()
    text = policy.encode(prompt).text
    example = f"{text}\n(answer: {prompt.answer})" if text else chat_as_line(prompt.messages)
    Progress.say(f"One prompt as the model reads it:\n{example}")
    for note in policy.processing.tags.notes(example, rewards.needs_tags):
        Progress.say(note)
