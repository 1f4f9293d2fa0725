"""What is measured beside the steps of a run: greedy accuracy on held-out prompts, and the blind probe.

Every rank samples by itself with all weights (`each_alone`). Held-out prompts are dealt out to them; the probe, whose
prompts exchange their pictures, is made by the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import RolloutCall, answering, group_rollout
from mmrl.rollouts.request import refuse_beyond
from mmrl.training.evaluate import aside, evaluate, heldout_prompts
from mmrl.training.monitor import Monitor, blind_probe
from mmrl.training.run import Run
from mmrl.types import Now, Prompt, Prompts, Rollout, Sampling

Told = Callable[[Sequence[Rollout], Sequence[float]], None]
"""Is given answers, and the score of each."""


@contextmanager
def each_alone(policy: Policy, ranks: Ranks, phase: str) -> Iterator[None]:
    """Work that every rank does by itself with all weights, and that fails on all if it fails on one."""
    with ranks.together(phase), policy.whole():
        ranks.place.alone = True
        try:
            yield
        finally:
            ranks.place.alone = False


@dataclass
class Beside:
    """The measurements of one run. Raises ValueError for a probe with an engine that cannot show other pixels."""

    policy: Policy
    engine: Engine
    rewards: Rewards
    sampling: Sampling
    run: Run
    monitor: Monitor
    ranks: Ranks
    heldout: Sequence[Prompt]
    prompts: Prompts
    """Of the training, for a probe without held-out ones."""
    steps: int
    """Of the whole run."""
    rollout: RolloutCall = group_rollout
    """Says how held-out prompts are answered; the probe asks the engine itself."""

    def __post_init__(self) -> None:
        if self.monitor.probe_every:
            refuse_beyond(
                self.engine, ["other pixels"], "The blind probe (--monitor.probe-every)"
            )

    def evaluated(self, step: int, told: Told | None = None) -> dict[str, float]:
        """`eval/…` of the present weights, and the seconds; `told` is given every answer with its score."""
        with (
            aside(self.policy, self.rewards, "evaluate") as seconds,
            each_alone(self.policy, self.ranks, "evaluate"),
        ):
            found = evaluate(
                answering(self.rollout, self.engine),
                self.heldout,
                self.rewards,
                self.sampling,
                self._now(step),
                ranks=self.ranks,
                told=told,
            )
        return {**{f"eval/{k}": v for k, v in found.items()}, **seconds}

    def probed(self, step: int) -> dict[str, float]:
        """What the policy says without its pictures; nothing if nobody asks."""
        if not self.monitor.probe_every:
            return {}
        with (
            aside(self.policy, self.rewards, "probe") as seconds,
            each_alone(self.policy, self.ranks, "probe"),
        ):
            found = self.ranks.by_first(lambda: self._probe(step))
        return {**found, **seconds}

    def _probe(self, step: int) -> dict[str, float]:
        count = self.monitor.probe_prompts
        prompts = self.heldout[:count] or heldout_prompts(
            self.prompts, count, self.policy.encode
        )
        return blind_probe(
            self.policy,
            self.engine,
            prompts,
            self.rewards,
            self.sampling,
            self._now(step),
            self.run.tokens_per_pass,
        )

    def _now(self, step: int) -> Now:
        return Now(step, step / self.steps, self.run.seed)
