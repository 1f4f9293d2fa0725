"""Which questions Beyond Variance trains on: measured once, bad rows passed over, whole pairs in turn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.recipes.shared.pairing import AT_ONCE, PairedPrompts, Pairs, paired
from mmrl.training.dry import dry
from mmrl.types import Prompt, Prompts, Rollout, Sampling

RIGHT = [0, 8, 2, 1, 6, 7, 4, 8]
"""Right answers of eight, by the number of the row."""


class Rows(Prompts):
    """`size` rows, of which row 3 cannot be read."""

    def __init__(self, size):
        self.size = size

    def __getitem__(self, index):
        if index == 3:
            raise BadRow("no picture")
        return Prompt(str(index), [], extra={"of": index})


class Engine:
    """Answers as RIGHT says, and remembers how many it was asked for at once."""

    def __init__(self):
        self.asked = []

    def generate(self, prompts, sampling, now):
        self.asked.append((len(prompts), sampling.group_size, now.step))
        blank = torch.zeros(1, dtype=torch.long)
        return [
            Rollout(prompt, group, blank, blank, blank.byte(), "", "eos",
                    correct=number < RIGHT[int(prompt.id) % 8])
            for group, prompt in enumerate(prompts)
            for number in range(sampling.group_size)
        ]  # fmt: skip


def unchanged(rollouts):
    return rollouts


def chosen(size=8, check=None, pay=unchanged, **settings):
    pairs = Pairs(**{"candidates": 64, "answers": 8, "band": 2, "count": 1, **settings})
    return paired(Rows(size), pairs, Engine(), pay, Sampling(4), 0, check)


def test_the_hardest_and_the_easiest_that_can_be_read_are_paired_in_turn():
    found = chosen()
    assert found.pairs == ((2, 5),) and found.size is None
    rows = [found[index] for index in range(4)]
    assert [row.id for row in rows] == ["2", "5", "2", "5"]
    assert [(row.extra["pair"], row.extra["side"]) for row in rows[:2]] == [
        (0, "hard"),
        (0, "easy"),
    ]
    assert rows[0].extra["of"] == 2


def test_several_pairs_come_one_after_the_other():
    found = PairedPrompts(Rows(8), [(2, 5), (0, 4)])
    assert [found[i].id for i in range(6)] == ["2", "5", "0", "4", "2", "5"]
    assert [found[i].extra["pair"] for i in range(4)] == [0, 0, 1, 1]


def test_rows_that_the_check_refuses_are_passed_over_and_too_few_are_an_error():
    def short(prompt):
        if prompt.id == "5":
            raise BadRow("too long")

    assert chosen(check=short).pairs == ((2, 4),)
    with pytest.raises(
        ValueError, match=r"--pairs\.count is 2, but of 7 questions 1 are hard and 2 easy.*band"
    ):
        chosen(count=2)


def test_answers_that_nobody_judged_are_not_counted():
    def unjudged(rollouts):
        return [replace(r, correct=None) if r.prompt.id == "5" else r for r in rollouts]

    assert chosen(pay=unjudged).pairs == ((2, 4),)


def test_many_candidates_are_measured_in_blocks_with_draws_of_their_own():
    engine, rows = Engine(), Rows(AT_ONCE + 6)
    paired(rows, Pairs(1000, 8, 2, 1), engine, unchanged, Sampling(4), 0)
    assert engine.asked == [(AT_ONCE - 1, 8, 0), (6, 8, AT_ONCE)]
    with pytest.raises(ValueError, match=r"Pairs\.band"):
        Pairs(answers=2, band=2)


def test_with_a_wide_band_no_question_is_both():
    found = chosen(band=7, count=2)
    assert found.pairs == ((2, 5), (6, 4))
    with pytest.raises(ValueError, match=r"wider --pairs\.band"):
        chosen(band=7, count=3)


def test_a_preview_pairs_no_more_rows_than_there_are():
    with dry():
        assert chosen(size=3, count=8).pairs == ((0, 1),)
        with pytest.raises(ValueError, match="1 training rows; a pair is two"):
            chosen(size=1)
