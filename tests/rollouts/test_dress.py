"""DRESS: rows of likelihood behind their feedback, refinements, instructions, quotations, judge and rule."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.rewards.feedback import Feedback, JudgedFeedback, RuleFeedback, Unpaid, read_feedback
from mmrl.rewards.judge import JudgeUnavailable, LocalJudge
from mmrl.rewards.pay import Rewards, RewardStopped
from mmrl.rollouts.dress import DRESS, Conditioned, DRESSRollout, conditioned, quotes
from mmrl.rollouts.groups import LabelRollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Prompt, Prompts, Role, Rollout, Sampling

NOW = Now(1, 0.1, seed=3)
TWO = Sampling(2, 1.0, max_tokens=9)


def ids(text):
    return torch.tensor([ord(letter) for letter in text] or [0])


def words(prompt):
    return "|".join(str(message["content"]) for message in prompt.messages)


def encode(prompt):
    if "too long" in words(prompt):
        raise BadRow("no room")
    return SimpleNamespace(ids=ids(words(prompt)))


LABEL = LabelRollout(ids, lambda prompt: encode(prompt).ids)


class Rows(Prompts):
    def __init__(self, *rows):
        self.rows, self.size = rows, len(rows)

    def __getitem__(self, index):
        return self.rows[index]


def row(name, text="Q", answer=None):
    return Prompt(name, [{"role": "user", "content": text}], answer=answer)


class Echo:
    """Answers "first a", "first b", …, and behind advice "better"."""

    abilities = frozenset({"counts per prompt"})

    def __init__(self):
        self.asked = []

    def generate(self, prompts, sampling, now, *, counts=None, **more):
        self.asked.append([words(prompt) for prompt in prompts])
        out = []
        for group, prompt in enumerate(prompts):
            size = sampling.group_size if counts is None else counts[group]
            for number in range(size):
                text = "better" if len(prompt.messages) > 1 else f"first {'ab'[number]}"
                tokens = ids(text)
                out.append(
                    Rollout(
                        *(prompt, group, encode(prompt).ids, tokens),
                        torch.zeros(len(tokens), dtype=torch.uint8),
                        text,
                        "eos",
                        logp=torch.zeros(len(tokens)),
                    )
                )
        return out


def pay(rollouts):
    return [replace(one, reward=0.0, parts={"accuracy": 0.0}) for one in rollouts]


def says(answers):
    """4 for what is better, nothing for "first b"."""
    found = {"better": Feedback(4, "Fine."), "first a": Feedback(2, "Poor.", "Try again.")}
    return [found.get(one.text) for one in answers]


def learned(dress, *rows, feedback=says, per_step=None):
    supply = Supply(Rows(*rows), per_step or len(rows), 0)
    engine = Echo()
    rollout = DRESSRollout(feedback, encode, LABEL, dress)
    return rollout(engine, pay, supply, TWO, NOW), supply.counters, engine


PURE = DRESS(rounds=2, instruct=0.0, plain=0.0, refine=0.5)


def test_answers_are_learned_behind_their_feedback_and_refined_ones_twice():
    found, counters, engine = learned(PURE, row("p"))
    assert [(words(one.prompt), one.text, one.reward) for one in found] == [
        ("Q\n\nFeedback: score 2. Poor.", "first a", 1.0),
        ("Q|first a|Try again.\n\nFeedback: score 4. Fine.", "better", 1.0),
        ("Q|first a|Try again.\n\nFeedback: score 4.", "better", 0.5),
    ]
    assert [one.group for one in found] == [0, 1, 2]
    assert len({one.prompt.id for one in found}) == 3, "other words, another prompt"
    for one in found:
        # Condition and feedback are in the prompt: what is trained is the answer alone.
        assert torch.equal(one.prompt_ids, ids(words(one.prompt)))
        assert torch.equal(one.tokens, ids(one.text)) and one.logp is None
        assert set(one.roles.tolist()) == {int(Role.POLICY)}
        assert one.parts["score"] in (2.0, 4.0)
    assert engine.asked == [["Q"], ["Q|first a|Try again."]]
    assert counters["dress/without_feedback"] == 1 and counters["dress/refined"] == 1
    once, _, _ = learned(replace(PURE, rounds=1), row("p"))
    assert len(once) == 1
    unweighted, _, _ = learned(replace(PURE, refine=0.0), row("p"))
    assert len(unweighted) == 2


def test_rows_without_feedback_are_plain_likelihood():
    found, _, _ = learned(replace(PURE, plain=1.0, rounds=1), row("p"))
    assert words(found[0].prompt) == "Q" and found[0].prompt.id == "p"
    rows = [row(f"p{n}", answer="label") for n in range(40)]
    found, counters, _ = learned(DRESS(rounds=1, instruct=0.5), *rows)
    own = [one for one in found if one.origin == "label"]
    assert counters["dress/instructions"] == len(own) and 8 < len(own) < 32
    assert {one.text for one in own} == {"label"} and {words(one.prompt) for one in own} == {
        "Q"
    }
    again, _, _ = learned(DRESS(rounds=1, instruct=0.5), *rows)
    assert [one.text for one in again] == [one.text for one in found], (
        "drawn by seed, step, row"
    )
    found, counters, _ = learned(DRESS(rounds=1, instruct=0.99), row("p"))
    assert counters["dress/no_instruction"] == 1 and found, "no answer: asked instead"


def test_what_cannot_be_shown_is_left_out_and_nothing_at_all_is_an_error():
    def long(answers):
        return [Feedback(2, "too long", "too long") for _ in answers]

    with pytest.raises(ValueError, match="no row to learn"):
        learned(PURE, row("p"), feedback=long)
    with pytest.raises(ValueError, match="no row to learn"):
        learned(PURE, row("p"), feedback=lambda answers: [None] * len(answers))


def test_a_critique_that_quotes_its_answer_leaves_the_condition():
    assert quotes("It says FIRST, a which is bad", "<answer> first a </answer>", 8)
    assert not quotes("It is bad at first", "first a", 8) and not quotes("Right.", "", 8)
    assert quotes("so the cat sat on it", "I think the cat sat on the mat", 4)
    assert not quotes("so the cat sat on it", "I think the cat sat on the mat", 5)

    def quoting(answers):
        return [Feedback(1, f"You say {one.text}.") for one in answers]

    found, counters, _ = learned(replace(PURE, rounds=1), row("p"), feedback=quoting)
    assert {words(one.prompt) for one in found} == {"Q\n\nFeedback: score 1."}
    assert counters["dress/quotations"] == 2


def test_evaluation_asks_with_the_best_feedback():
    prompts = Conditioned(Rows(row("p")), DRESS(praise="All {score} well."))
    assert words(prompts[0]) == "Q\n\nFeedback: score 4. All {score} well."
    answer = Echo().generate([row("p")], TWO, NOW)[0]
    assert conditioned(answer, row("p"), "", encode).prompt.id == "p"
    for wrong in ({"rounds": 0}, {"instruct": 1.0}, {"sentence": "nothing"}, {"plain": 2.0}):
        with pytest.raises(ValueError, match=r"DRESS\."):
            DRESS(**wrong)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (
            "<score>3</score> <critique>Short,\nbut right.</critique><advice>More.</advice>",
            Feedback(3, "Short, but right.", "More."),
        ),
        ("<score>1</score><score>4.0</score><critique>Fine</critique>", Feedback(4, "Fine")),
        ("<score>5</score><critique>Fine</critique>", None),
        ("<score>2.5</score><critique>Fine</critique>", None),
        ("<score>2</score>", None),
        ("", None),
    ],
)
def test_feedback_is_read_or_refused(reply, found):
    assert read_feedback(reply) == found


def test_a_malformed_score_costs_its_row_and_an_outage_stops():
    def replies(chats):
        return [
            "<score>9</score>"
            if "odd" in str(chat)
            else "<score>2</score><critique>c</critique>"
            for chat in chats
        ]

    feedback = JudgedFeedback(LocalJudge(replies))
    answers = Echo().generate([row("p"), row("odd", "odd")], TWO, NOW)
    assert [one and one.score for one in feedback(answers)] == [2, 2, None, None]
    with Rewards(unpaid=Unpaid(feedback)) as rewards:
        assert [one.reward for one in rewards(answers)] == [1.0] * 4
        assert rewards.metrics()["judge/unreadable"] == 4

    async def down(messages):
        raise JudgeUnavailable("gone")

    with pytest.raises(RewardStopped, match="gone"):
        JudgedFeedback(down)(answers)
    assert JudgedFeedback(down, on_unavailable="drop")(answers) == [None] * 4

    async def nested():
        return feedback(answers[:1])

    assert asyncio.run(nested())[0].score == 2, "also where a loop runs"


@pytest.mark.parametrize(
    ("parts", "score"),
    [
        ({"accuracy": 1.0, "format": 1.0}, 4),
        ({"accuracy": 1.0, "format": 0.0}, 3),
        ({"accuracy": 0.0, "format": 1.0}, 2),
        ({"accuracy": 0.0}, 1),
    ],
)
def test_the_rule_says_what_the_rewards_say(parts, score):
    found = RuleFeedback().of(parts)
    assert found.score == score and (found.advice == "") == (score == 4)
    assert RuleFeedback().of({"accuracy": None}) is None


def test_good_and_bad_conditions_pull_a_toy_model_apart():
    """A table of answers by condition, overfitted on the rows' likelihood: the good answer goes with the good score."""
    found, _, _ = learned(replace(PURE, refine=0.0), row("p"))
    conditions = sorted({words(one.prompt)[-20:] for one in found})
    answers = sorted({one.text for one in found})
    table = torch.zeros(len(conditions), len(answers), requires_grad=True)
    for _ in range(50):
        loss = -sum(
            one.reward
            * table.log_softmax(-1)[
                conditions.index(words(one.prompt)[-20:]), answers.index(one.text)
            ]
            for one in found
        )
        (grad,) = torch.autograd.grad(loss, table)
        table = (table - 0.5 * grad).detach().requires_grad_()
    good = next(n for n, text in enumerate(conditions) if "score 4" in text)
    gap = table.log_softmax(-1)[good] - table.log_softmax(-1)[1 - good]
    assert gap[answers.index("better")] > 1 and gap[answers.index("first a")] < -1
