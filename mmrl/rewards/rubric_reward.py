"""Rewards by rubric: criteria with a rule are checked, all others are asked of a judge in one request.

The judge sees the question's words, the reference and the answer, and replies with a JSON object of levels, one for
each criterion. A level or a criterion that there is not makes the reply unreadable: it is asked for again, and then the
part is unavailable for the whole group (`judged.py`). A criterion that is left out has no score, which is counted as
`rubric/missing`; a reply without any is unreadable. A row may bring a rubric of its own in the column `rubric`, in the
form of the files. No torch.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mmrl.ground.answers import strict_json
from mmrl.rewards.answers import references
from mmrl.rewards.contract import Reward
from mmrl.rewards.judge import Ask
from mmrl.rewards.judge_prompts import Asked, judge_prompt
from mmrl.rewards.judged import Judged
from mmrl.rewards.judged_answer import asked
from mmrl.rewards.rubric import Criterion, Rubric, aggregated, parsed_rubric
from mmrl.rewards.worker import marker

if TYPE_CHECKING:
    from mmrl.types import Rollout

COLUMN = "rubric"
LONGEST = 8000
"""Characters of a question, a reference or an answer that are shown."""
Graders = Mapping[str, Callable[[Any], float]]
_OBJECT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class RuleRubric(Reward):
    """R in [0, 1] of a rubric whose criteria all have rules: it needs no judge."""

    rubric: Rubric
    graders: Graders = field(default_factory=dict)
    """Reward functions that criteria may name."""

    def __post_init__(self) -> None:
        refuse_unknown_graders(self.rubric, self.graders)
        if self.rubric.judged:
            names = ", ".join(one.id for one in self.rubric.judged)
            raise ValueError(
                f"The rubric has criteria without a check ({names}) and there is no judge to score them; give one, or "
                "a check to each."
            )
        _take_markers(self, self.graders)

    def __call__(self, rollout: Rollout) -> float:
        rubric = rubric_of(rollout, self.rubric)
        if rubric.judged:
            raise ValueError(
                f"prompt {rollout.prompt.id!r}: the rubric of the row has criteria without a check, and there is no "
                "judge."
            )
        refuse_unknown_graders(rubric, self.graders)
        return aggregated(rubric, checked(rubric, rollout, self.graders))


@dataclass(frozen=True)
class JudgedRubric(Judged):
    """R in [0, 1] of a rubric, whose criteria without a rule a judge scores. An async reward."""

    rubric: Rubric = field(kw_only=True)
    graders: Graders = field(default_factory=dict, kw_only=True)
    """Reward functions that criteria may name."""
    judge_prompts: ClassVar[tuple[str, ...]] = ("rubric_levels",)

    def __post_init__(self) -> None:
        refuse_unknown_graders(self.rubric, self.graders)
        _take_markers(self, self.graders)

    async def __call__(self, rollout: Rollout) -> float:
        rubric = rubric_of(rollout, self.rubric)
        refuse_unknown_graders(rubric, self.graders)
        # On a thread: an expression that takes long must not stop the coroutines of other answers.
        scores = await asyncio.to_thread(checked, rubric, rollout, self.graders)
        if rubric.judged:
            request = rubric_request(rubric.judged, rollout)
            read = partial(levels, criteria=rubric.judged)
            found = await self.ask(request, read, f"prompt {rollout.prompt.id!r}")
            self.counts["rubric/missing"] += len(rubric.judged) - len(found)
            tops = {one.id: one.top for one in rubric.judged}
            scores |= {name: level / tops[name] for name, level in found.items()}
        return aggregated(rubric, scores)


def rubric_reward(
    rubric: Rubric, judge: Ask | None, graders: Graders
) -> RuleRubric | JudgedRubric:
    """The reward of a rubric; without a judge every criterion needs a check. Raises ValueError."""
    if judge is None or not rubric.judged:
        return RuleRubric(rubric, graders)
    return JudgedRubric(judge, rubric=rubric, graders=graders)


def rubric_of(rollout: Rollout, common: Rubric) -> Rubric:
    """The row's own rubric, or the common one. Raises ValueError for one that cannot be read."""
    given = rollout.prompt.extra.get(COLUMN)
    if given is None or given == "":
        return common
    try:
        return parsed_rubric(strict_json(given) if isinstance(given, str) else given)
    except ValueError as error:
        raise ValueError(
            f"prompt {rollout.prompt.id!r}: the column {COLUMN}: {error}"
        ) from None


def checked(rubric: Rubric, rollout: Rollout, graders: Graders) -> dict[str, float | None]:
    """The shares of all criteria with a rule."""

    def graded(name: str) -> float:
        return graders[name](rollout)

    found: dict[str, float | None] = {}
    for one in rubric.criteria:
        if one.check is not None:
            found[one.id] = one.check.score(rollout.text, graded)
    return found


def rubric_request(criteria: Sequence[Criterion], rollout: Rollout) -> Asked:
    """The chat messages that ask for the levels of some criteria."""
    lines = [f"- {one.id} (0 to {one.top}): {one.text}" for one in criteria]
    wanted = "\n".join(f"- {one}" for one in references(rollout.prompt.answer))
    return judge_prompt("rubric_levels").filled(
        criteria="\n".join(lines),
        example=json.dumps({one.id: one.top for one in criteria}),
        question=asked(rollout.prompt.messages)[:LONGEST],
        reference=wanted[:LONGEST] or "none",
        response=rollout.text[:LONGEST],
    )


def levels(reply: str, criteria: Sequence[Criterion]) -> dict[str, int] | None:
    """Criterion -> level of the last JSON object in a reply; None unless all are criteria and levels that there are."""
    objects = _OBJECT.findall(reply)
    found = strict_json(objects[-1]) if objects else None
    tops = {one.id: one.top for one in criteria}
    if not isinstance(found, dict) or not found:
        return None
    for name, level in found.items():
        # True is an int to Python, and no level.
        if name not in tops or type(level) is not int or not 0 <= level <= tops[name]:
            return None
    return found


def refuse_unknown_graders(rubric: Rubric, graders: Graders) -> None:
    """Raise ValueError for a criterion that names a grader which is not there."""
    for one in rubric.criteria:
        if one.check is None or one.check.kind != "grader":
            continue
        (name,) = one.check.texts
        if name not in graders:
            raise ValueError(
                f"The criterion {one.id!r} names the grader {name!r}; there are "
                f"{', '.join(sorted(graders)) or 'none'}."
            )


def _take_markers(reward: Reward, graders: Graders) -> None:
    """What a worker must know of the functions inside."""
    for name in ("needs", "preload"):
        told = [one for grader in graders.values() for one in marker(grader, name, ())]
        object.__setattr__(reward, name, tuple(dict.fromkeys(told)))
