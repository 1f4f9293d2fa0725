"""RAC while training (PuzzleCraft, arXiv 2512.14944, 3.3): reward parts of weight 0 that only count.

    Rewards(pretext=pretext_reward, rac=(0.0, RuleRAC()))                    `rac/rule_standin`: free, no judge
    Rewards(pretext=pretext_reward, rac=(0.0, JudgeRAC(Judge(url, model))))  `rac/judge`: the paper's way

The judge sees the reasoning and the final answer, not the picture nor the truth. An answer without reasoning is counted
under `rac/empty`, one that the judge says nothing about under `rac/silent`, one that the judge could not be asked
about under `rac/unavailable` (one reason per step is logged; a diagnostic never stops a run). None enters the rate.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.marking.consistency import RuleJudge, split_reply
from mmrl.data.pretext.surface import Surface
from mmrl.ground.printable import logger
from mmrl.rewards.judge import Ask, JudgeUnavailable, RequestRefused
from mmrl.rewards.judge_prompts import Asked, judge_prompt
from mmrl.types import Rollout

log = logger(__name__)


@dataclass(frozen=True)
class RuleRAC:
    """The last answer that the reasoning names must be the final one. A stand-in for the paper's judge."""

    in_process: ClassVar[bool] = True
    counts: Counter[str] = field(default_factory=Counter, repr=False)

    def __call__(self, rollout: Rollout) -> float:
        """Count; pays nothing."""
        self.counts[self._outcome(rollout)] += 1
        return 0.0

    def _outcome(self, rollout: Rollout) -> str:
        extra = rollout.prompt.extra
        reasoning, answer = split_reply(rollout.text, Surface(**extra["surface"]))
        if not reasoning:
            return "empty"
        # Nothing can support an answer that is not there.
        if answer is None:
            return "said0"
        verdict = RuleJudge(find(extra["task"]), extra["truth"])(reasoning, answer)
        return "silent" if verdict is None else f"said{verdict}"

    def metrics(self) -> dict[str, float]:
        """The rate and the counts since the last call."""
        return drained(self.counts, "rule_standin")


@dataclass(frozen=True)
class JudgeRAC:
    """A language model says whether the reasoning supports the answer."""

    judge_prompts: ClassVar[tuple[str, ...]] = ("reasoning_supports",)
    judge: Ask
    counts: Counter[str] = field(default_factory=Counter, repr=False)

    async def __call__(self, rollout: Rollout) -> float:
        """Count; pays nothing."""
        reasoning, answer = split_reply(
            rollout.text, Surface(**rollout.prompt.extra["surface"])
        )
        if not reasoning:
            self.counts["empty"] += 1
        elif answer is None:
            self.counts["said0"] += 1
        else:
            # The end of long reasoning: there it comes to its answer.
            prompt = judge_prompt("reasoning_supports")
            request = prompt.filled(reasoning=reasoning[-6000:], answer=answer)
            self.counts[await self._verdict(request)] += 1
        return 0.0

    async def _verdict(self, request: Asked) -> str:
        try:
            word = (await self.judge(request)).strip().lower()
        except (JudgeUnavailable, RequestRefused) as error:
            # One warning per step: `drained` empties the counts.
            if not self.counts["unavailable"]:
                log.warning("RAC is not measured where the judge cannot be asked: %s", error)
            return "unavailable"
        if word.startswith("yes"):
            return "said1"
        return "said0" if word.startswith("no") else "silent"

    def metrics(self) -> dict[str, float]:
        """The rate, the counts and what the judge cost since the last call."""
        spent = getattr(self.judge, "metrics", dict)
        return {**drained(self.counts, "judge"), **spent()}


OTHERS = ("silent", "empty", "unavailable")


def drained(counts: Counter[str], who: str) -> dict[str, Any]:
    """`rac/<who>` (if anything was judged), `rac/judged` and the other counts, which start anew."""
    judged = counts["said0"] + counts["said1"]
    metrics: dict[str, Any] = {}
    # No rate rather than 0 where nothing was judged.
    if judged:
        metrics[f"rac/{who}"] = counts["said1"] / judged
    metrics["rac/judged"] = judged
    for name in OTHERS:
        metrics[f"rac/{name}"] = counts[name]
    counts.clear()
    return metrics
