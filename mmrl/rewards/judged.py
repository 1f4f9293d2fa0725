"""What rewards that ask a judge have in common: prompts by name, replies that are read, and what was counted.

A reply that cannot be read is no verdict. It is counted as `judge/unreadable`, the judge is told so and asked again in
the same conversation (another cache key, so that a verdict on disk is found again), and after `ATTEMPTS` replies the
part is unavailable, which the policy of `Rewards` decides about. It is never a 0. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from mmrl.ground.declared import FREE
from mmrl.rewards.contract import Reward
from mmrl.rewards.judge import Ask
from mmrl.rewards.judge_prompts import Asked, judge_prompt
from mmrl.rewards.worker import Unavailable

ATTEMPTS = 2
"""Replies to one question before it counts as not answered."""
Value = TypeVar("Value")


class Unreadable(Unavailable):
    """The judge answers, but not in the form that was asked for."""


@dataclass(frozen=True)
class Judged(Reward):
    """An async reward that asks a judge. Derive from it, and name the prompts in `judge_prompts`."""

    judge: Ask
    """Takes chat messages, returns the reply of a model; raises `Unavailable` if there is none."""
    counts: Counter[str] = field(
        default_factory=Counter, kw_only=True, repr=False, compare=False, metadata=FREE
    )

    async def ask(
        self, messages: Asked, read: Callable[[str], Value | None], where: str
    ) -> Value:
        """The reply as `read` reads it (None: it cannot). Raises Unreadable, and what the judge raises."""
        reply = ""
        for _ in range(ATTEMPTS):
            reply = await self.judge(messages)
            if (found := read(reply)) is not None:
                return found
            self.counts["judge/unreadable"] += 1
            # An empty turn is refused by some servers.
            said = {"role": "assistant", "content": reply or "-"}
            messages = messages.followed(said, *judge_prompt("read_again").filled())
        raise Unreadable(
            f"the judge's reply for {where} holds no verdict that can be read, after {ATTEMPTS} attempts: "
            f"{reply[:200]!r}"
        )

    def metrics(self) -> Mapping[str, float]:
        """What was counted since the last call, the judge's own counts included."""
        own = dict(self.counts)
        self.counts.clear()
        # A plain function counts nothing.
        asked = getattr(self.judge, "metrics", dict)
        return {**own, **asked()}
