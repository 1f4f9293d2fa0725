"""Tasks made of tasks: noise, batches, options, places, inversion, chains, and the blind version for audits.

Noise(A)       A with noisy pixels; nothing else changes
Batch(A, k)    k questions of A at once; bodies in order, separated by "|"; reward is their mean
AsChoice(A, n) A with n answers to choose from, the wrong ones drawn like guesses, the better half of a larger pool
Locate(A)      A, and after a bar the box of the evidence in the first visual that has one; half the reward each
Invert(A, n)   n instances of A on one medium and one answer: which instance has it?
Chain(A, B)    A chooses one of its pictures; the answer of B about that picture follows after a bar
Blind(A)       A with grey pixels: what is above chance here comes from the words

A composed task is a `Task` like any other: it is named after its parts, keeps the contract and runs the same
conformance suite. Truths nest those of the parts. `correct` asks for every part; rewards are means of the parts'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knobs,
    Medium,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import ChoiceTask, lettered
from mmrl.data.pretext.craft.coordinates import RULE, is_box, scaled_box
from mmrl.data.pretext.craft.draws import some_of
from mmrl.data.pretext.craft.rng import Streams, generator
from mmrl.data.pretext.marking.parsing import ParseError, numbers
from mmrl.data.pretext.marking.rewards import box_iou
from mmrl.data.pretext.surface import Surface
from mmrl.data.pretext.tasks.crop_location import box_key, random_box

BAR = "|"


class WrappedTask(Task):
    """A task around another: passes everything on. Instances hold the inner task."""

    prefix: ClassVar[str] = "wrapped"
    """What the name of the composed task begins with."""

    def __init__(self, inner: Task) -> None:
        self.inner = inner
        self.kinds, self.version, self.knobs = inner.kinds, inner.version, inner.knobs
        self.wordings, self.hint, self.intended, self.avoid = (
            inner.wordings, inner.hint, inner.intended, inner.avoid,
        )  # fmt: skip
        self.name = f"{self.prefix}-{inner.name}"

    def media_count(self, knobs: Knobs) -> int:
        return self.inner.media_count(knobs)

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        return self.inner.propose(media, knobs, rng)

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return self.inner.read(body, truth)

    def verify(self, value: Any, truth: Truth) -> Score:
        return self.inner.verify(value, truth)

    def format(self, truth: Truth) -> str:
        return self.inner.format(truth)

    def guess(self, truth: Truth, rng: Generator) -> str:
        return self.inner.guess(truth, rng)

    def chance(self, knobs: Knobs) -> float:
        return self.inner.chance(knobs)

    def chance_reward(self, knobs: Knobs) -> float:
        return self.inner.chance_reward(knobs)


class NoisyTask(WrappedTask):
    """Gaussian noise on every pixel of every visual."""

    prefix = "noise"

    def __init__(self, inner: Task, sigma: float = 12.0) -> None:
        super().__init__(inner)
        self.sigma = sigma

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        draft = self.inner.propose(media, knobs, rng)
        if isinstance(draft, Reject):
            return draft
        draw = rng["noise"]
        return replace(
            draft,
            visuals=tuple(
                replace(v, pixels=self._noisy(v.pixels, draw)) for v in draft.visuals
            ),
        )

    def _noisy(self, pixels: Array, rng: Generator) -> Array:
        grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(self.sigma)
        return np.clip(pixels + grain, 0, 255).astype(np.uint8)


class BlindTask(WrappedTask):
    """Grey pixels of the same size."""

    prefix = "blind"

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        draft = self.inner.propose(media, knobs, rng)
        if isinstance(draft, Reject):
            return draft
        return replace(
            draft,
            visuals=tuple(
                replace(v, pixels=np.full_like(v.pixels, 128)) for v in draft.visuals
            ),
            evidence=(),
        )


class BatchedTask(WrappedTask):
    """k questions at once."""

    def __init__(self, inner: Task, k: int = 2) -> None:
        super().__init__(inner)
        if k < 2:
            raise ValueError(f"Batch.k is {k}; at least two questions make a batch.")
        self.k, self.name = k, f"batch{k}-{inner.name}"
        self.wordings = ("{questions}", "Several questions follow. {questions}")
        self.hint = 'the answers in that order, separated by a bar "|", each being {inner}'

    def media_count(self, knobs: Knobs) -> int:
        return self.k * self.inner.media_count(knobs)

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        each, drafts = self.inner.media_count(knobs), []
        for place in range(self.k):
            found = self.inner.propose(
                media[place * each : (place + 1) * each], knobs, rng.child("batch", place)
            )
            if isinstance(found, Reject):
                return found
            drafts.append(found)
        visuals, evidence = [], []
        for place, draft in enumerate(drafts):
            evidence += [
                replace(entry, visual=entry.visual + len(visuals)) for entry in draft.evidence
            ]
            visuals += [
                replace(v, label=f"Question {place + 1}, {v.label or 'picture:'}")
                for v in draft.visuals
            ]
        asked = [
            f"Question {place + 1}: {_worded(self.inner, draft)}"
            for place, draft in enumerate(drafts)
        ]
        return Draft(
            visuals=tuple(visuals),
            truth={"answer": None, "parts": [dict(draft.truth) for draft in drafts]},
            key=tuple(draft.key for draft in drafts),
            fields={
                "questions": " ".join(asked),
                "inner": self.inner.hint.format(**drafts[0].fields),
            },
            evidence=tuple(evidence),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        bodies = [part.strip() for part in body.split(BAR)]
        if len(bodies) != len(truth["parts"]) or not all(bodies):
            return ParseError("length", body[:40])
        return [
            self.inner.read(part, entry)
            for part, entry in zip(bodies, truth["parts"], strict=True)
        ]

    def verify(self, value: Any, truth: Truth) -> Score:
        pairs = zip(value, truth["parts"], strict=True)
        scores = [
            Score(0.0) if isinstance(v, ParseError) else self.inner.verify(v, entry)
            for v, entry in pairs
        ]
        mean = sum(score.reward for score in scores) / len(scores)
        return Score(
            mean,
            all(score.correct for score in scores),
            key=tuple(score.key for score in scores),
        )

    def format(self, truth: Truth) -> str:
        return f" {BAR} ".join(self.inner.format(entry) for entry in truth["parts"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return f" {BAR} ".join(self.inner.guess(entry, rng) for entry in truth["parts"])

    def chance(self, knobs: Knobs) -> float:
        return self.inner.chance(knobs) ** self.k


class OptionsTask(ChoiceTask, WrappedTask):
    """A free answer turned into options."""

    POOL = 4
    """Wrong guesses per wrong option; those with the higher rewards are the harder ones and are taken."""

    def __init__(self, inner: Task, n: int = 4) -> None:
        super().__init__(inner)
        if not 2 <= n <= 10:
            raise ValueError(f"AsChoice.n is {n}; give 2 to 10 options.")
        self.n, self.name = n, f"choice{n}-{inner.name}"
        self.wordings = (
            "{question} Options: {options}.",
            "{question} Which of these is right? {options}.",
        )
        self.hint = "one letter"

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        draft = self.inner.propose(media, knobs, rng)
        if isinstance(draft, Reject):
            return draft
        wrong = self._wrong(draft, rng["options"])
        if wrong is None:
            return Reject("too-few-answers")
        letters, place = lettered(self.n), int(rng["options"].integers(self.n))
        bodies = [*wrong[:place], self.inner.format(draft.truth), *wrong[place:]]
        listed = "; ".join(
            f"{letter}: {body}" for letter, body in zip(letters, bodies, strict=True)
        )
        return replace(
            draft,
            truth={"answer": letters[place], "options": letters},
            key=letters[place],
            fields={"question": _worded(self.inner, draft), "options": listed},
        )

    def _wrong(self, draft: Draft, rng: Generator) -> list[str] | None:
        found: dict[str, float] = {}
        for _ in range(16 * self.POOL * self.n):
            body = self.inner.guess(draft.truth, rng)
            score = self.inner.score(Surface().wrap(body), draft.truth)
            if not score.correct and score.key != draft.key:
                found.setdefault(body, score.reward)
            if len(found) == self.POOL * (self.n - 1):
                break
        if len(found) < self.n - 1:
            return None
        best = sorted(found, key=lambda body: -found[body])[: max(self.n - 1, len(found) // 2)]
        return some_of(best, self.n - 1, rng)

    def option_count(self, knobs: Knobs) -> int:
        return self.n


class LocatedTask(WrappedTask):
    """Also ask where the evidence is."""

    prefix = "locate"

    def __init__(self, inner: Task, box_chance: float = 0.07) -> None:
        """`box_chance`: mean IoU of a random box with the inner task's evidence; `agrees_with_chance` measures it."""
        super().__init__(inner)
        self.box_chance = box_chance
        self.wordings = (
            "{question} Also give the box of the place in {where} that shows it; {rule}.",
            "{question} Then mark where in {where} this can be seen; {rule}.",
        )
        self.hint = '{inner}, then a bar "|" and the box as x0, y0, x1, y1'

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        draft = self.inner.propose(media, knobs, rng)
        if isinstance(draft, Reject):
            return draft
        shown = next(
            (
                e
                for e in draft.evidence
                if len(e.boxes) == 1 and not draft.visuals[e.visual].is_video
            ),
            None,
        )
        if shown is None:
            return Reject("no-single-box")
        height, width = draft.visuals[shown.visual].pixels.shape[:2]
        box = scaled_box(shown.boxes[0], width, height)
        if not is_box(box):
            return Reject("no-single-box")
        label = draft.visuals[shown.visual].label.rstrip(":").lower()
        return replace(
            draft,
            truth={"answer": None, "inner": dict(draft.truth), "box": box},
            key=(draft.key, box_key(box)),
            fields={
                "question": _worded(self.inner, draft),
                "inner": self.inner.hint.format(**draft.fields),
                "where": f"the {label}" if label else "the picture",
                "rule": RULE,
            },
            evidence=(shown,),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        first, bar, second = body.rpartition(BAR)
        box = numbers(second, 4) if bar else ParseError("malformed", body[:40])
        value = self.inner.read(first.strip(), truth["inner"])
        return next(
            (part for part in (value, box) if isinstance(part, ParseError)), (value, box)
        )

    def verify(self, value: Any, truth: Truth) -> Score:
        score, box = self.inner.verify(value[0], truth["inner"]), value[1]
        iou = box_iou(tuple(box), tuple(truth["box"])) if is_box(box) else 0.0
        key = (score.key, box_key(box)) if is_box(box) else score.key
        return Score((score.reward + iou) / 2, score.correct and iou == 1.0, {"iou": iou}, key)

    def format(self, truth: Truth) -> str:
        return f"{self.inner.format(truth['inner'])} {BAR} {', '.join(map(str, truth['box']))}"

    def guess(self, truth: Truth, rng: Generator) -> str:
        return f"{self.inner.guess(truth['inner'], rng)} {BAR} {', '.join(map(str, random_box(rng)))}"

    def chance(self, knobs: Knobs) -> float:
        return 0.0

    def chance_reward(self, knobs: Knobs) -> float:
        return (self.inner.chance_reward(knobs) + self.box_chance) / 2


class InvertedTask(ChoiceTask, WrappedTask):
    """Give the answer, ask for the instance. For tasks with one visual and one wording field set per medium."""

    def __init__(self, inner: Task, n: int = 3) -> None:
        super().__init__(inner)
        self.n, self.name = n, f"invert{n}-{inner.name}"
        self.wordings = (
            'For one of the pictures {letters} the answer to this question is "{answer}". {question} Which picture?',
            'Question: {question} For which of the pictures {letters} is "{answer}" right?',
        )
        self.hint = "one letter"

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        drafts: list[Draft] = []
        for attempt in range(6 * self.n):
            found = self.inner.propose(media, knobs, rng.child("instance", attempt))
            if isinstance(found, Reject):
                return found
            if len(found.visuals) != 1:
                return Reject("several-visuals")
            same = not drafts or found.fields == drafts[0].fields
            if same and all(found.key != other.key for other in drafts):
                drafts.append(found)
            if len(drafts) == self.n:
                break
        else:
            return Reject("too-few-instances")
        chosen, letters = int(rng.selection.integers(self.n)), lettered(self.n)
        return Draft(
            visuals=tuple(
                replace(draft.visuals[0], label=f"{letter}:")
                for letter, draft in zip(letters, drafts, strict=True)
            ),
            truth={"answer": letters[chosen], "options": letters},
            key=letters[chosen],
            fields={
                "letters": ", ".join(letters),
                "answer": self.inner.format(drafts[chosen].truth),
                "question": _worded(self.inner, drafts[chosen]),
            },
            evidence=(Evidence(chosen),),
        )

    def option_count(self, knobs: Knobs) -> int:
        return self.n


class ChainedTask(WrappedTask):
    """The answer of `first` selects the picture that `second` asks about.

    `first` must be a choice among pictures (mosaic, patchfit); `second` takes one image and shows one visual (overlay
    count, say), which is made from every option and shown in its place. Knobs of `second` carry the prefix "then_"."""

    def __init__(self, first: ChoiceTask, second: Task) -> None:
        super().__init__(first)
        self.second = second
        self.name = f"chain-{first.name}-{second.name}"
        self.knobs = dict(first.knobs) | {
            f"then_{name}": knob for name, knob in second.knobs.items()
        }
        self.avoid = tuple(sorted({*first.avoid, *second.avoid}))
        self.wordings = (
            "{question} Then answer about the picture you chose: {then}",
            "Two steps. First: {question} Second, for that picture only: {then}",
        )
        self.hint = '{inner}, then a bar "|" and {after}'

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        own, then = self._parted(knobs)
        base = self.inner.propose(media, own, rng.child("first"))
        if isinstance(base, Reject):
            return base
        visuals, drafts = list(base.visuals), {}
        for place, visual in enumerate(base.visuals):
            option = visual.label.rstrip(":")
            if option not in base.truth["options"]:
                continue
            medium = Medium(f"{option}-{place}", "image", image=visual.pixels)
            found = self.second.propose([medium], then, rng.child("second", place))
            if isinstance(found, Reject):
                return found
            if len(found.visuals) != 1 or found.visuals[0].is_video:
                return Reject("several-visuals")
            visuals[place], drafts[option] = (
                Visual(found.visuals[0].pixels, label=visual.label),
                (place, found),
            )
        if len(drafts) != len(base.truth["options"]):
            return Reject("options-not-shown")
        place, after = drafts[base.truth["answer"]]
        return Draft(
            visuals=tuple(visuals),
            truth={"answer": None, "first": dict(base.truth), "second": dict(after.truth)},
            key=(base.key, after.key),
            fields={
                "question": _worded(self.inner, base),
                "then": _worded(self.second, after),
                "inner": self.inner.hint.format(**base.fields),
                "after": self.second.hint.format(**after.fields),
            },
            evidence=tuple(replace(entry, visual=place) for entry in after.evidence),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        first, bar, second = body.partition(BAR)
        if not bar:
            return ParseError("malformed", body[:40])
        values = (
            self.inner.read(first.strip(), truth["first"]),
            self.second.read(second.strip(), truth["second"]),
        )
        return next((value for value in values if isinstance(value, ParseError)), values)

    def verify(self, value: Any, truth: Truth) -> Score:
        one, two = (
            self.inner.verify(value[0], truth["first"]),
            self.second.verify(value[1], truth["second"]),
        )
        reward = (one.reward + two.reward) / 2 if one.correct else one.reward / 2
        return Score(
            reward, one.correct and two.correct, {"first": one.reward}, (one.key, two.key)
        )

    def format(self, truth: Truth) -> str:
        return (
            f"{self.inner.format(truth['first'])} {BAR} {self.second.format(truth['second'])}"
        )

    def guess(self, truth: Truth, rng: Generator) -> str:
        return f"{self.inner.guess(truth['first'], rng)} {BAR} {self.second.guess(truth['second'], rng)}"

    def chance(self, knobs: Knobs) -> float:
        own, then = self._parted(knobs)
        return self.inner.chance(own) * self.second.chance(then)

    def chance_reward(self, knobs: Knobs) -> float:
        own, then = self._parted(knobs)
        right = self.inner.chance(own)
        return right * (1.0 + self.second.chance_reward(then)) / 2

    def media_count(self, knobs: Knobs) -> int:
        return self.inner.media_count(self._parted(knobs)[0])

    def _parted(self, knobs: Knobs) -> tuple[Knobs, Knobs]:
        own = {name: value for name, value in knobs.items() if name in self.inner.knobs}
        then = {name[5:]: value for name, value in knobs.items() if name.startswith("then_")}
        return own, then


def _worded(task: Task, draft: Draft) -> str:
    """A wording of the task's question, chosen by the fields so that it does not depend on the truth."""
    fields: Mapping[str, Any] = draft.fields
    pick = int(generator("wording", sorted(map(str, fields))).integers(len(task.wordings)))
    return task.wordings[pick].format(**fields)
