"""Tasks made of several questions: batches, inversion, chains. `compose` has the operators on one question.

BatchedTask(A, k)  k questions of A at once; bodies in order, separated by "|"; reward is their mean
InvertedTask(A, n) n instances of A on one medium and one answer: which instance has it?
ChainedTask(A, B)  A chooses one of its pictures; the answer of B about that picture follows after a bar
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.random import Generator

from mmrl.data.pretext.compose import BAR, WrappedTask, worded
from mmrl.data.pretext.contract import (
    Draft,
    Evidence,
    Knobs,
    Medium,
    Proposal,
    RawMedia,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import ChoiceTask, all_or_error, lettered, listed
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.require import require
from mmrl.ground.seeds import Streams

THEN = "then_"
"""Before the names of the second task's knobs in a chain."""


class BatchedTask(WrappedTask):
    """k questions at once."""

    def __init__(self, inner: Task, k: int = 2) -> None:
        super().__init__(inner, f"batch{k}")
        self.k = k
        require(self, k=(k >= 2, "at least two questions"))
        self.wordings = ("{questions}", "Several questions follow. {questions}")
        self.hint = 'the answers in that order, separated by a bar "|", each being {inner}'

    def media_count(self, knobs: Knobs) -> int:
        return self.k * self.inner.media_count(knobs)

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        each = self.inner.media_count(knobs)
        drafts: list[Draft] = []
        for place in range(self.k):
            own = media[place * each : (place + 1) * each]
            found = self.inner.propose(own, knobs, rng.child("batch", place))
            if isinstance(found, Reject):
                return found
            drafts.append(found)
        visuals: list[Visual] = []
        evidence: list[Evidence] = []
        questions = []
        for number, draft in enumerate(drafts, 1):
            # Before the visuals are added: their number is where this question's own ones begin.
            for entry in draft.evidence:
                evidence.append(replace(entry, visual=entry.visual + len(visuals)))
            for visual in draft.visuals:
                label = f"Question {number}, {visual.label or 'picture:'}"
                visuals.append(replace(visual, label=label))
            questions.append(f"Question {number}: {worded(self.inner, draft)}")
        return Draft(
            visuals=tuple(visuals),
            truth={"answer": None, "parts": [dict(draft.truth) for draft in drafts]},
            key=tuple(draft.key for draft in drafts),
            fields={
                "questions": " ".join(questions),
                "inner": self.inner.hint.format(**drafts[0].fields),
            },
            evidence=tuple(evidence),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        bodies = [part.strip() for part in body.split(BAR)]
        if len(bodies) != len(truth["parts"]) or not all(bodies):
            return ParseError("length", body[:40])
        # Errors are kept in their places: one answer that cannot be read costs its own part only.
        pairs = zip(bodies, truth["parts"], strict=True)
        return [self.inner.read(part, entry) for part, entry in pairs]

    def verify(self, value: Any, truth: Truth) -> Score:
        scores = []
        for part, entry in zip(value, truth["parts"], strict=True):
            unread = isinstance(part, ParseError)
            scores.append(Score(0.0) if unread else self.inner.verify(part, entry))
        mean = sum(score.reward for score in scores) / len(scores)
        correct = all(score.correct for score in scores)
        return Score(mean, correct, key=tuple(score.key for score in scores))

    def format(self, truth: Truth) -> str:
        return f" {BAR} ".join(self.inner.format(entry) for entry in truth["parts"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return f" {BAR} ".join(self.inner.guess(entry, rng) for entry in truth["parts"])

    def chance(self, knobs: Knobs) -> float:
        return self.inner.chance(knobs) ** self.k


class InvertedTask(ChoiceTask, WrappedTask):
    """Give the answer, ask for the instance. For tasks with one visual and one wording field set per medium."""

    def __init__(self, inner: Task, n: int = 3) -> None:
        super().__init__(inner, f"invert{n}")
        self.n = n
        self.wordings = (
            'For one of the pictures {letters} the answer to this question is "{answer}". {question} Which picture?',
            'Question: {question} For which of the pictures {letters} is "{answer}" right?',
        )
        self.hint = "one letter"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        drafts = self._instances(media, knobs, rng)
        if isinstance(drafts, Reject):
            return drafts
        chosen, letters = int(rng.selection.integers(self.n)), lettered(self.n)
        visuals = []
        for letter, draft in zip(letters, drafts, strict=True):
            visuals.append(replace(draft.visuals[0], label=f"{letter}:"))
        return Draft(
            visuals=tuple(visuals),
            truth={"answer": letters[chosen], "options": letters},
            key=letters[chosen],
            fields={
                "letters": listed(letters),
                "answer": self.inner.format(drafts[chosen].truth),
                "question": worded(self.inner, drafts[chosen]),
            },
            evidence=(Evidence(chosen),),
        )

    def _instances(
        self, media: Sequence[Medium], knobs: Knobs, rng: Streams
    ) -> list[Draft] | Reject:
        """`n` drafts of one question with different answers."""
        drafts: list[Draft] = []
        for attempt in range(6 * self.n):
            found = self.inner.propose(media, knobs, rng.child("instance", attempt))
            if isinstance(found, Reject):
                return found
            if len(found.visuals) != 1:
                return Reject("several-visuals")
            # Other fields are another question, and one answer twice would make two instances right.
            same_question = not drafts or found.fields == drafts[0].fields
            if same_question and all(found.key != other.key for other in drafts):
                drafts.append(found)
            if len(drafts) == self.n:
                return drafts
        return Reject("too-few-instances")

    def option_count(self, knobs: Knobs) -> int:
        return self.n


class ChainedTask(WrappedTask):
    """The answer of `first` selects the picture that `second` asks about.

    `first` must be a choice among pictures (mosaic, patchfit); `second` takes one image and shows one visual (overlay
    count, say), which is made from every option and shown in its place. Knobs of `second` carry the prefix "then_"."""

    def __init__(self, first: ChoiceTask, second: Task) -> None:
        super().__init__(first, "chain")
        self.second = second
        self.name = f"chain-{first.name}-{second.name}"
        then = {f"{THEN}{name}": knob for name, knob in second.knobs.items()}
        self.knobs = dict(first.knobs) | then
        self.avoid = tuple(sorted({*first.avoid, *second.avoid}))
        self.wordings = (
            "{question} Then answer about the picture you chose: {then}",
            "Two steps. First: {question} Second, for that picture only: {then}",
        )
        self.hint = '{inner}, then a bar "|" and {after}'

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        own, then = self._parted(knobs)
        base = self.inner.propose(media, own, rng.child("first"))
        if isinstance(base, Reject):
            return base
        options = base.truth["options"]
        visuals = list(base.visuals)
        drafts: dict[str, tuple[int, Draft]] = {}
        # The second question is made from every option: it must not show which one is meant.
        for place, visual in enumerate(base.visuals):
            option = visual.label.rstrip(":")
            if option not in options:
                continue
            medium = Medium(f"{option}-{place}", "image", image=visual.pixels)
            found = self.second.propose([medium], then, rng.child("second", place))
            if isinstance(found, Reject):
                return found
            if len(found.visuals) != 1 or found.visuals[0].is_video:
                return Reject("several-visuals")
            visuals[place] = Visual(found.visuals[0].pixels, label=visual.label)
            drafts[option] = (place, found)
        if len(drafts) != len(options):
            return Reject("options-not-shown")
        place, after = drafts[base.truth["answer"]]
        return Draft(
            visuals=tuple(visuals),
            truth={"answer": None, "first": dict(base.truth), "second": dict(after.truth)},
            key=(base.key, after.key),
            fields={
                "question": worded(self.inner, base),
                "then": worded(self.second, after),
                "inner": self.inner.hint.format(**base.fields),
                "after": self.second.hint.format(**after.fields),
            },
            evidence=tuple(replace(entry, visual=place) for entry in after.evidence),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        first, bar, second = body.partition(BAR)
        if not bar:
            return ParseError("malformed", body[:40])
        one = self.inner.read(first.strip(), truth["first"])
        two = self.second.read(second.strip(), truth["second"])
        return all_or_error((one, two))

    def verify(self, value: Any, truth: Truth) -> Score:
        one = self.inner.verify(value[0], truth["first"])
        two = self.second.verify(value[1], truth["second"])
        # About another picture the second answer is worth nothing, even if it happens to be the same.
        reward = (one.reward + two.reward) / 2 if one.correct else one.reward / 2
        correct = one.correct and two.correct
        return Score(reward, correct, {"first": one.reward}, (one.key, two.key))

    def format(self, truth: Truth) -> str:
        first = self.inner.format(truth["first"])
        return f"{first} {BAR} {self.second.format(truth['second'])}"

    def guess(self, truth: Truth, rng: Generator) -> str:
        first = self.inner.guess(truth["first"], rng)
        return f"{first} {BAR} {self.second.guess(truth['second'], rng)}"

    def chance(self, knobs: Knobs) -> float:
        own, then = self._parted(knobs)
        return self.inner.chance(own) * self.second.chance(then)

    def chance_reward(self, knobs: Knobs) -> float:
        own, then = self._parted(knobs)
        right = self.inner.chance(own)
        return right * (1.0 + self.second.chance_reward(then)) / 2

    def media_count(self, knobs: Knobs) -> int:
        own, _ = self._parted(knobs)
        return self.inner.media_count(own)

    def _parted(self, knobs: Knobs) -> tuple[Knobs, Knobs]:
        """The knobs of the first task and those of the second."""
        own = {name: value for name, value in knobs.items() if name in self.inner.knobs}
        then = {}
        for name, value in knobs.items():
            if name.startswith(THEN):
                then[name.removeprefix(THEN)] = value
        return own, then
