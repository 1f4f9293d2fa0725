"""Answers of several teachers: their forms, names and log-probs, who joins, what is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.model.packing import collate
from mmrl.rollouts.dars import DARSRollout
from mmrl.rollouts.ead import EADRollout
from mmrl.rollouts.experts import WithExpert, WithLabel
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.teachers import Told, WithTeachers, told
from mmrl.types import Now, Prompt, Prompts, Role, Rollout, Sampling

NOW = Now(step=1, progress=0.0, seed=0)
COLUMNS = [
    {"a": "x y", "b": "wrong z", "c": "<|im_end|>"},
    [
        {"name": "a", "text": "x", "logp": [-0.5, -0.25]},
        {"name": "b", "text": "y", "logp": [-1]},
    ],
    ["x", "wrong", 7, {"name": "none"}],
    None,
]


class Rows(Prompts):
    size = 4

    def __getitem__(self, index):
        extra = {} if COLUMNS[index] is None else {"solutions": COLUMNS[index]}
        return Prompt(str(index), [], extra=extra)


class Parrot:
    def generate(self, prompts, sampling, now):
        tokens, roles = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.uint8)
        one = [
            Rollout(p, i, torch.arange(3), tokens, roles, "own", "eos")
            for i, p in enumerate(prompts)
        ]
        return [r for r in one for _ in range(sampling.group_size)]


def encode(text):
    if "<|" in text:
        raise BadRow("special token")
    return torch.tensor([7] * len(text.split()) + [9])


def pay(rollouts):
    return [replace(r, reward=float("wrong" not in r.text)) for r in rollouts]


def run(rule, engine=None):
    supply = Supply(Rows(), 4, seed=0)
    return rule(engine or Parrot(), pay, supply, Sampling(2, 0.7), NOW), supply.counters


def experts(rollouts):
    found = {}
    for r in rollouts:
        if r.origin == "expert":
            found.setdefault(r.prompt.id, []).append(r)
    return found


def test_all_teachers_join_with_their_names_and_log_probs():
    rollouts, counters = run(WithTeachers(encode, most=0))
    found = experts(rollouts)
    names = {key: [r.teacher for r in group] for key, group in found.items()}
    assert names == {"0": ["a", "b"], "1": ["a"], "2": ["0", "1"]}
    (stored,) = found["1"]
    assert stored.logp.tolist() == [-0.5, -0.25] and found["0"][0].logp is None
    # A special token, and one log-prob for two tokens.
    assert counters["teachers/unusable"] == 2
    assert counters["teachers/answers"] == 5 and counters["teachers/missing"] == 1
    assert [r.group for r in rollouts] == sorted(r.group for r in rollouts)
    for one in (r for group in found.values() for r in group):
        assert one.roles.tolist() == [int(Role.EXPERT)] * len(one.tokens)
        assert (one.temperature, one.stop) == (0.7, "eos")
        own = [r for r in rollouts if r.group == one.group and r.origin == "policy"]
        assert len(own) == 2 and torch.equal(own[0].prompt_ids, one.prompt_ids)
    # Scored and paid, but in no mask.
    batch = collate(rollouts)
    given = torch.tensor([r.origin == "expert" for r in rollouts])
    assert not batch.mask[given].any() and batch.mask[~given][:, :2].all()
    assert (batch.roles[given] == int(Role.EXPERT)).any(1).all()


def test_as_many_as_shall_join_and_only_right_ones():
    one, _ = run(WithTeachers(encode, most=1))
    again, _ = run(WithTeachers(encode, most=1))
    assert all(len(group) == 1 for group in experts(one).values()) and len(experts(one)) == 3
    names = [r.teacher for r in one if r.origin == "expert"]
    assert names == [r.teacher for r in again if r.origin == "expert"]
    right, counters = run(WithTeachers(encode, most=0, right_above=0.5))
    assert all(r.reward == 1.0 for group in experts(right).values() for r in group)
    assert counters["teachers/answers"] == 3
    with pytest.raises(ValueError, match="most is -1"):
        WithTeachers(encode, most=-1)


def test_what_a_column_may_hold():
    assert told({"a": "x"}) == [Told("a", "x")] and told("x") == [Told("0", "x")]
    assert told([{"text": "x", "logp": [-1, -2]}]) == [Told("0", "x", (-1.0, -2.0))]
    for broken in ("abc", [0.5], [float("nan")], [float("-inf")], 3):
        assert told([{"text": "x", "logp": broken}]) == [Told("0", "x", ())]
    assert told(None) == told([]) == told({}) == told([3, {"name": "a"}]) == []
    rule = WithTeachers(encode)
    assert [rule.missing(Rows()[n]) for n in range(4)] == ["", "", "", "solutions"]


@pytest.mark.parametrize("outer", [WithTeachers, WithExpert, WithLabel])
def test_given_answers_outside_of_annealing_are_refused(outer):
    name = outer.__name__
    with pytest.raises(ValueError, match=rf"{name} adds answers .* EADRollout.*outermost"):
        outer(encode, inner=DARSRollout(EADRollout()))
    assert EADRollout(inner=outer(encode)).owns() == ("temperature",)
