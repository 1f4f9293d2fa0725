"""AMPO's guidance: which groups ask, who gives way, and which teachers the policy follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.branches import Views
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import scored
from mmrl.model.scoring import ScoreOutputs
from mmrl.objectives.ampo import AMPO
from mmrl.rewards.functions import in_tag
from mmrl.rollouts.ampo import AMPORollout, Comprehension
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.experts import given_answer
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Prompt, Prompts, Role, Rollout, Sampling

NOW = Now(step=1, progress=0.0, seed=0)
TEACHERS = [
    ["one right", "two wrong", "three right", "four right"],
    ["one right", "two right"],
    ["one wrong"],
    ["one right"],
]


class Rows(Prompts):
    size = 4

    def __getitem__(self, index):
        return Prompt(str(index), [], extra={"solutions": TEACHERS[index]})


class Parrot:
    """Row 1 has a right answer, the others none."""

    def generate(self, prompts, sampling, now):
        found = []
        for group, prompt in enumerate(prompts):
            for n in range(sampling.group_size):
                text = f"own {n} " + ("right" if (prompt.id, n) == ("1", 2) else "wrong")
                own = torch.tensor([1, n]), torch.zeros(2, dtype=torch.uint8)
                found.append(Rollout(prompt, group, torch.arange(3), *own, text, "eos"))
        return found


PAID = []


def pay(rollouts):
    PAID.extend(r.text for r in rollouts if r.origin == "expert")
    return [
        replace(r, reward=float("right" in r.text), correct="right" in r.text) for r in rollouts
    ]


def run(rule, answers=4):
    PAID.clear()
    supply = Supply(Rows(), 4, seed=0)
    found = rule(Parrot(), pay, supply, Sampling(answers, 0.7), NOW)
    groups = {}
    for one in found:
        groups.setdefault(one.prompt.id, []).append(one)
    return groups, supply.counters


def rule(**numbers):
    """Follows teachers the better, the further back they stand."""

    def score(answers, now):
        return [float(TEACHERS[0].index(one.text)) for one in answers]

    def encode(text):
        return torch.tensor([7] * len(text.split()) + [9])

    return AMPORollout(encode, ampo=AMPO(**numbers), score=score)


def test_failed_groups_alone_ask_and_as_many_answers_give_way_as_teachers_come():
    groups, counters = run(rule())
    own = {key: [r for r in group if r.origin == "policy"] for key, group in groups.items()}
    given = {
        key: [r.text for r in group if r.origin == "expert"] for key, group in groups.items()
    }
    # Of three right teachers those that are followed best; a wrong one never comes.
    assert given["0"] == ["three right", "four right"] and given["3"] == ["one right"]
    assert given["1"] == given["2"] == []
    assert {key: len(rows) for key, rows in own.items()} == {"0": 2, "1": 4, "2": 4, "3": 3}
    assert {key: len(group) for key, group in groups.items()} == dict.fromkeys("0123", 4)
    assert (counters["teachers/asked"], counters["teachers/answers"]) == (3, 3)
    assert counters["teachers/missing"] == 1
    assert counters["teachers/replaced"] == 3, "who is in no mean of the log is counted"
    assert not any("two right" in text for text in PAID), "who is not asked is not paid"
    roles = {int(role) for r in groups["0"][2:] for role in r.roles}
    assert roles == {int(Role.EXPERT)}
    again, _ = run(rule())
    assert [r.text for g in again.values() for r in g] == [
        r.text for g in groups.values() for r in g
    ]


@pytest.mark.parametrize(
    ("answers", "most", "given"), [(4, 1, 1), (4, 9, 3), (3, 9, 2), (1, 9, 0)]
)
def test_one_own_answer_stays(answers, most, given):
    groups, _ = run(rule(most=most), answers)
    assert sum(r.origin == "expert" for r in groups["0"]) == given
    assert len(groups["0"]) == answers


def test_at_random_nobody_is_scored_and_the_draw_is_the_steps():
    random = AMPORollout(rule().encode, ampo=AMPO(choice="random"))
    first, _ = run(random)
    second, _ = run(random)
    texts = [[r.text for r in found["0"]] for found in (first, second)]
    assert texts[0] == texts[1] and sum("own" in text for text in texts[0]) == 2
    groups, counters = run(replace(random, ampo=AMPO(choice="random", weight=0.0)))
    assert all(r.origin == "policy" for g in groups.values() for r in g)
    assert counters["teachers/asked"] == 0


def direct(policy, prompt, before, truth):
    """Mean probability of the truth behind a text, one token at a time, as the end of an answer."""
    ids = policy.processing.encode_answer(before)[:-1] if before else torch.zeros(0).long()
    wanted = policy.processing.encode_answer(truth)[:-1]
    found = []
    for n in range(len(wanted)):
        tokens = torch.cat([ids, wanted[: n + 1]])
        found.append(last_logp(policy, prompt, tokens).exp())
    return torch.stack(found).mean().item()


def last_logp(policy, prompt, tokens):
    encoded = policy.encode(prompt)
    roles = torch.zeros(len(tokens), dtype=torch.uint8)
    one = Rollout(prompt, 0, encoded.ids, tokens, roles, "", "eos", reward=0.0)
    groups = Views(policy, [one], {}, NOW).groups("raw", [0])
    with torch.no_grad():
        scores = scored(policy, {"raw": groups}, {"raw": ScoreOutputs()}, (1, len(tokens)))
    return scores["raw"].logp[0, -1]


def test_comprehension_is_the_probability_of_the_answer_behind_the_reasoning(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float64")
    prompt = Drawn("lookup", size=3)[1]
    beside = HFEngine(policy).generate([prompt], Sampling(1, 1.0, max_tokens=2), NOW)[0]
    texts = {
        "row 1 column 2 = red circle <answer> red circle </answer>": (
            "row 1 column 2 = red circle <answer>",
            " ",
        ),
        "<answer>blue square</answer>": ("<answer>", ""),
        "a text that states nothing": ("a text that states nothing", ""),
    }
    encode = policy.processing.encode_answer
    answers = [
        replace(given_answer(beside, t, encode, "expert", Role.EXPERT, Sampling()), reward=1.0)
        for t in texts
    ]
    expected = [direct(policy, prompt, one, gap + prompt.answer) for one, gap in texts.values()]
    for tokens in (8192, 40):  # all in one pass, and cut
        found = Comprehension(
            policy, lambda text: (in_tag(text) or "").strip() or None, tokens=tokens
        )
        assert found(answers, NOW) == pytest.approx(expected, rel=1e-5)
    # An answer that cannot be written has no score, and a text that begins with its answer no reasoning.
    for answer in (None, "<|im_end|>"):
        odd = [replace(answers[0], prompt=replace(prompt, answer=answer))]
        assert Comprehension(policy, in_tag)(odd, NOW) == [0.0]
    bare = replace(answers[0], text="red circle")
    alone = Comprehension(policy, lambda text: text)([bare], NOW)
    assert alone == pytest.approx([direct(policy, prompt, "", prompt.answer)], rel=1e-5)
