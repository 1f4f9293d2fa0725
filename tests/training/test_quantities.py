"""What objectives ask for besides log-probs: planned, scored part by part, stored, live and gathered over processes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from mmrl.grpo import GRPO
from mmrl.model.packing import collate
from mmrl.model.ranks import Ranks
from mmrl.model.scoring import ScoreOutputs
from mmrl.objectives.base import Objective, ScoreRequest
from mmrl.training.score_plan import plan_scores
from mmrl.training.whole_batch import WholeBatch
from mmrl.types import Prompt, Role, Rollout, Scores, Shaped
from tests.training.test_learner import Reads, learned, learner, rollouts

__all__ = ["rollouts"]  # a fixture
SUFFIX = torch.tensor([70, 71, 72])
SLOTS = (5, 77)


def behind(rollout: Rollout) -> torch.Tensor:
    """As many tokens as the answer's reward says, so that rows differ."""
    return SUFFIX[: round(4 * (rollout.reward or 0)) % 4]


EVERYTHING = ScoreRequest(
    "raw",
    "shape",
    vocabulary_mean=True,
    top=2,
    slot=SLOTS,
    suffix=behind,
    words=True,
    states=True,
)


@dataclass(frozen=True)
class Looks(Objective):
    """Writes down what it is given, and learns from what has a gradient."""

    seen: list[Scores] = field(default_factory=list)
    live: list[Scores] = field(default_factory=list)

    def score_requests(self):
        return EVERYTHING, replace(EVERYTHING, stage="terms", suffix=None, states=False)

    def shape(self, advantage, batch, now, memory=None):
        self.seen.append(batch.scores["raw"])
        return Shaped(advantage)

    def terms(self, live, batch, now):
        raw = live["raw"]
        self.live.append(raw)
        return {"looks": raw.vocabulary_mean + raw.slot.sum(1, keepdim=True)}


def test_every_quantity_comes_whole_however_the_batch_is_cut(tiny_folder, rollouts):
    boxes = {}
    for tokens in (100_000, 1):
        looks = Looks()
        box = learner(tiny_folder, objectives=[looks], tokens=tokens)
        boxes[tokens] = (looks, learned(box, rollouts)[1][0])
    looks, gradient = boxes[100_000]
    first = looks.seen[0]
    assert {"slot", "words", "suffix", "states", "top_ids"} <= set(first.present())
    assert first.slot.shape == (len(rollouts), len(SLOTS))
    assert first.suffix_mask.sum(1).tolist() == [len(behind(r)) for r in rollouts]
    assert len({int(n) for n in first.words_mask.sum(1)}) > 1, "prompts of different lengths"
    live = looks.live[0]
    assert live.slot.requires_grad and live.suffix is None
    torch.testing.assert_close(live.vocabulary_mean.detach(), first.vocabulary_mean)
    for tokens in (1,):
        other, sliced = boxes[tokens]
        for name, right in first.present().items():
            found = getattr(other.seen[0], name)
            torch.testing.assert_close(found, right, rtol=0, atol=1e-7, msg=name)
        for name, right in gradient.items():
            gap = (sliced[name] - right).norm() / right.norm().clamp_min(1e-6)
            assert gap <= 1e-5, f"{name} at {tokens}: {gap}"


def test_what_is_stored_for_the_ratio_has_its_mean_too():
    wanted = [Reads((ScoreRequest("raw", vocabulary_mean=True),))]
    alone = plan_scores(GRPO(), wanted, {}, 1)
    assert not alone.stored and alone.live["raw"].vocabulary_mean
    several = plan_scores(GRPO(), wanted, {}, 2)
    assert several.stored == {"raw": ScoreOutputs(vocabulary_mean=True)}


def test_requests_of_one_view_are_merged():
    requests = [
        [ScoreRequest("raw", top=2, slot=SLOTS)],
        [ScoreRequest("raw", top=5, words=True, suffix=behind)],
        [ScoreRequest("raw", states=True, suffix=behind, slot=SLOTS)],
    ]
    plan = plan_scores(GRPO(), [Reads(tuple(r)) for r in requests], {}, 1)
    assert plan.live["raw"] == ScoreOutputs(
        grad=True, top=5, slot=SLOTS, suffix=True, words=True, states=True
    )
    assert plan.suffixes == {"raw": behind}
    assert plan.behind([SimpleNamespace(reward=reward) for reward in (0, 0.5, 0.25)]) == [
        0,
        2,
        1,
    ]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (ScoreRequest("raw", slot=(8,)), r"tokens \(5, 77\) and \(8,\)"),
        (ScoreRequest("raw", suffix=lambda _: SUFFIX), "Reads asks for another suffix"),
    ],
)
def test_what_cannot_be_merged_is_refused(second, words):
    first = Reads((ScoreRequest("raw", slot=SLOTS, suffix=behind),))
    with pytest.raises(ValueError, match=words):
        plan_scores(GRPO(), [first, Reads((second,))], {}, 1)


def test_a_negative_number_of_likely_tokens_is_refused():
    with pytest.raises(ValueError, match=r"top is -1"):
        ScoreRequest("raw", top=-1)


def test_a_slot_for_pictures_is_refused_before_the_first_step(tiny_folder):
    banned = learner(tiny_folder).policy.processing.banned_ids[0]
    with pytest.raises(ValueError, match="stands for pictures"):
        learner(tiny_folder, objectives=[Reads((ScoreRequest("raw", slot=(banned,)),))])


class Told(Ranks):
    """The first of two processes; what the other one says is known."""

    several = True
    rank, world = 0, 2
    others: object = None

    def __init__(self) -> None:
        pass

    def gathered(self, mine):
        return [mine, self.others]


def test_processes_put_together_what_is_of_different_width():
    def answer(number):
        roles = torch.full((2,), int(Role.POLICY), dtype=torch.uint8)
        prompt = Prompt(f"p{number}", ())
        return Rollout(
            prompt, number, torch.arange(2), torch.arange(2), roles, "", "eos", reward=1.0
        )

    ranks = Told()
    every = collate([answer(0), answer(1)])
    whole = WholeBatch(ranks, every.rollouts, torch.tensor([0]))

    def scores(width, value):
        on = torch.ones(1, width, dtype=torch.bool)
        full = torch.full((1, width), value)
        return Scores(full[:, :1].expand(1, 2), words=full, words_mask=on, slot=full[:, :1])

    ranks.others = ([1], {"raw": scores(3, -2.0).present()})
    own = replace(whole.own(every, every.rollouts[:1]), scores={"raw": scores(1, -1.0)})
    seen = []
    whole.shaped(own, every, lambda batch: seen.append(batch.scores["raw"]) or batch, True)
    assert seen[0].words.tolist() == [[-1.0, 0.0, 0.0], [-2.0] * 3]
    assert seen[0].words_mask.tolist() == [[True, False, False], [True] * 3]
    assert seen[0].slot.tolist() == [[-1.0], [-2.0]]
