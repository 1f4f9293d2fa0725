"""Tasks made of a task: noise, options, places, and the blind version for audits. `compose_several` has the others.

NoisyTask(A)      A with noisy pixels; nothing else changes
OptionsTask(A, n) A with n answers to choose from, the wrong ones drawn like guesses, the better half of a larger pool
LocatedTask(A)    A, and after a bar the box of the evidence in the first visual that has one; half the reward each
BlindTask(A)      A with grey pixels: what is above chance here comes from the words

A composed task is a `Task` like any other: it is named after its parts, keeps the contract and runs the same
conformance suite. Truths nest those of the parts. `correct` asks for every part; rewards are means of the parts'.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
    Score,
    Task,
    Truth,
)
from mmrl.data.pretext.craft.answer_forms import ChoiceTask, all_or_error, lettered, listed
from mmrl.data.pretext.craft.coordinates import RULE, is_box, scaled_box
from mmrl.data.pretext.craft.draws import some_of
from mmrl.data.pretext.marking.parsing import ParseError, numbers
from mmrl.data.pretext.marking.rewards import box_iou
from mmrl.data.pretext.surface import Surface
from mmrl.data.pretext.tasks.crop_location import box_key, random_box
from mmrl.ground.require import require
from mmrl.ground.seeds import Streams, philox

BAR = "|"


class WrappedTask(Task):
    """A task around another: passes everything on. Instances hold the inner task."""

    def __init__(self, inner: Task, prefix: str) -> None:
        """`prefix`: what the name begins with, before the inner task's."""
        self.inner = inner
        self.name = f"{prefix}-{inner.name}"
        self.kinds, self.version, self.knobs = inner.kinds, inner.version, inner.knobs
        self.wordings, self.hint = inner.wordings, inner.hint
        self.intended, self.avoid = inner.intended, inner.avoid

    def media_count(self, knobs: Knobs) -> int:
        return self.inner.media_count(knobs)

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
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

    def __init__(self, inner: Task, sigma: float = 12.0) -> None:
        super().__init__(inner, "noise")
        self.sigma = sigma

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        draft = self.inner.propose(media, knobs, rng)
        if isinstance(draft, Reject):
            return draft
        visuals = []
        for visual in draft.visuals:
            # A stream of its own: the inner task draws what it draws without the noise.
            noisy = self._noisy(visual.pixels, rng["noise"])
            visuals.append(replace(visual, pixels=noisy))
        return replace(draft, visuals=tuple(visuals))

    def _noisy(self, pixels: Array, rng: Generator) -> Array:
        grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(self.sigma)
        return np.clip(pixels + grain, 0, 255).astype(np.uint8)


class BlindTask(WrappedTask):
    """Grey pixels of the same size."""

    def __init__(self, inner: Task) -> None:
        super().__init__(inner, "blind")

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        draft = self.inner.propose(media, knobs, rng)
        if isinstance(draft, Reject):
            return draft
        visuals = []
        for visual in draft.visuals:
            visuals.append(replace(visual, pixels=np.full_like(visual.pixels, 128)))
        # Nothing can be seen, so there is no evidence.
        return replace(draft, visuals=tuple(visuals), evidence=())


