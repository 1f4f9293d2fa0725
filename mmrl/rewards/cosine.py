"""A chain of verifiers that may not know (after CoSineVerifier, arXiv 2512.01224). No torch.

    missing    no final answer: wrong
    exact      the same text, or the same letter of an option: right;  another letter: wrong
    numeric    two numbers, units converted: right within the tolerance, else wrong
    symbolic   the difference simplifies to 0: right;  it is another number, or differs at a point: wrong
    model      a verifier model that may have expressions computed by the same executor, asked only by `undecided`

The first stage that knows decides. What none knows is undecided, time-outs among it, and `undecided` says what becomes
of it: "drop" leaves the part out of its group (never a 0), "judge" asks the model. All are counted under the name of
their stage, `verifier/STAGE_right` and `verifier/STAGE_wrong`, beside `verifier/undecided` and `verifier/late`.

Numbers: `measured` for a reference with decimals or a unit of measure, else `exact`; a whole number without a unit must
be hit exactly. "g" in an answer is a letter unless `constants` gives its value.

Departures
1. Reconstructed: the abstract describes a verifier with an executor as its tool; the chain before it is ours, and so
   are the prompts. The released 4B verifier speaks its own prompt: with ours it is any other model.
2. Words that differ from the reference are undecided, since they may mean the same ("two" and 2). Where the answers of
   a data set come from a closed list, `words="wrong"`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mmrl.ground.require import require
from mmrl.rewards.answers import (
    final_answer,
    named_option,
    read_number,
    references,
    same_number,
    same_wording,
)
from mmrl.rewards.contract import Reward, own_metrics
from mmrl.rewards.judge import Ask
from mmrl.rewards.judge_prompts import judge_prompt
from mmrl.rewards.judged import Unreadable
from mmrl.rewards.judged_answer import asked, verdict
from mmrl.rewards.numbers import Number, plain
from mmrl.rewards.symbolic import Executor

if TYPE_CHECKING:
    from mmrl.types import Rollout

Stage = Literal["missing", "exact", "numeric", "symbolic", "model", "undecided"]
LONGEST = 2000
"""Characters of a question or an answer that a model is shown."""
_COMPUTE = re.compile(r"<compute>(.{1,500}?)</compute>", re.DOTALL)


@dataclass(frozen=True)
class Cosine:
    """When two answers are equal, and what happens where nobody can say."""

    measured: float = 1e-2
    """Relative error of a measured value: the reference has decimals or a unit."""
    exact: float = 1e-6
    """Relative error of other numbers that are not whole."""
    seconds: float = 5.0
    """For one symbolic comparison; then it is undecided."""
    constants: tuple[str, ...] = ()
    """Letters with a value, as g=9.81."""
    words: Literal["undecided", "wrong"] = "undecided"
    """What words are that differ from the reference."""
    undecided: Literal["drop", "judge"] = "judge"
    """Leave the part out of the group, or ask the verifier model."""
    turns: int = 3
    """Expressions that the model may have computed for one verdict."""

    def __post_init__(self) -> None:
        letters = [_constant(pair) for pair in self.constants]
        require(
            self,
            measured=(0 <= self.measured < 1, "in [0, 1)"),
            exact=(0 <= self.exact < 1, "in [0, 1)"),
            seconds=(0 < self.seconds <= 3600, "positive, at most 3600"),
            constants=(None not in letters, "pairs of a letter and a number, as g=9.81"),
            turns=(0 <= self.turns <= 32, "0 (no calculator) to 32"),
        )

    @property
    def values(self) -> dict[str, float]:
        """Letter -> value."""
        pairs = (_constant(pair) for pair in self.constants)
        return dict(pair for pair in pairs if pair is not None)


@dataclass(frozen=True)
class Verdict:
    """What the chain says of an answer."""

    right: bool | None
    """None: it does not know."""
    stage: Stage
    """Who decided."""


@dataclass(frozen=True)
class VerifierChain(Reward):
    """1 if the chain finds the answer right, 0 if not; not available where it does not know. An async reward."""

    cosine: Cosine = Cosine()
    read: Callable[[str], str | None] = final_answer
    """Text -> final answer; None or empty if there is none."""
    judge: Ask | None = None
    """The verifier model, asked if `cosine.undecided` says so."""
    executor: Executor = field(default_factory=Executor, repr=False, compare=False)
    counts: Counter[str] = field(default_factory=Counter, repr=False, compare=False)

    judge_prompts: ClassVar[tuple[str, ...]] = ("verify_with_tool", "computed")  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.cosine.undecided == "judge" and self.judge is None:
            raise ValueError(
                "Cosine.undecided is 'judge', but there is no model to ask; name its server, or take 'drop'."
            )

    async def __call__(self, rollout: Rollout) -> float | None:
        found = await self.verdict(rollout)
        outcome = "" if found.right is None else "_right" if found.right else "_wrong"
        self.counts[f"verifier/{found.stage}{outcome}"] += 1
        return None if found.right is None else float(found.right)

    async def verdict(self, rollout: Rollout) -> Verdict:
        """The verdict on an answer; with several references the best of them."""
        answer = (self.read(rollout.text) or "").strip()
        if not answer:
            return Verdict(False, "missing")
        found: list[Verdict] = []
        for reference in references(rollout.prompt.answer):
            found.append(await self.compared(answer, reference))
            if found[-1].right:
                return found[-1]
        open_ones = [one for one in found if one.right is None]
        if not open_ones:
            return found[-1]
        if self.judge is None or self.cosine.undecided == "drop":
            return open_ones[0]
        wanted = "\n".join(references(rollout.prompt.answer))
        right = await self._asked(asked(rollout.prompt.messages), answer, wanted)
        return Verdict(right, "model")

    async def compared(self, answer: str, reference: str) -> Verdict:
        """What the stages before the model say of one reference."""
        for stage, rule in (("exact", exactly), ("numeric", self._numerically)):
            right = rule(answer, reference)
            if right is not None:
                return Verdict(right, stage)  # type: ignore[arg-type]
        if is_words(answer) or is_words(reference):
            wrong = self.cosine.words == "wrong"
            return Verdict(False, "exact") if wrong else Verdict(None, "undecided")
        late = self.executor.late
        tolerance = self._tolerance(read_number(reference))
        same = await self.executor.same(answer, reference, tolerance, self.cosine.values)
        self.counts["verifier/late"] += self.executor.late > late
        return Verdict(None, "undecided") if same is None else Verdict(same > 0.5, "symbolic")

    def metrics(self) -> Mapping[str, float]:
        """What was counted since the last call, the model's own counts included."""
        own = {name: float(count) for name, count in self.counts.items()}
        self.counts.clear()
        return {**own, **(own_metrics(self.judge) if self.judge is not None else {})}

    def _numerically(self, answer: str, reference: str) -> bool | None:
        if any(
            _names(text, letter)
            for letter in self.cosine.values
            for text in (answer, reference)
        ):
            return None  # "2g" would be two grams
        given, wanted = read_number(answer), read_number(reference)
        if given is None or wanted is None:
            return None
        return same_number(answer, reference, self._tolerance(wanted), letters=False)

    def _tolerance(self, wanted: Number | None) -> float:
        """The relative error that a reference allows; what is no number is not measured."""
        if wanted is None:
            return self.cosine.exact
        if wanted.step or wanted.unit is not None:
            return self.cosine.measured
        return 0.0 if wanted.value.denominator == 1 else self.cosine.exact

    async def _asked(self, question: str, answer: str, reference: str) -> bool:
        """The model's verdict. Raises Unreadable, and what the judge raises."""
        assert self.judge is not None
        self.counts["verifier/asked"] += 1
        messages = judge_prompt("verify_with_tool").filled(
            question=question[:LONGEST], reference=reference[:LONGEST], answer=answer[:LONGEST]
        )
        reply = ""
        # One reply more than expressions: the last must hold the verdict. Another one is asked for what cannot be read.
        for _ in range(self.cosine.turns + 2):
            reply = await self.judge(messages)
            found = verdict(reply)
            if found is not None:
                return found > 0.5
            wanted = _COMPUTE.search(reply)
            said = {"role": "assistant", "content": reply or "-"}
            if wanted is None:
                self.counts["judge/unreadable"] += 1
                messages = messages.followed(said, *judge_prompt("read_again").filled())
                continue
            self.counts["verifier/computed"] += 1
            number = await self.executor.value(wanted[1].strip(), self.cosine.values)
            shown = "no value" if number is None else f"{number:.12g}"
            messages = messages.followed(said, *judge_prompt("computed").filled(value=shown))
        raise Unreadable(f"the verifier came to no verdict: {reply[:200]!r}")


def exactly(answer: str, reference: str) -> bool | None:
    """The same wording; False for another letter of an option; None: that does not decide."""
    if same_wording(answer, reference):
        return True
    letter, wanted = named_option(answer), named_option(reference)
    return False if letter is not None and wanted is not None and letter != wanted else None


def is_words(text: str) -> bool:
    """Is it nothing but words of several letters?"""
    words = re.findall(r"\S+", plain(text))
    return bool(words) and all(re.fullmatch(r"[^\W\d_]{2,}[,.'-]*", word) for word in words)


def _names(text: str, letter: str) -> bool:
    """Does the letter stand by itself in the text?"""
    return re.search(rf"(?<![A-Za-z]){re.escape(letter)}(?![A-Za-z])", text) is not None


def _constant(pair: str) -> tuple[str, float] | None:
    """Letter and value of "g=9.81"; None for another text."""
    letter, _, number = pair.partition("=")
    found = read_number(number)
    if not re.fullmatch(r"[A-Za-z]\w{0,9}", letter.strip()) or found is None or found.unit:
        return None
    return letter.strip(), float(found.value)
