"""SvS: which problems are varied, what a variant earns, and which groups the update sees."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.rewording import instead
from mmrl.rollouts.stages import OneStep
from mmrl.rollouts.svs import PART, SvS, SvSRollout, problem_of, variant_reward
from mmrl.types import Media, Now, Prompt, Prompts, Rollout, Sampling

NOW, EIGHT = Now(1, 0.1, seed=3), Sampling(8, 1.0, max_tokens=6)
FENCE = "```text\n{}\n```"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```text\nWhich one?\n```", "Which one?"),
        ("so\n```\nfirst\n```\n```text\nmarked\n```", "marked"),
        ("```python\na\n```\n```\nb\n```", "a"),
        ("<think>```text\nold\n```</think> ```inline\n```text\nnew\n```", "new"),
        ("**Reconstructed Question:**\nHow many?", "How many?"),
        ("# Reconstructed Question\nHow many?\nAnd why?", "How many?\nAnd why?"),
        ("just words", None),
        ("```text\n \n```", None),
        ("```text\nno end", None),
        ("", None),
    ],
)
def test_a_problem_is_read_from_its_block_or_heading(text, problem):
    assert problem_of(text) == problem
    whole = text.rpartition("</think>")[2].strip()
    assert problem_of(text, "whole") == (whole or None)


@pytest.mark.parametrize(
    ("right", "reward"), [(0, 0), (1, 1), (2, 1), (4, 1), (5, 1), (6, 0), (7, 0), (8, 0)]
)
def test_the_ends_of_the_range_are_good_and_a_leak_earns_nothing(right, reward):
    svs = SvS()
    assert variant_reward(right / 8, svs.variant_low, svs.variant_high) == reward


class Rows(Prompts):
    """Problem "n": n of its eight answers are right."""

    def __init__(self, *right, media=()):
        self.right, self.size, self.media = right, len(right), media

    def __getitem__(self, index):
        name = str(self.right[index])
        parts = [{"type": "image"} for _ in self.media]
        content = [*parts, {"type": "text", "text": f"solve {name}"}]
        chat = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": content},
        ]
        return Prompt(name, chat, media=self.media, answer=name)


class Script:
    """Answers problems, writes variants, and says which ids it was asked.

    Answer n to "solve k" is right if n < k; "variant 4/2" has 4 right answers with pictures and 2 without.
    """

    def __init__(self, *written):
        self.written, self.asked = written, []

    def generate(self, prompts, sampling, now, *, counts=None, first=None, **more):
        found = []
        for group, prompt in enumerate(prompts):
            count = counts[group] if counts else sampling.group_size
            self.asked.append((prompt.id, count))
            for n in range(count):
                text = self.answer(prompt, n)
                own = torch.tensor([n]), torch.zeros(1, dtype=torch.uint8)
                found.append(Rollout(prompt, group, torch.tensor([5]), *own, text, "eos"))
        return found

    def answer(self, prompt, number):
        content = prompt.messages[-1]["content"]
        said = content if isinstance(content, str) else content[-1]["text"]
        if "worked solution" in said:
            assert "solve" not in said.partition("was lost.")[2], "the problem is not shown"
            return self.written[number]
        seen, _, unseen = said.removeprefix("put: ").split()[1].partition("/")
        dark = bool(prompt.media) and bool((prompt.media[0].frames == 127).all())
        return "right" if number < int(unseen if dark and unseen else seen) else "wrong"


def pay(rollouts):
    right = [r.text == "right" for r in rollouts]
    return [
        replace(r, reward=float(one), correct=one, parts={"accuracy": float(one)})
        for r, one in zip(rollouts, right, strict=True)
    ]


def run(script, rows, check=None, **numbers):
    svs = SvS(**{"variants": len(script.written), "answers": 1, **numbers})
    rule = SvSRollout(svs=svs, put=lambda question, row: f"put: {question}", check=check)
    supply = Supply(rows, rows.size, seed=0)
    found = rule(OneStep(script), pay, supply, EIGHT, NOW)
    groups = {}
    for one in found:
        groups.setdefault(one.group, []).append(one)
    return list(groups.values()), supply.counters, script.asked


def kind(group):
    return "variation" if PART in group[0].parts else group[0].prompt.id.count("~")


def test_the_three_kinds_of_groups_and_their_rewards():
    words = ("variant 3", "variant 8", "nothing", "variant 0", "VARIANT  3")
    script = Script(*(FENCE.format(w) if w != "nothing" else w for w in words))
    groups, counters, asked = run(script, Rows(0, 4, 8))
    assert Counter(map(kind, groups)) == {0: 1, "variation": 1, 2: 1}
    original, variation, variant = sorted(groups, key=lambda g: str(g[0].prompt.id.count("~")))
    assert original[0].prompt.id == "4" and len(original) == 8
    # Good, leaks the answer, no problem, broken, the first one again.
    assert [r.reward for r in variation] == [1, 0, 0, 0, 1]
    assert [r.correct for r in variation] == [True, False, False, False, True]
    assert [r.text for r in variant] == ["right"] * 3 + ["wrong"] * 5
    # Means of the log are of what was asked by rows, and of variants apart.
    assert {name for r in original for name in r.parts} == {"accuracy"}
    assert [r.parts for r in variant] == [{"variant_accuracy": r.reward} for r in variant]
    told = variant[0].prompt
    assert told.answer == "4" and told.extra["made_from"] == "4"
    assert [m["content"] for m in told.messages] == ["be brief", "put: variant 3"]
    assert len([name for name, _ in asked if name.count("~") == 2]) == 3, "equal ones once"
    assert counters["svs/accepted"] == 2 and counters["svs/without_problem"] == 1
    assert counters["svs/varied_problems"] == 1 and counters["svs/dropped_groups"] == 2
    assert {len({r.prompt.id for r in group}) for group in groups} == {1}
    assert [r.group for group in groups for r in group] == sorted(
        r.group for group in groups for r in group
    )


@pytest.mark.parametrize(("right", "varied"), [(0, 0), (1, 1), (4, 1), (5, 0), (8, 0)])
def test_problems_are_varied_at_both_ends_of_the_range(right, varied):
    _, counters, _ = run(Script(FENCE.format("variant 3")), Rows(right, 2 if right != 2 else 3))
    assert counters["svs/varied_problems"] == varied + 1


def test_every_right_answer_writes_up_to_the_limit():
    script = Script(FENCE.format("variant 3"), "none")
    for answers, written in ((1, 1), (2, 2), (9, 3)):
        script.asked = []
        groups, _, asked = run(script, Rows(3), answers=answers)
        assert sum(name.count("~") == 1 for name, _ in asked) == written
        assert Counter(map(kind, groups)) == {0: 1, "variation": written, 2: 1}


def test_a_step_without_the_range_trains_its_originals_and_one_without_signal_stays_whole():
    script = Script(FENCE.format("variant 3"))
    groups, _, asked = run(script, Rows(7, 8))
    assert [g[0].prompt.id for g in groups] == ["7"] and len(asked) == 2
    groups, _, _ = run(script, Rows(8, 0))
    assert sorted(g[0].prompt.id for g in groups) == ["0", "8"]


def test_a_variant_must_need_its_pictures():
    picture = Media(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    # Four of eight with pictures; without them two (a fall of a quarter), three, or four.
    script = Script(*(FENCE.format(f"variant 4/{n}") for n in (2, 3, 4)))
    groups, counters, _ = run(script, Rows(4, media=(picture,)))
    variation = next(g for g in groups if kind(g) == "variation")
    assert [r.reward for r in variation] == [1, 0, 0] and counters["svs/blind"] == 2
    assert sum(kind(g) == 2 for g in groups) == 1, "answers to what needs no picture leave"
    assert all((g[0].prompt.media[0].frames == 0).all() for g in groups)
    script.asked = []
    groups, _, asked = run(script, Rows(4, media=(picture,)), margin=0.0)
    assert not any("blind" in name for name, _ in asked)
    assert sum(kind(g) == 2 for g in groups) == 3


def test_what_does_not_fit_is_left_out_and_counted():
    def check(prompt):
        if "solution" in str(prompt.messages):
            raise BadRow("too long")

    script = Script(FENCE.format("variant 3"))
    groups, counters, asked = run(script, Rows(4), check)
    assert len(asked) == len(groups) == 1 and counters["svs/too_long"] == 1

    def short(prompt):
        if "variant" in str(prompt.messages[-1]):
            raise BadRow("too long")

    groups, counters, _ = run(Script(FENCE.format("variant 3"), "no"), Rows(4), short)
    assert counters["svs/without_problem"] == 2 and len(groups) == 1


def test_off_it_is_the_plain_rollout():
    supply = Supply(Rows(0, 4, 8), 3, seed=0)
    rule = SvSRollout(svs=SvS(answers=0, drop_even=False))
    found = rule(OneStep(Script("none")), pay, supply, EIGHT, NOW)
    supply = Supply(Rows(0, 4, 8), 3, seed=0)
    plain = group_rollout(OneStep(Script("none")), pay, supply, EIGHT, NOW)
    assert [(r.prompt.id, r.group, r.text, r.reward) for r in found] == [
        (r.prompt.id, r.group, r.text, r.reward) for r in plain
    ]


def test_a_prompt_of_words_is_replaced_by_words():
    made = instead(Prompt("p", "one", answer="a"), "two", "q")
    assert (made.id, made.messages, made.answer) == ("q", "two", "a")
    assert instead(made, "three", "r").extra["made_from"] == "p", "of the first one"


@pytest.mark.parametrize(
    "numbers",
    [
        {"solved_low": 0.6},
        {"variant_high": 1.5},
        {"variants": 0},
        {"answers": -1},
        {"margin": 2},
    ],
)
def test_absurd_settings_are_refused(numbers):
    with pytest.raises(ValueError, match=r"SvS\.\w+ is"):
        SvS(**numbers)
