"""SEELE's rounds: hints of whole tokens, fitted round by round, remembered from visit to visit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from mmrl.objectives.seele import SEELE
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.seele import SEELERollout, hint_of
from mmrl.rollouts.stages import OneStep
from mmrl.types import Now, Prompt, Prompts, Role, Rollout, Sampling

NOW = Now(1, 0.1, seed=3)
EIGHT = Sampling(8, 1.0, max_tokens=60)


class Letters:
    """One token per byte."""

    def encode_answer(self, text):
        return torch.tensor([*text.encode(), 0])

    def decode(self, ids):
        return bytes(int(n) for n in ids).decode(errors="replace")


class Rows(Prompts):
    size = 2

    def __getitem__(self, index):
        return Prompt(
            str(index), [], extra={"solution": "abcdefghijklmnopqrst"} if index else {}
        )


@dataclass
class Speaker:
    """Writes one token behind what it is given."""

    def generate(self, prompts, sampling, now, *, counts=None, first=None, prefixes=None):
        counts = counts or [sampling.group_size] * len(prompts)
        found = []
        for group, prompt in enumerate(prompts):
            hint = prefixes[group] if prefixes else torch.zeros(0, dtype=torch.long)
            for n in range(counts[group]):
                tokens = torch.cat([hint, torch.tensor([first[group] + n])])
                roles = torch.zeros(len(tokens), dtype=torch.uint8)
                roles[: len(hint)] = int(Role.HINT)
                found.append(Rollout(prompt, group, hint, tokens, roles, "", "eos"))
        return found


def given(rollout):
    return int((rollout.roles == Role.HINT).sum())


def paying(least):
    """Right is whoever was given so many tokens."""

    def pay(rollouts):
        right = [given(r) >= least for r in rollouts]
        return [
            replace(r, reward=float(x), correct=x) for r, x in zip(rollouts, right, strict=True)
        ]

    return pay


def step(rule, supply, least=14, sampling=EIGHT):
    supply.new_step()
    found = rule(OneStep(Speaker()), paying(least), supply, sampling, NOW)
    return {name: [r for r in found if r.prompt.id == name] for name in "01"}


def rule(**numbers):
    return SEELERollout(seele=SEELE(**numbers), processing=Letters())


def test_hints_move_towards_what_half_can_do_and_are_remembered():
    rounds, supply = rule(), Supply(Rows(), 2, seed=0)
    first = step(rounds, supply)
    lengths = [given(r) for r in first["1"]]
    assert lengths[:2] == [10, 10] and min(lengths[2:]) > 10, "none was right: longer hints"
    assert [given(r) for r in first["0"]] == [0] * 8 and supply.counters["seele/missing"] == 1
    assert [int(r.tokens[-1]) for r in first["0"]] == list(range(8)), "draws as without rounds"
    memory = supply.memory(rounds)
    rate = memory.of_prompts["1"]
    assert rate > 0.5 and set(memory.of_prompts) == {"1"}
    other, again = rule(), Supply(Rows(), 2, seed=0)
    again.memory(other).load(memory.state())
    here, there = step(rounds, supply), step(other, again)
    assert [given(r) for r in here["1"]] == [given(r) for r in there["1"]]
    assert given(here["1"][0]) == round(rate * 20)


def test_without_hints_it_is_the_plain_rollout():
    none, plain = (step(r, Supply(Rows(), 2, seed=0)) for r in (rule(most=0.0), group_of))
    assert [[r.tokens.tolist() for r in none[n]] for n in "01"] == [
        [r.tokens.tolist() for r in plain[n]] for n in "01"
    ]


def group_of(engine, pay, supply, sampling, now):
    return group_rollout(engine, pay, supply, sampling, now)


def test_a_hint_ends_with_a_whole_character_and_leaves_half_of_the_room():
    ids = torch.tensor([*"aé€b".encode()])  # of 1, 2, 3 and 1 bytes
    cuts = [len(hint_of(ids, n / 7, 7, Letters())) for n in range(8)]
    assert cuts == [0, 1, 1, 3, 3, 3, 6, 7]
    supply = Supply(Rows(), 2, seed=0)
    found = step(rule(), supply, sampling=replace(EIGHT, max_tokens=12))
    assert max(given(r) for r in found["1"]) == 6 and supply.counters["seele/cut_hints"] == 4


def test_a_round_of_one_answer_is_refused():
    with pytest.raises(ValueError, match=r"Raise --sampling.group-size to 8, or lower.*to 2"):
        step(rule(), Supply(Rows(), 2, seed=0), sampling=replace(EIGHT, group_size=4))
