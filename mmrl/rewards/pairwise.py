"""Writing-Zero (arXiv 2506.00103): answers of a group are compared with one of them, drawn at random.

    R_i = +1 if answer i beats the reference, -1 if not, 0 for the reference itself      (`losses.brpo` has the rest)

The judge names criteria for the request, criticises both answers, and gives each a score in [0, 10]; the higher one
wins. With both orders an answer wins only if it does in either. The draws of the reference and of the order are keyed
by the seed, the prompt and the answers, so that a step that is repeated asks the same.

Degenerate cases
- A comparison without a verdict leaves out its answer alone. More than half of them missing leave out the group: as an
  outage where the judge was not available, which the policy of `Rewards` decides about. It is never a 0 or a -1.
- An answer without words loses, and two of them tie, without asking.
- A group of one is its own reference and gets 0; the judge is not asked.

Departures
1. No official code. A tie pays -1, as the authors do with votes that contradict each other; `tie` changes it.
2. The prompt is ours (`prompts/pairwise_writing.md`), the judge any model: the authors trained one for this.
3. Pictures are ours: a judge that sees is shown those of the prompt. The published method reads text.
4. `RulePreferred` is a stand-in without a judge: the better one is that of the higher score by a rule, equal scores pay
   `RULE_TIE`. That is BRPO on verifiable scores and not Writing-Zero; name the part so that it shows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mmrl.ground.answers import after_thinking, thought_is_open
from mmrl.ground.require import require
from mmrl.ground.seeds import philox
from mmrl.rewards.contract import Reward
from mmrl.rewards.judge import RequestRefused
from mmrl.rewards.judge_pictures import addresses_of
from mmrl.rewards.judge_prompts import Asked, judge_prompt
from mmrl.rewards.judged import Judged
from mmrl.rewards.judged_answer import asked
from mmrl.rewards.worker import Unavailable, marker

if TYPE_CHECKING:
    from mmrl.types import Rollout

Winner = Literal["first", "second", "tie"]
LONGEST = 12_000
"""Characters of a request or an answer that are shown."""
RULE_TIE = 0.0
_SCORE = re.compile(r"<score([12])>\s*(\d{1,2}(?:\.\d{1,6})?)\s*</score\1>")


@dataclass(frozen=True)
class BRPO:
    """How answers are compared."""

    tie: float = -1.0
    """What an answer gets that is as good as the reference."""
    both_orders: bool = False
    """Ask in either order, for twice the requests; else the order of each pair is drawn."""
    skew: float = 0.6
    """Groups whose |sum of R| / G is larger are dropped; 1 keeps all."""

    def __post_init__(self) -> None:
        require(
            self,
            tie=(-1 <= self.tie <= 0, "in [-1, 0]"),
            skew=(0 <= self.skew <= 1, "in [0, 1]"),
        )


@dataclass(frozen=True)
class Preferred(Judged):
    """+1 or -1 as a judge finds an answer better than the group's reference or not. An async reward of groups."""

    brpo: BRPO = BRPO()
    seed: int = 0
    """Of the draws."""
    pictures: bool = True
    """Show the prompt's pictures to the judge; a text model refuses them."""

    grouped: ClassVar[bool] = True  # type: ignore[misc]
    lacks_alone: ClassVar[bool] = True  # type: ignore[misc]
    judge_prompts: ClassVar[tuple[str, ...]] = ("pairwise_writing",)  # type: ignore[misc]

    def traits(self) -> tuple[str, ...]:
        """For the table of combinations that mean nothing."""
        return ("compares with one of the group", "assumes independent rows")

    async def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        reference = reference_of(rollouts, self.seed)
        others = [one for place, one in enumerate(rollouts) if place != reference]
        # Once for the group, since pictures are large.
        seen = addresses_of(rollouts[0].prompt.media) if self.pictures and others else []
        asking = [self._against(one, rollouts[reference], seen) for one in others]
        found = await asyncio.gather(*asking, return_exceptions=True)
        values = [self._value(one) for one in found]
        self.counts["pairwise/compared"] += len(values)
        missing = values.count(None)
        self.counts["pairwise/missing"] += missing
        if 2 * missing > len(values):
            for one in found:
                if isinstance(one, Unavailable):
                    raise one
            return [None] * len(rollouts)  # refused, all of them: nobody else is to blame
        values.insert(reference, 0.0)
        return values

    def _value(self, found: bool | BaseException | None) -> float | None:
        """R, or None if there is no verdict. Raises what is neither an outage nor a refusal."""
        if isinstance(found, Unavailable | RequestRefused):
            return None
        if isinstance(found, BaseException):
            raise found
        if found is None:
            self.counts["pairwise/ties"] += 1
            return self.brpo.tie
        return 1.0 if found else -1.0

    async def _against(
        self, answer: Rollout, reference: Rollout, seen: Sequence[str]
    ) -> bool | None:
        """Does the answer beat the reference? None for a tie. Raises Unavailable, RequestRefused."""
        texts = said(answer.text), said(reference.text)
        if not all(texts):  # nobody need be asked
            return bool(texts[0]) if any(texts) else None
        draw = philox("order", self.seed, answer.prompt.id, answer.text, reference.text)
        order = bool(draw.random() < 0.5)
        orders = (order, not order) if self.brpo.both_orders else (order,)
        verdicts = [await self._verdict(answer, reference, first, seen) for first in orders]
        if all(verdict is None for verdict in verdicts):
            return None
        return all(verdicts)

    async def _verdict(
        self, answer: Rollout, reference: Rollout, first: bool, seen: Sequence[str]
    ) -> bool | None:
        """The same in one order: is the answer shown first?"""
        pair = (answer, reference) if first else (reference, answer)
        where = f"prompt {answer.prompt.id!r}"
        messages = request(answer.prompt, said(pair[0].text), said(pair[1].text), seen)
        winner = await self.ask(messages, read_winner, where)
        if winner == "tie":
            return None
        self.counts["pairwise/first_wins"] += winner == "first"
        return (winner == "first") == first


