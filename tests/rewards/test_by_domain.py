"""Rewards of several data sets: each as if alone, the gate of the form, measures, failures, and what is refused."""

from __future__ import annotations

import pytest
import torch

from mmrl.ground.domains import COLUMN, SCORE
from mmrl.losses.advantages import batch_normalized, group_normalized
from mmrl.rewards.by_domain import DomainRewards
from mmrl.rewards.pay import Rewards, RewardStopped, batch, in_process
from mmrl.training.clashes import refuse_clashes
from mmrl.training.domain_metrics import domain_metrics
from mmrl.training.evaluate import domain_pass_rates, summary
from mmrl.types import Prompt, Rollout


@in_process
def right(rollout):
    return float(rollout.text.endswith("right"))


@in_process
def formed(rollout):
    return float(rollout.text.startswith("<"))


@in_process
def overlap(rollout):
    return 0.25 if "near" in rollout.text else 0.75


@in_process
@batch
def lengths(rollouts):
    return [float(len(r.text)) for r in rollouts]


@in_process
def trl(completions, **columns):
    return [float(len(one[0]["content"])) for one in completions]


@in_process
def absent(rollout):
    return None


def answer(text, group, domain, **more):
    empty = torch.zeros(2, dtype=torch.long)
    prompt = Prompt(f"{domain}/{group}", [], extra={COLUMN: domain} if domain else {})
    return Rollout(prompt, group, empty, empty, empty, text, "eos", **more)


def rewards(**more):
    charts = Rewards(
        accuracy=(2.0, right), format=(1.0, formed), gate="format", correct="accuracy"
    )
    boxes = Rewards(iou=(2.0, overlap), format=(1.0, formed), correct="iou")
    return DomainRewards({"charts": charts, "boxes": boxes, **more}, {"boxes": "iou"})


def test_each_answer_is_paid_by_its_own_domain_in_the_order_it_came():
    answers = [
        answer("<right", 0, "charts"),
        answer("right", 0, "charts"),
        answer("<near", 1, "boxes"),
        answer("far", 1, "boxes"),
        answer("<wrong", 2, "charts"),
    ]
    paid = rewards()(answers)
    assert [r.text for r in paid] == [r.text for r in answers]
    # The second is right, but not in the asked-for form.
    assert [r.reward for r in paid] == [3.0, 0.0, 1.5, 1.5, 1.0]
    assert paid[1].parts == {"accuracy": 0.0, "format": 0.0} and paid[1].correct is False
    assert paid[2].parts == {"iou": 0.25, "format": 1.0, SCORE: 0.25}
    assert [r.correct for r in paid] == [True, False, False, True, False]


@pytest.mark.parametrize("function", [lengths, trl])
def test_every_calling_convention_sees_its_own_answers_alone(function):
    own = DomainRewards(
        {"a": Rewards(own=function), "b": Rewards(accuracy=right)}, {"a": "own"}
    )
    paid = own([answer("xx", 0, "a"), answer("right", 1, "b"), answer("xxxx", 2, "a")])
    assert [r.reward for r in paid] == [2.0, 1.0, 4.0]


def test_a_domain_that_nothing_pays_leaves_the_others():
    own = rewards(lost=Rewards(accuracy=absent))
    paid = own([answer("x", 0, "lost"), answer("<right", 1, "charts")])
    assert [(r.group, r.reward) for r in paid] == [(1, 3.0)]
    assert own.metrics()["reward_failures/answers_without_reward"] == 1.0
    with pytest.raises(RewardStopped, match="None of the 1 answers"):
        own([answer("x", 0, "lost")])


def test_a_gate_leaves_what_is_not_available_and_penalties():
    @in_process
    def penalty(rollout):
        return -0.5

    own = Rewards(format=formed, other=absent, right=right, penalty=penalty, gate="format")
    (paid,) = own([answer("right", 0, "")])
    assert paid.parts == {"format": 0.0, "other": None, "right": 0.0, "penalty": -0.5}
    with pytest.raises(ValueError, match=r"Rewards.gate.*\['right'\]"):
        Rewards(right=right, gate="format")


def test_all_parts_are_listed_under_their_domain():
    own = rewards()
    assert own.weights == {
        "charts/accuracy": 2.0, "charts/format": 1.0, "boxes/iou": 2.0, "boxes/format": 1.0
    }  # fmt: skip
    assert set(own.functions) == set(own.weights) and own.correct == ("accuracy", 0.5)
    unjudged = DomainRewards({"a": Rewards(x=right), "b": Rewards(x=right, correct="x")}, {})
    assert unjudged.correct is None


def test_what_is_of_no_domain_or_measured_by_nothing_is_refused():
    with pytest.raises(ValueError, match=r"of the domain 'other'.*\['boxes', 'charts'\]"):
        rewards()([answer("x", 0, "other")])
    with pytest.raises(ValueError, match="measured by 'accuracy'"):
        DomainRewards({"a": Rewards(iou=overlap)}, {"a": "accuracy"})
    with pytest.raises(ValueError, match="at least one domain"):
        DomainRewards({}, {})


def test_sums_of_different_scale_are_not_normalised_together():
    refuse_clashes([], [], [rewards()], estimator=group_normalized)
    with pytest.raises(ValueError, match=r"different scale.*group_normalized"):
        refuse_clashes([], [], [rewards()], estimator=batch_normalized)
    alike = DomainRewards({"a": Rewards(x=right), "b": Rewards(x=right)}, {})
    refuse_clashes([], [], [alike], estimator=batch_normalized)


def test_numbers_of_each_domain():
    answers = [
        answer("<right", 0, "charts"),
        answer("<wrong", 0, "charts"),
        answer("<near", 1, "boxes"),
        answer("said", 2, "labels", origin="label", reward=1.0),
    ]
    paid = [*rewards()(answers[:3]), answers[3]]
    found = domain_metrics(paid)
    assert found == {
        "domain/boxes/prompts": 1.0, "domain/boxes/reward": 1.5, "domain/boxes/iou": 0.25,
        "domain/boxes/format": 1.0, "domain/boxes/score": 0.25, "domain/charts/prompts": 1.0,
        "domain/charts/reward": 2.0, "domain/charts/accuracy": 0.5, "domain/charts/format": 1.0,
        "domain/labels/prompts": 1.0,
    }  # fmt: skip
    assert domain_metrics([answer("x", 0, "")]) == {}
    scores = summary(paid[:3])
    assert scores["charts/accuracy"] == 0.5 and scores["boxes/accuracy"] == 0.25
    assert scores["accuracy"] == pytest.approx(1.25 / 3) and scores["charts/answers"] == 2
    assert domain_pass_rates(paid[:2], [2]) == {"charts/pass@2": 1.0}