class OptionsTask(ChoiceTask, WrappedTask):
    """A free answer turned into options."""

    POOL = 4
    """Wrong guesses per wrong option; those with the higher rewards are the harder ones and are taken."""

    def __init__(self, inner: Task, n: int = 4) -> None:
        super().__init__(inner, f"choice{n}")
        self.n = n
        require(self, n=(2 <= n <= 10, "2 to 10 options"))
        self.wordings = (
            "{question} Options: {options}.",
            "{question} Which of these is right? {options}.",
        )
        self.hint = "one letter"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        draft = self.inner.propose(media, knobs, rng)
        if isinstance(draft, Reject):
            return draft
        wrong = self._wrong(draft, rng["options"])
        if wrong is None:
            return Reject("too-few-answers")
        letters, place = lettered(self.n), int(rng["options"].integers(self.n))
        bodies = [*wrong[:place], self.inner.format(draft.truth), *wrong[place:]]
        options = [f"{letter}: {body}" for letter, body in zip(letters, bodies, strict=True)]
        fields = {"question": worded(self.inner, draft), "options": "; ".join(options)}
        return replace(
            draft,
            truth={"answer": letters[place], "options": letters},
            key=letters[place],
            fields=fields,
        )

    def _wrong(self, draft: Draft, rng: Generator) -> list[str] | None:
        """Wrong answers for all options but one; None if guessing does not give enough of them."""
        needed = self.n - 1
        found: dict[str, float] = {}
        for _ in range(16 * self.POOL * self.n):
            body = self.inner.guess(draft.truth, rng)
            score = self.inner.score(Surface().wrap(body), draft.truth)
            # The key too: an answer that counts as the same solution would be a second right option.
            if not score.correct and score.key != draft.key:
                found.setdefault(body, score.reward)
            if len(found) == self.POOL * needed:
                break
        if len(found) < needed:
            return None
        hardest = sorted(found, key=lambda body: -found[body])
        better_half = hardest[: max(needed, len(found) // 2)]
        return some_of(better_half, needed, rng)

    def option_count(self, knobs: Knobs) -> int:
        return self.n


class LocatedTask(WrappedTask):
    """Also ask where the evidence is."""

    def __init__(self, inner: Task, box_chance: float = 0.07) -> None:
        """`box_chance`: mean IoU of a random box with the inner task's evidence; `agrees_with_chance` measures it."""
        super().__init__(inner, "locate")
        self.box_chance = box_chance
        self.wordings = (
            "{question} Also give the box of the place in {where} that shows it; {rule}.",
            "{question} Then mark where in {where} this can be seen; {rule}.",
        )
        self.hint = '{inner}, then a bar "|" and the box as x0, y0, x1, y1'

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        draft = self.inner.propose(media, knobs, rng)
        if isinstance(draft, Reject):
            return draft
        shown = _single_box(draft)
        if shown is None:
            return Reject("no-single-box")
        visual = draft.visuals[shown.visual]
        height, width = visual.pixels.shape[:2]
        box = scaled_box(shown.boxes[0], width, height)
        # A thin box can be empty on the coarser grid of the answers.
        if not is_box(box):
            return Reject("no-single-box")
        label = visual.label.rstrip(":").lower()
        return replace(
            draft,
            truth={"answer": None, "inner": dict(draft.truth), "box": box},
            key=(draft.key, box_key(box)),
            fields={
                "question": worded(self.inner, draft),
                "inner": self.inner.hint.format(**draft.fields),
                "where": f"the {label}" if label else "the picture",
                "rule": RULE,
            },
            evidence=(shown,),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        # The last bar: answers of the inner task may hold bars themselves.
        first, bar, second = body.rpartition(BAR)
        box = numbers(second, 4) if bar else ParseError("malformed", body[:40])
        value = self.inner.read(first.strip(), truth["inner"])
        return all_or_error((value, box))

    def verify(self, value: Any, truth: Truth) -> Score:
        answer, box = value
        score = self.inner.verify(answer, truth["inner"])
        valid = is_box(box)
        iou = box_iou(tuple(box), tuple(truth["box"])) if valid else 0.0
        key = (score.key, box_key(box)) if valid else score.key
        return Score((score.reward + iou) / 2, score.correct and iou == 1.0, {"iou": iou}, key)

    def format(self, truth: Truth) -> str:
        return f"{self.inner.format(truth['inner'])} {BAR} {listed(truth['box'])}"

    def guess(self, truth: Truth, rng: Generator) -> str:
        answer = self.inner.guess(truth["inner"], rng)
        return f"{answer} {BAR} {listed(random_box(rng))}"

    def chance(self, knobs: Knobs) -> float:
        return 0.0

    def chance_reward(self, knobs: Knobs) -> float:
        return (self.inner.chance_reward(knobs) + self.box_chance) / 2


def worded(task: Task, draft: Draft) -> str:
    """A wording of the task's question, chosen by the fields so that it does not depend on the truth."""
    names = sorted(map(str, draft.fields))
    pick = int(philox("wording", names).integers(len(task.wordings)))
    return task.wordings[pick].format(**draft.fields)


def _single_box(draft: Draft) -> Evidence | None:
    """The first evidence that is one box in a picture."""
    for entry in draft.evidence:
        if len(entry.boxes) == 1 and not draft.visuals[entry.visual].is_video:
            return entry
    return None
