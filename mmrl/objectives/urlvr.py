"""URLVR (arXiv 2603.08660): rewards without labels, from what the policy itself is sure of.

Of an answer o of T tokens, with the probabilities π_t, entropies H_t and mean log-probs over the vocabulary M_t of the
policy that sampled it:

    majority        1 if it states what most answers of its group state, else 0
    share           the share of answers of its group that state the same
    certainty       mean_t(-M_t), which is KL(uniform‖π_t) up to the constant log V
    entropy         mean_t(-H_t)
    trajectory      mean_t log π_t(o_t)
    probability     Π_t π_t(o_t)
    disparity       mean_t(p_1 - p_2), the two most likely tokens

It takes the reward's place, and the advantage is the group's z-score of it. What verifiers say is only looked at: of
each group the answer of the largest intrinsic reward (the first of several) is right or not; the share of groups where
it is, is logged as `urlvr/agreement`. All of these rewards sharpen what the policy already says: it rises at first
where that is mostly right, and collapses later. The first of `patience` steps in a row with an agreement below `least`
is the model-collapse step; `mmrl.training.collapse` ends a run there.

Degenerate groups: one answer, or equal intrinsic rewards, have an advantage of 0. An answer without a trained token has
an intrinsic reward of 0; one that states nothing does not vote and earns nothing. At ties the first stated wins.

Departures
1. No official code of the study was available; the formulas are the paper's as a review prints them.
2. The paper's clusters are of meanings; `share` clusters answers that state the same.
3. certainty leaves out log V, which a group's mean takes away.
4. Its reward accuracy for signals that are no vote is not printed; ours is the agreement above.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.advantages import group_normalized
from mmrl.losses.reduce import keep
from mmrl.objectives.base import Objective, ScoreRequest, on_tokens
from mmrl.types import Batch, Now, Rollout, Scores, Shaped

__all__ = ["URLVR", "Signal", "agreement", "of_scores", "of_votes"]

Signal = Literal[
    "majority", "share", "certainty", "entropy", "trajectory", "probability", "disparity"
]
VOTES = ("majority", "share")


def whole_text(rollout: Rollout) -> str:
    """What an answer states, where nobody says how to read it."""
    return rollout.text


@dataclass(frozen=True)
class Statement:
    """What an answer states as a style reads it, without case and white space."""

    read: Callable[[str], str | None]

    def __call__(self, rollout: Rollout) -> str:
        return " ".join((self.read(rollout.text) or "").split()).casefold()


@dataclass(frozen=True)
class URLVR(Objective):
    """The intrinsic reward in the place of the verifier's."""

    signal: Signal = "majority"
    """majority, share, certainty, entropy, trajectory, probability or disparity."""
    solution: Callable[[Rollout], Hashable] = whole_text
    """What an answer states, or nothing; read by votes."""

    off: ClassVar[None] = None

    def __post_init__(self) -> None:
        known = get_args(Signal)
        require(self, signal=(self.signal in known, " or ".join(map(repr, known))))

    def reading(self, read: Callable[[str], str | None]) -> URLVR:
        """The same with statements as a style reads them (`Style.read`), case and white space aside."""
        return replace(self, solution=Statement(read))

    def owns(self) -> tuple[Slot, ...]:
        """The advantage: rewards of verifiers do not reach it."""
        return ("estimator",)

    def traits(self) -> tuple[str, ...]:
        """It pays for being sure; votes take answers for independent."""
        votes = ("assumes independent rows",) if self.signal in VOTES else ()
        return ("rewards certainty", *votes)

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """What the signal is made of."""
        signal = self.signal
        if signal in VOTES:
            return ()
        return (
            ScoreRequest(
                "raw",
                "shape",
                entropy=signal == "entropy",
                vocabulary_mean=signal == "certainty",
                top=2 if signal == "disparity" else 0,
            ),
        )

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The z-score of the intrinsic reward. Logs it, and how often the best answer by it is right."""
        if self.signal in VOTES:
            stated = [self.solution(one) for one in batch.rollouts]
            own = of_votes(stated, batch.group.tolist(), self.signal == "share")
        else:
            own = of_scores(batch.scores["raw"], batch.mask, self.signal)
        own = own.to(advantage)
        scored = group_normalized(own, batch.group, batch.mask)
        logged: dict[str, float | Tensor] = {"intrinsic": float(own.mean())}
        if batch.correct is not None:
            logged["agreement"] = agreement(own, batch.correct, batch.group)
        return Shaped(keep(on_tokens(scored, advantage), batch.mask), logged)


def of_scores(scores: Scores, mask: Tensor, signal: Signal) -> Tensor:
    """The intrinsic reward of each answer, [B]; 0 for one without a token in `mask` bool [B, T].

    Raises ValueError for a signal that is a vote.
    """
    count = mask.sum(-1)
    if signal == "probability":
        together = keep(scores.logp, mask).sum(-1).exp()
        return torch.where(count > 0, together, 0)
    mean = keep(_each_token(scores, signal), mask).sum(-1) / count.clamp(min=1)
    return torch.where(count > 0, mean, 0)


def _each_token(scores: Scores, signal: Signal) -> Tensor:
    """What the answer's reward is the mean of, [B, T]."""
    if signal == "trajectory":
        return scores.logp
    if signal == "entropy" and scores.entropy is not None:
        return -scores.entropy
    if signal == "certainty" and scores.vocabulary_mean is not None:
        return -scores.vocabulary_mean
    if signal == "disparity" and scores.top_logp is not None:
        likely = scores.top_logp.exp()
        return likely[..., 0] - likely[..., 1]
    raise ValueError(
        f"The signal {signal!r} cannot be made from scores that lack what it reads."
    )


def of_votes(stated: Sequence[Hashable], group: Sequence[int], share: bool) -> Tensor:
    """Each answer's reward by what its group states, float64 [B].

    `stated`: what each answer states; "" or None for nothing. `share`: pay the share of its group that states the same,
    instead of 1 for the most frequent statement. At ties the one that was stated first wins.
    """
    votes: dict[int, Counter[Hashable]] = {}
    sizes = Counter(group)
    for text, number in zip(stated, group, strict=True):
        # A counter keeps the order of appearance, and `most_common` too among equals.
        votes.setdefault(number, Counter()).update([text] if text else [])
    own: list[float] = []
    for text, number in zip(stated, group, strict=True):
        cast = votes[number]
        if not text:
            own.append(0.0)
        elif share:
            own.append(cast[text] / sizes[number])
        else:
            own.append(float(text == cast.most_common(1)[0][0]))
    return torch.tensor(own, dtype=torch.float64)


def agreement(intrinsic: Tensor, correct: Tensor, group: Tensor) -> float:
    """Share of groups whose answer of the largest intrinsic reward (the first of several) is right; [B] each."""
    best: dict[int, tuple[float, bool]] = {}
    rows = zip(group.tolist(), intrinsic.tolist(), correct.tolist(), strict=True)
    for number, value, right in rows:
        if number not in best or value > best[number][0]:
            best[number] = (value, right)
    return sum(right for _, right in best.values()) / max(len(best), 1)
