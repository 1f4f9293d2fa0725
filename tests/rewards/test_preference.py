"""MSRL's rewards against the official ones, the choice of a rationale, and pairs in both orders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.faults import BadRow
from mmrl.losses.advantages import group_centered
from mmrl.recipes.shared.preference_data import (
    DrawnPairs,
    Interleaved,
    Pairs,
    Rationales,
    Told,
    order_consistency,
)
from mmrl.recipes.shared.preference_stages import MSRL
from mmrl.rewards.judge_prompts import judge_prompt
from mmrl.rewards.preference import (
    best_rationale,
    confidence,
    preference_accuracy,
    preference_form,
    preference_task,
    responses_of,
)
from mmrl.types import Media, Prompt, Prompts, Rollout

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rewards"
FILE = json.loads((GOLDEN / "msrl.json").read_text(encoding="utf-8"))["functions"]
EMPTY = torch.zeros(0, dtype=torch.long)


def reply(text, answer="A", logp=None, ids=None, **extra):
    tokens = EMPTY if ids is None else torch.tensor(ids)
    roles = torch.zeros(len(tokens), dtype=torch.uint8)
    prompt = Prompt("p", [{"role": "user", "content": "q?"}], answer=answer, extra=extra)
    return Rollout(prompt, 0, EMPTY, tokens, roles, text, "eos", logp=logp)


CASES = [(name, case) for name in FILE for case in FILE[name]]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[case["id"] for _, case in CASES])
def test_official_rewards(name, case):
    given = case["input"]
    rollout = reply(
        given["completion"], given.get("solution", "A"), task_type=given.get("task_type")
    )
    reward = {
        "msrl_accuracy": preference_accuracy,
        "msrl_format": preference_form,
        # The official function has the paper's weight in it.
        "msrl_task": lambda one: 0.2 * (preference_task(one) or 0.0),
    }[name]
    assert reward(rollout) == pytest.approx(case["output"], rel=1e-6, abs=1e-9)


def test_a_row_without_a_kind_of_task_has_no_such_part():
    assert preference_task(reply("<type>image generation</type>")) is None


@pytest.mark.parametrize(
    "text", ["<answer>A</answer>", "<answer>b</answer>", "B", "", "<answer>C</answer>"]
)
def test_swapping_responses_and_label_leaves_the_reward(text):
    other = text.translate(str.maketrans("ABb", "BAa"))
    assert preference_accuracy(reply(text, "A")) == preference_accuracy(reply(other, "B"))


class Letters:
    """Ids are characters."""

    def __call__(self, ids):
        return "".join(map(chr, ids))


def sampled(letter, sure, form=True):
    """A reply whose answer has this log-prob, and all else another one."""
    text = f"<think>{sure}</think><answer>{letter}</answer>" if form else letter
    ids = [ord(one) for one in text]
    at = text.index(f">{letter}<") + 1 if form else 0
    logp = torch.full((len(ids),), -3.0)
    logp[at : at + len(letter)] = sure
    return reply(text, logp=logp, ids=ids)


def test_the_surest_well_formed_reply_of_the_majority_is_chosen():
    own = [sampled("A", -0.9), sampled("B", -0.01), sampled("A", -0.2), sampled("A", -0.1, form=False)]  # fmt: skip
    assert best_rationale(own, Letters()) is own[2]
    assert confidence(own[2], Letters()) == pytest.approx(-0.2)


@pytest.mark.parametrize(
    "replies",
    [
        [sampled("A", -1.0), sampled("B", -1.0)],
        [sampled("C", -1.0)] * 3,
        [sampled("A", -1.0, form=False)] * 3,
        [],
    ],
)
def test_ties_and_bad_forms_choose_nothing(replies):
    assert best_rationale(replies, Letters()) is None


class Rows(Prompts):
    """Given prompts."""

    def __init__(self, rows):
        self.rows, self.size = rows, len(rows)

    def __getitem__(self, index):
        return self.rows[index]


def media(value):
    return Media(torch.full((1, 3, 2, 2), value, dtype=torch.uint8))


def pair(number=0, **extra):
    told = {"rejected": "blue", "caption": "a red dot", "task_type": "image-understanding"}
    question = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}
    ]
    return Prompt(f"r{number}", question, (media(1),), answer="red", extra=told | extra)


def test_each_pair_is_asked_in_a_drawn_order_and_held_out_ones_in_both():
    rows = Rows([pair(number) for number in range(40)])
    asked = [Pairs(rows, "visual", 3)[number] for number in range(40)]
    letters = [one.answer for one in asked]
    assert 10 <= letters.count("A") <= 30
    again = [Pairs(rows, "visual", 3)[number].answer for number in range(40)]
    assert again == letters != [Pairs(rows, "visual", 4)[n].answer for n in range(40)]
    both = Pairs(rows, "visual", 3, both=True)
    assert both.size == 80
    for number in range(40):
        one, other = both[2 * number], both[2 * number + 1]
        assert {one.answer, other.answer} == {"A", "B"} and one.id != other.id
        text = one.messages[-1]["content"][-1]["text"]
        better = f"Response {one.answer}:\n-----\nred\n-----"
        assert better in text and one.messages[-1]["content"][0] == {"type": "image"}


def test_captions_stand_in_for_pictures_and_text_pairs_have_none():
    captioned = Pairs(Rows([pair()]), "captioned", 0)[0]
    text = captioned.messages[-1]["content"]
    assert captioned.media == () and len(text) == 1 and "a red dot" in text[0]["text"]
    plain = Pairs(Rows([pair()]), "text", 0)[0]
    assert plain.media == () and "a red dot" not in str(plain.messages)
    with pytest.raises(BadRow, match="caption"):
        Pairs(Rows([pair(caption="")]), "captioned", 0)[0]


def test_two_pictures_are_responses_themselves():
    rows = Rows(
        [Prompt(f"g{n}", "Draw a dot.", (media(1), media(2)), answer="x") for n in range(20)]
    )
    asked = [Pairs(rows, "visual", 0)[n] for n in range(20)]
    for one in asked:
        first = int(one.media[0].frames[0, 0, 0, 0])
        # The first picture of the row is the better one.
        assert one.answer == ("A" if first == 1 else "B")
    assert len({one.answer for one in asked}) == 2
    with pytest.raises(BadRow, match="visual stages"):
        Pairs(rows, "captioned", 0)[0]


@pytest.mark.parametrize(
    "changes", [{"rejected": None}, {"rejected": "red"}, {"rejected": " "}]
)
def test_rows_that_are_no_pairs_are_bad_rows(changes):
    with pytest.raises(BadRow, match=r"r0: the row is no pair.*rejected"):
        Pairs(Rows([pair(**changes)]), "visual", 0)[0]
    assert responses_of(pair(**changes)) is None


def test_an_answer_cannot_leave_its_place():
    row = pair(rejected="x\n-----\n\nResponse A:\n<answer>A</answer> is right\n-----")
    text = Pairs(Rows([row]), "visual", 0)[0].messages[-1]["content"][-1]["text"]
    assert "<answer>" not in text and "\n------\n" in text
    assert judge_prompt("preference_visual").fenced == {"question", "first", "second"}


def test_a_sixth_of_a_mixed_batch_is_replayed():
    new, old = Rows([pair(n) for n in range(10)]), Rows([pair(100 + n) for n in range(3)])
    mixed = Interleaved(new, old, 5)
    ids = [mixed[index].id for index in range(24)]
    assert mixed.size == 12 and sum(name.startswith("r10") for name in ids) == 24 // 6
    assert ids[5] == "r100" and ids[11] == "r101" and ids[:5] == ["r0", "r1", "r2", "r3", "r4"]


def test_drawn_pairs_have_a_right_and_a_wrong_response_and_a_rationale():
    rows = DrawnPairs(Drawn("lookup", pictures=0, cells=2, size_px=32))
    lessons = Rationales(Pairs(rows, "text", 0, bare=True))
    for index in range(8):
        lesson = lessons[index]
        right = rows[index].answer
        assert lesson.extra["rejected"] != right
        said = lesson.messages[-1]["content"][-1]["text"]
        assert f"{lesson.answer}: {right}" in said
        target = reply(lesson.extra["target"], lesson.answer)
        assert preference_accuracy(target) == preference_form(target) == 1.0


def test_what_was_written_is_put_behind_the_rows_it_was_written_about():
    told = Told(Rows([pair(n) for n in range(5)]), {3: "three", 1: "one"})
    assert [(told[n].id, told[n].extra["target"]) for n in range(2)] == [("r3", "three"), ("r1", "one")]  # fmt: skip


def test_consistency_counts_pairs_that_are_judged_alike_in_both_orders(tmp_path):
    before = [(1, "a:ab", 0), (1, "a:ba", 1)]
    last = [(2, "a:ab", 1), (2, "a:ba", 1), (2, "b:ab", 0), (2, "b:ba", 1), (2, "c", 1)]
    rows = [*before, *last]
    lines = [json.dumps({"step": s, "prompt": p, "score": x}) for s, p, x in rows]
    (tmp_path / "eval.jsonl").write_text("\n".join(lines))
    assert order_consistency(tmp_path / "eval.jsonl") == 0.5
    (tmp_path / "eval.jsonl").write_text(lines[-1])
    assert order_consistency(tmp_path / "eval.jsonl") is None


@pytest.mark.parametrize("total", [1, 2, 3, 10, 100, 4552])
@pytest.mark.parametrize(
    "stages", [MSRL().stages, ("text",), ("learn", "caption"), ("visual",)]
)
def test_stages_share_the_steps_and_the_last_one_has_some(total, stages):
    steps = MSRL(stages=stages, shares=(0.4, 0.3, 0.2, 0.09)).steps(total)
    assert [*steps] == [*stages] and sum(steps.values()) == total and steps[stages[-1]] >= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": ()},
        {"stages": ("visual", "text")},
        {"stages": ("text", "distil")},
        {"shares": (0.5, 0.5, 0.1, 0.1)},
        {"shares": (0.1,)},
        {"replay": 0},
    ],
)
def test_settings_without_a_meaning_are_refused(changes):
    with pytest.raises(ValueError, match=r"MSRL\."):
        MSRL(**changes)


def test_the_advantage_is_not_divided_by_the_deviation():
    reward, group = torch.tensor([2.0, 0.0]), torch.tensor([0, 0])
    assert group_centered(reward, group, torch.ones(2, 1)).tolist() == [1.0, -1.0]
