"""Feedback in words: a score, a critique and advice for each answer (DRESS, arXiv 2311.10081). No torch.

A judge writes it, or a rule makes it of what rewards pay (`RuleFeedback`), which is no reproduction. A reply that
cannot be read, a score outside 1 to 4 among them, gives no feedback for its answer; a judge that is not available stops
the run, or costs its answers theirs (`on_unavailable`). Neither is ever a low score.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from mmrl.rewards.contract import Reward
from mmrl.rewards.judge import RequestRefused
from mmrl.rewards.judge_pictures import addresses_of
from mmrl.rewards.judge_prompts import judge_prompt
from mmrl.rewards.judged import Judged, Unreadable
from mmrl.rewards.judged_answer import asked
from mmrl.rewards.pay import RewardStopped
from mmrl.rewards.worker import Unavailable

if TYPE_CHECKING:
    from mmrl.types import Rollout

LONGEST = 8000
"""Characters of a question or an answer that are shown."""
LONGEST_FEEDBACK = 600
"""Characters of a critique, or of advice, that go on."""
_SCORE = re.compile(r"<score>\s*([1-4])(?:\.0+)?\s*</score>")


@dataclass(frozen=True)
class Feedback:
    """What is said of one answer."""

    score: int
    """1 to 4."""
    critique: str = ""
    """What is good and bad about it."""
    advice: str = ""
    """What to change."""


@dataclass(frozen=True)
class RuleFeedback:
    """Templates for what the parts `accuracy` and `format` say. Not a reproduction.

    4: right and in the form that was asked for; 3: right; 2: wrong but in the form; 1: neither. An answer without the
    part `accuracy` gets no feedback.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Feedback | None]:
        return [self.of(one.parts) for one in rollouts]

    def of(self, parts: Mapping[str, float | None]) -> Feedback | None:
        """The feedback for an answer with these parts."""
        accuracy = parts.get("accuracy")
        if accuracy is None:
            return None
        right, formed = accuracy > 0.5, (parts.get("format") or 0.0) > 0.5
        score = 1 + formed + 2 * right
        critique = "Right." if right else "Wrong."
        advice = [] if right else ["Look again."]
        if not formed:
            critique, advice = f"{critique} Bad form.", [*advice, "Keep to the form."]
        return Feedback(score, critique, " ".join(advice))


@dataclass(frozen=True)
class JudgedFeedback(Judged):
    """What a judge writes about answers; called with several at once."""

    known: str = ""
    """Column that describes the picture to a judge that does not see; empty: the row's answer."""
    pictures: bool = False
    """Show the pictures to the judge."""
    on_unavailable: Literal["stop", "drop"] = "stop"
    """What an outage does."""

    judge_prompts: ClassVar[tuple[str, ...]] = ("critique_and_advice",)  # type: ignore[misc]

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Feedback | None]:
        # On a thread of its own: in a notebook this one has an event loop that runs.
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(asyncio.run, self._all(rollouts)).result()
        return [self._of(one) for one in found]

    def _of(self, found: Feedback | BaseException) -> Feedback | None:
        if isinstance(found, Unreadable | RequestRefused):
            return None
        if isinstance(found, Unavailable):
            if self.on_unavailable == "stop":
                raise RewardStopped(f"There is no feedback on answers: {found}") from found
            self.counts["judge/no_feedback"] += 1
            return None
        if isinstance(found, BaseException):
            raise found
        return found

    async def _all(self, rollouts: Sequence[Rollout]) -> list[Feedback | BaseException]:
        asking = [self._one(rollout) for rollout in rollouts]
        return await asyncio.gather(*asking, return_exceptions=True)

    async def _one(self, rollout: Rollout) -> Feedback:
        prompt = rollout.prompt
        known = prompt.extra.get(self.known) if self.known else prompt.answer
        messages = judge_prompt("critique_and_advice").filled(
            pictures=addresses_of(prompt.media) if self.pictures else (),
            question=asked(prompt.messages)[:LONGEST],
            known=str("nothing" if known is None else known)[:LONGEST],
            response=rollout.text[:LONGEST],
        )
        return await self.ask(messages, read_feedback, f"prompt {prompt.id!r}")


@dataclass(frozen=True)
class Unpaid(Reward):
    """1 for every answer: nothing is paid where feedback teaches. Brings the judge's prompts and counts to the run."""

    feedback: JudgedFeedback

    in_process: ClassVar[bool] = True  # type: ignore[misc]
    judge_prompts: ClassVar[tuple[str, ...]] = JudgedFeedback.judge_prompts  # type: ignore[misc]

    def __call__(self, rollout: Rollout) -> float:
        return 1.0

    def metrics(self) -> Mapping[str, float]:
        """What the judge counted since the last call."""
        return self.feedback.metrics()


def read_feedback(reply: str) -> Feedback | None:
    """The feedback in a reply, by the last of each tag; None without a score from 1 to 4 or without a critique."""
    scores = _SCORE.findall(reply)
    critique, advice = (_inside(reply, tag) for tag in ("critique", "advice"))
    if not scores or not critique:
        return None
    return Feedback(int(scores[-1]), critique, advice)


def _inside(reply: str, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", reply, re.DOTALL)
    return " ".join(found[-1].split())[:LONGEST_FEEDBACK] if found else ""
