"""Pay for saying what is to be seen: Perception-R1's visual perception reward (arXiv 2506.07218).

Each row carries atomic facts about its picture (column `visual_key_info`: a list, or a text of numbered tags
`<info1>…</info1>`). A text-only judge is asked for every fact whether the answer states it; the reward is

    r_v = (number of facts that the judge finds) / (number of facts)

The paper weighs it by 0.7 next to 0.9 accuracy + 0.1 format; its n-gram penalty is
`mmrl.rewards.functions.RepetitionPenalty(n=20)` with weight 2. The official score and parser are in
`mmrl.perception.compat.perception_r1`.

Departures from the official code (holes closed):
1. The denominator is the number of annotations, not of parsed verdicts; a fact without verdict counts 0.
2. Tags in the answer are defused before the judge reads it, so that an answer cannot write its own verdicts.
3. A verdict is 1 or 0; what is neither (a number between, a word) counts 0.
4. A row without facts gives None (the part is not available for the whole group), not 0.
5. A judge that is down raises `Unavailable`, and so do two replies without any verdict, which are no judgement; the
   policy of `Rewards` decides. Neither is ever a 0.
6. The wording of the request is ours (`mmrl/rewards/prompts/visual_facts.md`), without the official worked examples.

`RuleConsistency` is a stand-in without a judge: a fact counts if all its numbers and symbols occur in one sentence of
the answer (so a fact in plain words never does, unless `words` is on). It is an approximation: name the part so that it
shows (`consistency_rule`), and do not call runs with it a reproduction. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mmrl.rewards.judge_prompts import Asked, judge_prompt
from mmrl.rewards.judged import Judged

if TYPE_CHECKING:
    from mmrl.types import Rollout

_DRESSING = (
    r"\overline",
    r"\angle",
    r"\triangle",
    r"^\circ",
    r"^{\circ}",
    r"\left",
    r"\right",
    r"\text",
    "°",
)
_TAGGED = re.compile(r"<info(\d+)>(.*?)</info\1>", re.DOTALL)
_VERDICT = re.compile(r"<info(\d{1,4})>\s*([^<]{0,40}?)\s*</info\1>")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_TOKEN = re.compile(
    r"\d+(?:\.\d+)?|[A-Z]+(?![a-z])|(?<![a-zA-Z])[a-z](?![a-zA-Z'])|[=<>+^]|[^\W\d_a-zA-Z]"
)


def facts_of(extra: Mapping[str, Any], prompt_id: str = "") -> tuple[str, ...]:
    """The facts of a row, from its column `visual_key_info`; none if it is absent or empty."""
    stated = extra.get("visual_key_info")
    if stated is None or not len(stated):
        return ()
    if not isinstance(stated, str):
        return tuple(str(fact).strip() for fact in stated)
    found = _TAGGED.findall(stated)
    numbered = [int(index) for index, _ in found]
    in_order = numbered == list(range(1, len(found) + 1))
    # Text without a single tag is a column of another format, not a row without facts.
    if not in_order or (stated.strip() and not found):
        raise ValueError(
            f"prompt {prompt_id!r}: the column visual_key_info must be a list of facts or tags "
            f"<info1>…</info1>, <info2>…</info2> in order; found {stated[:120]!r}."
        )
    return tuple(fact.strip() for _, fact in found)


def judge_request(facts: Sequence[str], response: str) -> Asked:
    """The chat messages that ask for one verdict per fact."""
    lines = [f"{place}. {fact}" for place, fact in enumerate(facts, start=1)]
    prompt = judge_prompt("visual_facts")
    return prompt.filled(facts="\n".join(lines), response=response)


def verdicts(reply: str, count: int) -> tuple[float, ...] | None:
    """One 0 or 1 per fact, the last verdict of each counting; None if the reply holds no verdict at all."""
    # Later verdicts replace earlier ones: a judge that thinks aloud ends with its list.
    found = {int(index): verdict for index, verdict in _VERDICT.findall(reply)}
    asked = range(1, count + 1)
    if not any(index in asked for index in found):
        return None
    stated = [found.get(index, "") in ("1", "1.0") for index in asked]
    return tuple(float(yes) for yes in stated)


@dataclass(frozen=True)
class VisualConsistency(Judged):
    """Share of the picture's facts that the answer states, as a judge reads it. An async reward."""

    judge_prompts: ClassVar[tuple[str, ...]] = ("visual_facts",)

    async def __call__(self, rollout: Rollout) -> float | None:
        facts = facts_of(rollout.prompt.extra, rollout.prompt.id)
        if not facts:
            return None
        request = judge_request(facts, rollout.text)
        read = partial(verdicts, count=len(facts))
        marks = await self.ask(request, read, f"prompt {rollout.prompt.id!r}")
        return sum(marks) / len(marks)


@dataclass(frozen=True)
class RuleConsistency:
    """Share of the picture's facts whose numbers and symbols occur together in a sentence. Not a reproduction."""

    words: bool = False
    """Look for all words of a fact in a sentence, whatever their order and case, instead of its symbols."""

    def __call__(self, rollout: Rollout) -> float | None:
        facts = facts_of(rollout.prompt.extra, rollout.prompt.id)
        if not facts:
            return None
        signs = word_set if self.words else symbols
        sentences = [signs(sentence) for sentence in _SENTENCE.split(rollout.text)]
        found = 0
        for fact in facts:
            wanted = signs(fact)
            # A fact without signs would be part of every sentence.
            found += bool(wanted) and any(wanted <= said for said in sentences)
        return found / len(facts)


def word_set(text: str) -> frozenset[str]:
    """The lower-case words and numbers of a text."""
    return frozenset(re.findall(r"\w+", text.lower()))


def symbols(text: str) -> frozenset[str]:
    """The numbers, capital letters, single letters and signs of a text, LaTeX dressing taken off."""
    for command in _DRESSING:
        text = text.replace(command, " ")
    text = re.sub(r"\\[a-zA-Z]+|[$\\{}]", " ", text)
    # "a" and "I" are words far more often than symbols.
    return frozenset(_TOKEN.findall(text)) - {"a", "A", "I"}
