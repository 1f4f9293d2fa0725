"""Labels and expert answers next to the policy's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.model.packing import collate
from mmrl.rollouts.experts import WithExpert, WithLabel
from mmrl.rollouts.groups import DynamicSampling, by_group, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.rollout_metrics import rollout_metrics
from mmrl.types import Now, Prompt, Prompts, Role, Rollout, Sampling

NOW = Now(step=1, progress=0.0, seed=0)
WEIGHTS = {"accuracy": 2.0, "thinking": 1.0}


@dataclass(frozen=True)
class Rows(Prompts):
    """Numbered prompts; every third has no label, row 1 has one with a special token."""

    size: int | None = None

    def __getitem__(self, index):
        text = "<|im_end|>" if index == 1 else f"label {index}"
        return Prompt(
            str(index),
            [],
            answer=[{"b": 1, "a": index}],
            extra={} if index % 3 == 2 else {"target": text},
        )


class Parrot:
    def generate(self, prompts, sampling, now):
        roles = torch.zeros(2, dtype=torch.uint8)
        return [
            Rollout(
                p,
                i,
                torch.arange(int(p.id) + 1),
                torch.tensor([int(p.id), g]),
                roles,
                f"own {g}",
                "eos",
            )
            for i, p in enumerate(prompts)
            for g in range(sampling.group_size)
        ]


def encode(text):
    if "<|" in text:
        raise BadRow("special token")
    return torch.tensor([7] * len(text.split()) + [9])


def pay(rollouts):
    """Labels are right but do not think; odd own answers are right."""
    out = []
    for r in rollouts:
        right = float("own" not in r.text or r.tokens[1].item() % 2)
        out.append(
            replace(r, reward=2 * right + 0.25, parts={"accuracy": right, "thinking": 0.25})
        )
    return out


def run(rule, per_step=3):
    supply = Supply(Rows(), per_step, seed=0)
    return rule(Parrot(), pay, supply, Sampling(2, temperature=0.7), NOW), supply


def test_labels_join_their_groups():
    rollouts, supply = run(WithLabel(encode))
    groups = by_group(rollouts)
    assert [[r.origin for r in g] for g in groups] == [
        ["policy"] * 2 + ["label"],
        ["policy"] * 2,
        ["policy"] * 2,
    ]
    label = groups[0][-1]
    assert label.text == "label 0" and label.tokens.tolist() == [7, 7, 9] and label.logp is None
    assert label.roles.tolist() == [int(Role.POLICY)] * 3 and label.prompt_ids.tolist() == [0]
    assert (label.temperature, label.reward, label.branch) == (0.7, 2.25, "raw")
    assert supply.counters["label/missing"] == 2, "row 1 has a special token, row 2 no label"


def test_thinking_parts_of_a_label_are_not_paid():
    (label,) = [
        r for r in run(WithLabel(encode, WEIGHTS, ("thinking",)))[0] if r.origin == "label"
    ]
    assert label.reward == 2.0 and label.parts["thinking"] == 0.25
    with pytest.raises(
        ValueError, match=r"thinking names \['form'\].*\['accuracy', 'thinking'\]"
    ):
        WithLabel(encode, WEIGHTS, ("form",))


def test_labels_are_written_as_the_model_writes():
    rule = WithLabel(encode, column="", layout="<answer>{}</answer>", keys=("a", "b"))
    assert rule.text(Rows()[4]) == '<answer>[{"a": 4, "b": 1}]</answer>'
    assert (
        rule.text(replace(Rows()[4], answer='[{"b":1,  "a":4}]'))
        == '<answer>[{"a": 4, "b": 1}]</answer>'
    )
    for broken in ("[{", "red", "[" * 50_000):
        assert rule.text(replace(Rows()[4], answer=broken)) is None
    assert WithLabel(encode, column="").text(Prompt("x", [], answer="red")) == "red"
    assert (rule.missing(Prompt("x", [])), WithLabel(encode).missing(Rows()[2])) == (
        "answer",
        "target",
    )
    with pytest.raises(ValueError, match="exactly one for the label"):
        WithLabel(encode, layout="no place")


def test_filters_never_see_labels():
    def even(rollouts):
        return [
            replace(r, reward=1.0, parts={"accuracy": float("own" in r.text)}) for r in rollouts
        ]

    with pytest.raises(ValueError, match="kept no group"):
        WithLabel(encode, inner=DynamicSampling(rounds=1))(
            Parrot(), even, Supply(Rows(), 3, seed=0), Sampling(2), NOW
        )


def test_experts_are_scored_and_never_trained():
    rollouts, supply = run(WithExpert(encode, column="target"))
    batch = collate(rollouts)
    expert = [i for i, r in enumerate(rollouts) if r.origin == "expert"]
    assert (
        expert == [2]
        and not batch.mask[2].any()
        and batch.mask[[0, 1, 3, 4, 5, 6]].any(1).all()
    )
    assert batch.roles[2].tolist() == [int(Role.EXPERT)] * 3 and "sampler" not in batch.scores
    assert supply.counters["expert/missing"] == 2


def test_experts_may_be_drawn_and_must_be_right():
    assert not [
        r for r in run(WithExpert(encode, "target", probability=0.0))[0] if r.origin == "expert"
    ]
    several = run(WithExpert(encode, "target", probability=0.5), per_step=60)[0]
    count = sum(r.origin == "expert" for r in several)
    assert 8 <= count <= 32 and count == sum(
        r.origin == "expert"
        for r in run(WithExpert(encode, "target", probability=0.5), per_step=60)[0]
    )
    wrong, supply = run(WithExpert(encode, "target", right_above=2.25))
    assert (
        not [r for r in wrong if r.origin == "expert"] and supply.counters["expert/wrong"] == 1
    )
    assert [
        r for r in run(WithExpert(encode, "target", right_above=2.0))[0] if r.origin == "expert"
    ]
    with pytest.raises(ValueError, match=r"probability is 1\.5"):
        WithExpert(encode, probability=1.5)


def test_pass_rates_in_the_log_are_the_policys_own():
    rollouts, _ = run(WithLabel(encode))
    own = [r for r in rollouts if r.origin == "policy"]
    found, plain = (
        rollout_metrics(rollouts, collate(rollouts)),
        rollout_metrics(own, collate(own)),
    )
    assert {k: v for k, v in found.items() if not k.startswith("label/")} == plain
    assert (found["label/count"], found["label/reward"], found["label/length"]) == (
        1.0,
        2.25,
        3.0,
    )
    assert group_rollout is WithLabel(encode).inner
