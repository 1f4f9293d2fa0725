"""AMPO's guidance (arXiv 2510.02227): teachers replace answers of groups in which none is right.

`AMPORollout` looks at each group after its inner rollout function has chosen it. If no answer is right, up to
`AMPO.most` of them, drawn at random, are replaced by right answers of the row's teachers; at least one own answer
stays. Other groups, and groups whose teachers wrote nothing right, are left alone. Formulas: `objectives/ampo.py`.

`Comprehension` asks the policy which teachers it can follow: their text is cut before its last statement of the answer,
the row's own answer is put behind, and its tokens are scored as a suffix, at temperature 1, in passes of a bounded
number of tokens. A text that states no answer is taken whole, without its end token. An answer that is no text (boxes,
spans) is written as JSON.

Of the counts, `teachers/asked` are groups in which none is right and `teachers/answers` answers that gave way. These
are in no mean of the log, where `reward/…` is a little higher for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmrl.ground.faults import BadRow
from mmrl.ground.seeds import generator
from mmrl.model.branches import Views
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import scored
from mmrl.model.scoring import ScoreOutputs
from mmrl.objectives.ampo import AMPO, Choice, comprehension
from mmrl.objectives.base import AnswerKind
from mmrl.rollouts.teachers import Teachers
from mmrl.types import Now, Rollout

__all__ = ["AMPORollout", "Comprehension"]

NOTHING = torch.zeros(0, dtype=torch.long)
SUFFIX = ScoreOutputs(suffix=True)
Score = Callable[[Sequence[Rollout], Now], list[float]]
"""Teachers' answers to one prompt -> how well the policy follows each."""


@dataclass(frozen=True)
class AMPORollout(Teachers):
    """Teachers where the policy fails."""

    ampo: AMPO = field(default_factory=AMPO)
    score: Score | None = None
    """Which teachers the policy follows best; needed unless `AMPO.choice` is "random"."""

    needs_correct: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score is None and self.ampo.choice != "random":
            raise ValueError(
                f"AMPO.choice is {self.ampo.choice!r}, which asks the policy, but AMPORollout has no score; give "
                "score=Comprehension(policy, read, ampo.choice), or choice='random'."
            )

    def brings(self) -> tuple[AnswerKind, ...]:
        """Teachers' answers, unless it is off."""
        return super().brings() if self.ampo.weight > 0 else ()

    def traits(self) -> tuple[str, ...]:
        """Its signal comes into groups without a right answer."""
        on = self.ampo.weight > 0
        return (*super().traits(), "teaches all-wrong groups") if on else ()

    def wants(self, group: Sequence[Rollout]) -> bool:
        """Is no answer right, as far as is known of any?"""
        known = [one.correct for one in group if one.correct is not None]
        return self.ampo.weight > 0 and bool(known) and not any(known)

    def joined(
        self, group: Sequence[Rollout], answers: Sequence[Rollout], now: Now
    ) -> list[Rollout]:
        """The group, in which the teachers that the policy follows best replace as many answers."""
        chosen = self._best([one for one in answers if one.correct], group, now)
        rng = generator(now.seed, now.step, group[0].prompt.id, "ampo")
        kept = torch.randperm(len(group), generator=rng)[len(chosen) :]
        return [*(group[n] for n in sorted(kept.tolist())), *chosen]

    def _best(
        self, answers: Sequence[Rollout], group: Sequence[Rollout], now: Now
    ) -> list[Rollout]:
        room = min(self.ampo.most, len(group) - 1)
        if len(answers) <= room or not room:
            return list(answers[:room])
        if self.score is None or self.ampo.choice == "random":
            rng = generator(now.seed, now.step, group[0].prompt.id, "teachers")
            order = torch.randperm(len(answers), generator=rng).tolist()
        else:
            scores = self.score(answers, now)
            # The sort is stable: of equal ones the first in the row.
            order = sorted(range(len(answers)), key=lambda n: -scores[n])
        return [answers[n] for n in sorted(order[:room])]


@dataclass(frozen=True)
class Comprehension:
    """How likely the policy finds the row's answer behind the reasoning of each teacher."""

    policy: Policy
    read: Callable[[str], str | None]
    """Text -> the answer that it states; None if it states none."""
    choice: Choice = "probability"
    """How the answer's tokens make one number (`comprehension`)."""
    tokens: int = 8192
    """Tokens per packed pass, `Run.tokens_per_pass`."""

    @torch.no_grad()
    def __call__(self, answers: Sequence[Rollout], now: Now) -> list[float]:
        reasons = [self._reasoning(one) for one in answers]
        batch = collate(reasons)
        views = Views(self.policy, reasons, {}, now)
        found = torch.zeros(len(reasons), dtype=torch.float64)
        for rows in self.policy.prompts.parts(batch, self.tokens):
            groups = views.groups("raw", rows.tolist(), self._truth)
            shape = (len(rows), batch.tokens.shape[1])
            scores = scored(self.policy, {"raw": groups}, {"raw": SUFFIX}, shape)["raw"]
            assert scores.suffix is not None and scores.suffix_mask is not None, "as asked"
            each = comprehension(scores.suffix, scores.suffix_mask, self.choice)
            found[rows] = each.to(found)
            self.policy.prompts.end_part()
        return found.tolist()

    def _divided(self, text: str) -> tuple[str, str]:
        """A text before it states its answer, and the white space between the two."""
        stated = self.read(text)
        whole = text[: text.rfind(stated)] if stated and stated in text else text
        before = whole.rstrip()
        return before, whole[len(before) :]

    def _reasoning(self, answer: Rollout) -> Rollout:
        """The teacher's answer before it states its answer."""
        tokens = self._ids(self._divided(answer.text)[0])
        roles = torch.zeros(len(tokens), dtype=torch.uint8)
        return replace(answer, tokens=tokens, roles=roles, logp=None, path=(), media=())

    def _truth(self, answer: Rollout) -> Tensor:
        """The tokens of the row's own answer; none if it has none that could be written."""
        truth = answer.prompt.answer
        if truth is None:
            return NOTHING
        if not isinstance(truth, str):
            truth = json.dumps(truth, ensure_ascii=False, default=str)
        try:
            # With the teacher's white space: tokens of words begin with it.
            return self._ids(self._divided(answer.text)[1] + truth)
        except BadRow:  # special tokens inside would be read as structure
            return NOTHING

    def _ids(self, text: str) -> Tensor:
        """Ids long [T] of a text, without an end."""
        return self.policy.processing.encode_answer(text)[:-1]
