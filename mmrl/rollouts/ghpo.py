"""GHPO, guided hybrid policy optimisation: groups that fail are sampled again with a part of the solution (GHPO).

If no answer of a group is right, the whole group is sampled anew with the first 25 % of the characters of the row's
solution in the question, then with 50 %, then with 75 %, until one answer is right. What is trained is the last group,
with the question that it was asked. Groups with a right answer stay as they are.

    characters of a hint = round(share · characters of the solution)        (Python's rounding, half to even)

Departures from the official code (github.com/hkgc-1/GHPO, commit af0a7dd8)
1. "Right" is what the rewards declare, never the total: a format reward does not hide that a group failed.
2. Where no group failed nothing is sampled again; the official code then repeats the first group.
3. The sentence that introduces the hint is ours; the official key hint_ratio, which its ladder ignores, is left out.
4. Rows without a solution, and hints with which the question would be too long, leave the group as it is and count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmrl.ground.require import require
from mmrl.rollouts.rewording import fits, with_text
from mmrl.rollouts.stages import StagedRollout, Stages
from mmrl.types import Prompt, Rollout

__all__ = ["GHPO", "GHPORollout", "hint_of", "hinted"]


def hint_of(solution: str, share: float) -> str:
    """The first share of the characters of a solution."""
    return solution[: round(share * len(solution))]


def hinted(prompt: Prompt, hint: str, sentence: str) -> Prompt:
    """The prompt with a hint behind its last user message; `sentence` has one place {} for it."""
    return with_text(prompt, sentence.replace("{}", hint), hint=hint)


@dataclass(frozen=True)
class GHPO:
    """The ladder of hints."""

    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Shares of the solution's characters, one more try each; none: no hints, plain GRPO."""
    sentence: str = "\n\nA right solution begins with these words:\n{}"
    """What is added to the question, with one place {} for the hint."""

    def __post_init__(self) -> None:
        rising = list(self.shares) == sorted(set(self.shares))
        inside = all(0 < share <= 1 for share in self.shares)
        require(
            self,
            shares=(rising and inside, "rising numbers in (0, 1]"),
            sentence=(self.sentence.count("{}") == 1, "a text with exactly one {}"),
        )


@dataclass(frozen=True)
class GHPORollout(StagedRollout):
    """Groups that fail are asked again with longer and longer hints."""

    ghpo: GHPO = GHPO()
    column: str = "solution"
    """Column of the row that holds the worked solution."""
    check: Callable[[Prompt], object] | None = None
    """Raises `BadRow` for a prompt that cannot be shown to the model, `Policy.encode`."""

    needs_correct: ClassVar[bool] = True

    def traits(self) -> tuple[str, ...]:
        """Groups without a right answer are sampled again."""
        return ("hints all-wrong groups",) if self.ghpo.shares else ()

    def missing(self, prompt: Prompt) -> str:
        """The column that this row lacks, or ""."""
        return "" if self._solution(prompt) or not self.ghpo.shares else self.column

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The last group of each prompt."""
        found = stages(prompts)
        failed = [n for n, group in enumerate(found) if _failed(group)]
        stages.counters["ghpo/failed_groups"] += len(failed)
        for share in self.ghpo.shares:
            asked = {n: self._asked(prompts[n], share, stages) for n in failed}
            tried = {n: prompt for n, prompt in asked.items() if prompt is not None}
            if not tried:
                break
            again = stages(list(tried.values()))
            for number, group in zip(tried, again, strict=True):
                found[number] = group or found[number]
            stages.counters["ghpo/hinted_groups"] += len(tried)
            failed = [n for n in tried if _failed(found[n])]
        stages.counters["ghpo/unsolved_groups"] += sum(_failed(group) for group in found)
        return found

    def _asked(self, prompt: Prompt, share: float, stages: Stages) -> Prompt | None:
        """The prompt with a hint; None if there is no solution, or no room for it."""
        solution = self._solution(prompt)
        if not solution:
            stages.counters["ghpo/missing"] += 1
            return None
        longer = hinted(prompt, hint_of(solution, share), self.ghpo.sentence)
        if fits(longer, self.check):
            return longer
        stages.counters["ghpo/too_long"] += 1
        return None

    def _solution(self, prompt: Prompt) -> str:
        found = prompt.extra.get(self.column)
        return found if isinstance(found, str) else ""


def _failed(group: Sequence[Rollout]) -> bool:
    """Is no answer right? Not where nothing is known of any."""
    known = [one.correct for one in group if one.correct is not None]
    return bool(known) and not any(known)