@dataclass(frozen=True)
class RulePreferred(Reward):
    """The same by a rule: the higher of two scores is the better one. Not a reproduction."""

    score: Callable[[Any], float]
    """Pays one answer; no coroutine."""
    seed: int = 0

    grouped: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        # A worker reads these of the object that it calls.
        for name in ("needs", "needs_tags", "preload", "in_process"):
            given = marker(self.score, name, getattr(Reward, name))
            object.__setattr__(self, name, given)

    def traits(self) -> tuple[str, ...]:
        """For the table of combinations that mean nothing."""
        return ("compares with one of the group", "assumes independent rows")

    def __call__(self, rollouts: Sequence[Any]) -> list[float]:
        scores = [self.score(one) for one in rollouts]
        bar = scores[reference_of(rollouts, self.seed)]
        return [RULE_TIE if one == bar else 1.0 if one > bar else -1.0 for one in scores]


def reference_of(rollouts: Sequence[Any], seed: int) -> int:
    """Which answer of the group is the reference, each with the same chance."""
    texts = [one.text for one in rollouts]
    return int(philox("reference", seed, rollouts[0].prompt.id, texts).integers(len(texts)))


def request(prompt: Any, first: str, second: str, seen: Sequence[str] = ()) -> Asked:
    """The chat messages that ask who is better."""
    return judge_prompt("pairwise_writing").filled(
        pictures=seen,
        request=asked(prompt.messages)[:LONGEST],
        first=first[:LONGEST],
        second=second[:LONGEST],
    )


def read_winner(reply: str) -> Winner | None:
    """Who has the higher score, by the last score of each; None if one has none in [0, 10]."""
    scores = {place: float(score) for place, score in _SCORE.findall(reply)}
    if len(scores) < 2 or max(scores.values()) > 10:
        return None
    if scores["1"] == scores["2"]:
        return "tie"
    return "first" if scores["1"] > scores["2"] else "second"


def said(text: str) -> str:
    """What is judged: the answer behind the thoughts; empty if it was cut off before."""
    return "" if thought_is_open(text) else after_thinking(text).strip()
