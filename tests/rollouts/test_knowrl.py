"""KnowRL: the search finds what leaving out singly misses; questions are measured once, and asked with their points."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.faults import BadRow
from mmrl.ground.outputs import OutputError
from mmrl.model.ranks import Ranks
from mmrl.rollouts.dars import DARSRollout
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.rollouts.knowledge_points import (
    KnowRL,
    accuracy,
    chosen,
    left_alone,
    removable,
    wanted,
)
from mmrl.rollouts.knowrl import AccuracyTable, KnowRLRollout, TableFile, points_of
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.stages import OneStep
from mmrl.types import Now, Prompt, Prompts, Rollout, Sampling
from tests.several import several, values

NOW = Now(1, 0.1, seed=3)
FOUR = Sampling(4, 1.0, max_tokens=9)
ALL = [subset for size in range(4) for subset in combinations(range(3), size)]


def whole_table(right, points=3, samples=8):
    """Right answers of `samples` for each set of points."""
    sets = [s for size in range(points + 1) for s in combinations(range(points), size)]
    return {one: (right(one), samples) for one in sets}


# ------------------------------------------------------------------------------------------------------- the choice


def test_the_search_finds_what_leaving_out_singly_misses():
    # Points 0 and 1 say the same, one of them is needed; point 2 misleads.
    table = whole_table(lambda s: (6 if {0, 1} & {*s} else 1) + (2 not in s))
    assert removable(3, table, 0) == [0, 1, 2], "each singly"
    for strategy in ("s-loo", "t-loo"):
        dropped = chosen(3, table, KnowRL(choose=strategy))
        assert dropped == () and accuracy(table, dropped) == Fraction(2, 8), "and so all"
    best = chosen(3, table, KnowRL())
    assert best == (0,) and accuracy(table, best) == Fraction(7, 8)


def test_strict_keeps_what_costs_one_answer_and_tolerant_does_not():
    table = whole_table(lambda s: 8 - (0 not in s) - 3 * (1 not in s))
    kept = {name: chosen(3, table, KnowRL(choose=name)) for name in ("s-loo", "t-loo", "css")}
    assert kept == {"s-loo": (0, 1), "t-loo": (1,), "css": (0, 1)}
    assert chosen(3, table, KnowRL(choose="t-loo", slack=3)) == ()
    assert chosen(3, table, KnowRL(choose="all")) == (0, 1, 2)
    assert chosen(3, table, KnowRL(choose="none")) == () and not wanted(
        3, {}, KnowRL(choose="none")
    )


@given(st.lists(st.integers(0, 4), min_size=8, max_size=8), st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_the_search_is_the_best_of_what_it_may_drop_and_then_the_smallest(rights, slack):
    scores = dict(zip(ALL, rights, strict=True))
    knowrl = KnowRL(slack=slack, samples=4)
    table, rounds = {}, 0
    while due := wanted(3, table, knowrl):
        table |= {one: (scores[one], 4) for one in due}
        rounds += 1
    assert 1 <= rounds <= 2 and (0, 1, 2) in table, "what is compared follows from the first"
    best = chosen(3, table, knowrl)
    free = [i for i in range(3) if scores[0, 1, 2] - scores[ALL[6 - i]] <= slack]
    assert removable(3, table, slack) == free
    allowed = [one for one in ALL if {0, 1, 2} - {*one} <= {*free}]
    top = max(scores[one] for one in allowed)
    fewest = min(len(one) for one in allowed if scores[one] == top)
    assert best == min(one for one in allowed if (scores[one], len(one)) == (top, fewest))


def test_where_subsets_leave_no_room_the_dearest_points_stay():
    costs = (1, 0, 0, 1, 0)
    table = whole_table(lambda s: 8 - sum(costs[i] for i in range(5) if i not in s), points=5)
    few = KnowRL(subsets=8)
    assert left_alone(5, table, few) == 2 and left_alone(5, table, KnowRL()) == 0
    assert chosen(5, table, few) == (0, 3)
    first = wanted(5, {}, few)
    rest = wanted(5, {one: table[one] for one in first}, few)
    assert len(first) == 6 and len({*first, *rest}) == 6 + 8 - 4


def test_what_nobody_could_judge_is_no_zero():
    unknown = whole_table(lambda s: 0, samples=0)
    assert chosen(3, unknown, KnowRL()) is None and removable(3, unknown, 8) == []
    half = {**whole_table(lambda s: 4), (1, 2): (0, 0)}
    assert removable(3, half, 0) == [1, 2] and chosen(3, half, KnowRL()) == (0,)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"choose": "cbrs"}, "choose is 'cbrs'"),
        ({"samples": 0, "slack": 0}, "samples is 0"),
        ({"slack": 9}, "slack is 9"),
        ({"subsets": 1}, "subsets is 1"),
        ({"sentence": "no place"}, "sentence is 'no place'"),
    ],
)
def test_absurd_settings_are_refused(numbers, said):
    with pytest.raises(ValueError, match=said):
        KnowRL(**numbers)


# ------------------------------------------------------------------------------------------------------ the rollout


class Rows(Prompts):
    """Questions with three points, but for "plain"."""

    def __init__(self, *names):
        self.names, self.size = names, len(names)

    def __getitem__(self, index):
        name = self.names[index]
        content = [{"type": "text", "text": f"question {name}"}]
        extra = {} if name == "plain" else {"points": ["one", "two", "three"]}
        return Prompt(name, [{"role": "user", "content": content}], extra=extra)


class Counting:
    """Answer n of a prompt says n."""

    def __init__(self):
        self.asked = []

    def generate(self, prompts, sampling, now, *, counts=None, first=None):
        assert counts is None
        self.asked.append([prompt.id for prompt in prompts])
        first = first or [0] * len(prompts)
        return [
            Rollout(
                *(prompt, group, torch.tensor([5]), torch.tensor([first[group] + n])),
                *(torch.zeros(1, dtype=torch.uint8), f"{first[group] + n}", "eos"),
            )
            for group, prompt in enumerate(prompts)
            for n in range(sampling.group_size)
        ]


def said(prompt):
    """What stands behind the question."""
    parts = prompt.messages[-1]["content"]
    return parts[1]["text"] if len(parts) > 1 else ""


def paying(right):
    """`right(text behind the question)`: how many of the first answers are right; None: not known."""

    def pay(rollouts):
        wins = [right(said(r.prompt)) for r in rollouts]
        judged = [
            None if n is None else int(r.text) < n for r, n in zip(rollouts, wins, strict=True)
        ]
        return [
            replace(r, reward=float(x or 0), correct=x, parts={"accuracy": float(x or 0)})
            for r, x in zip(rollouts, judged, strict=True)
        ]

    return pay


def needs_one_or_two(text):
    return 1 + 2 * ("one" in text or "two" in text)


def step(rule, supply, right=needs_one_or_two):
    supply.new_step()
    before, engine = Counter(supply.counters), Counting()
    found = rule(OneStep(engine), paying(right), supply, FOUR, NOW)
    return found, supply.counters - before, engine.asked


def test_a_question_is_measured_once_and_then_asked_with_what_it_needs():
    rule, supply = KnowRLRollout(), Supply(Rows("a", "plain"), 2, seed=0)
    found, counted, asked = step(rule, supply)
    # All, three without one, and the rest of the subsets of three removable points.
    assert [len(names) for names in asked] == [4, 4, 2]
    assert counted["knowrl/measured"] == 1 and counted["knowrl/answers"] == 8 * 8
    assert counted["knowrl/points"] == 3 and counted["knowrl/given"] == 1
    assert counted["knowrl/missing"] == 1
    by_name = {name: [r for r in found if r.prompt.id == name] for name in ("a", "plain")}
    assert {said(r.prompt) for r in by_name["a"]} == {"\n\nThese facts are of use:\none"}
    assert {said(r.prompt) for r in by_name["plain"]} == {""}
    plain, _, _ = step(group_rollout, Supply(Rows("a", "plain"), 2, seed=0))
    assert [r.text for r in found] == [r.text for r in plain], "measuring moves no draw"
    again, counted, asked = step(rule, supply)
    assert [len(names) for names in asked] == [2] and not counted["knowrl/measured"]
    assert {said(r.prompt) for r in again} == {said(r.prompt) for r in found}


def test_a_run_that_goes_on_remembers_and_a_table_says_the_same(tmp_path):
    file = tmp_path / "new" / "points.jsonl"
    rule = KnowRLRollout(written=TableFile.at(str(file)))
    supply = Supply(Rows("b", "a"), 2, seed=0)
    found, _, _ = step(rule, supply)
    state = json.loads(json.dumps(supply.memory(rule).state()))
    resumed, other = KnowRLRollout(), Supply(Rows("b", "a"), 2, seed=0)
    other.memory(resumed).load(state)
    from_table = KnowRLRollout(table=AccuracyTable.read(file))
    for one, taken in ((resumed, other), (from_table, Supply(Rows("b", "a"), 2, seed=0))):
        again, counted, asked = step(one, taken)
        assert [len(names) for names in asked] == [2] and not counted["knowrl/measured"]
        assert [(r.prompt.id, said(r.prompt), r.text) for r in again] == [
            (r.prompt.id, said(r.prompt), r.text) for r in found
        ]
        known = taken.memory(one).state()["lines"]
        assert sorted(known, key=str) == sorted(state["lines"], key=str)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b"]
    assert lines[0]["points"] == ["one", "two", "three"]
    assert [[0], 3, 8] in lines[0]["accuracy"] and [[], 1, 8] in lines[0]["accuracy"]


def test_only_what_a_table_lacks_is_measured_and_other_points_are_measured_anew(tmp_path):
    file = tmp_path / "points.jsonl"
    singly = [[[0, 1, 2], 3, 8], [[1, 2], 3, 8], [[0, 2], 3, 8], [[0, 1], 3, 8]]
    line = {"id": "a", "points": ["one", "two", "three"], "accuracy": singly}
    file.write_text(json.dumps(line) + "\n")
    rule = KnowRLRollout(table=AccuracyTable.read(file))
    found, counted, asked = step(rule, Supply(Rows("a"), 1, seed=0))
    assert [len(names) for names in asked] == [4, 1] and counted["knowrl/answers"] == 32
    assert said(found[0].prompt).endswith("\none") and not counted["knowrl/outdated"]
    file.write_text(json.dumps({**line, "points": ["one", "two", "four"]}) + "\n")
    changed = KnowRLRollout(table=AccuracyTable.read(file))
    _, counted, asked = step(changed, Supply(Rows("a"), 1, seed=0))
    assert [len(names) for names in asked] == [4, 4, 1] and counted["knowrl/outdated"] == 1
    loo = KnowRLRollout(knowrl=KnowRL(choose="s-loo"), table=AccuracyTable.read(file))
    assert loo.table.digest != rule.table.digest, "a run does not go on with another table"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no json", "1: no line of a table"),
        ('{"id": "a", "points": ["x"]}', "accuracy"),
        ('{"id": 7, "points": [], "accuracy": []}', "id and points are texts"),
        ('{"id": "a", "points": ["x"], "accuracy": [[[1], 1, 2]]}', "no numbers of 1 points"),
        ('{"id": "a", "points": ["x"], "accuracy": [[[0], 3, 2]]}', "3 of 2 answers"),
        ('{"id": "a", "points": ["x"], "accuracy": [[[0], 0, 0]]}', "0 of 0 answers"),
        ('{"id": "a", "points": ["x"], "accuracy": [[[0], true, 2]]}', "True of 2 answers"),
        (
            "\n".join(['{"id": "a", "points": [], "accuracy": []}'] * 2),
            "2: the id 'a' stands there twice",
        ),
    ],
)
def test_a_broken_table_is_refused_with_its_line(text, why, tmp_path):
    file = tmp_path / "points.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"--table .*points\.jsonl, line.*{why}"):
        AccuracyTable.read(file)


def test_a_table_that_is_not_there_and_a_file_of_somebody_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--table .* cannot be read"):
        AccuracyTable.read(tmp_path / "none.jsonl")
    (tmp_path / "letter.txt").write_text("dear all")
    with pytest.raises(OutputError, match="--write-table"):
        TableFile.at(str(tmp_path / "letter.txt"))


def test_no_room_leaves_the_question_and_unjudged_answers_give_all_points():
    def check(prompt):
        if "three" in said(prompt):
            raise BadRow("too long")

    found, counted, asked = step(KnowRLRollout(check=check), Supply(Rows("a"), 1, seed=0))
    assert [len(names) for names in asked] == [1] and counted["knowrl/too_long"] == 1
    assert said(found[0].prompt) == ""
    rule, supply = KnowRLRollout(), Supply(Rows("a"), 1, seed=0)
    found, counted, _ = step(rule, supply, lambda text: None)
    assert (
        said(found[0].prompt).endswith("one\ntwo\nthree") and counted["knowrl/unmeasured"] == 1
    )
    found, _, asked = step(rule, supply)
    assert len(asked) == 3 and said(found[0].prompt).endswith("\none"), "asked again later"


def test_without_points_it_is_the_plain_rollout_and_all_points_need_no_measuring():
    none = KnowRLRollout(knowrl=KnowRL(choose="none"))
    found, counted, asked = step(none, Supply(Rows("a", "b"), 2, seed=0))
    plain, _, _ = step(group_rollout, Supply(Rows("a", "b"), 2, seed=0))
    assert [(r.prompt, r.text, r.reward) for r in found] == [
        (r.prompt, r.text, r.reward) for r in plain
    ]
    assert not counted and len(asked) == 1 and none.start_memory() is None
    every = KnowRLRollout(knowrl=KnowRL(choose="all"))
    found, counted, asked = step(every, Supply(Rows("a"), 1, seed=0))
    assert len(asked) == 1 and counted["knowrl/given"] == 3
    assert not every.remembers_prompts() and KnowRLRollout().remembers_prompts()


def test_groups_may_be_left_out_but_stages_are_not_mixed():
    rule = KnowRLRollout(DynamicSampling(spread=True, rounds=4))
    found, _, _ = step(rule, Supply(Rows("a", "b", "c"), 2, seed=0))
    assert len({r.group for r in found}) == 2
    with pytest.raises(
        ValueError, match="KnowRLRollout and DARSRollout cannot be used together"
    ):
        KnowRLRollout(DARSRollout())


def test_points_are_a_list_or_lines_and_anything_else_is_none():
    def read(value):
        return points_of(Prompt("a", [], extra={"points": value}), "points")

    assert read(["a  b", " ", "c\nd"]) == ("a b", "c d") and read("a\n\nb") == ("a", "b")
    assert read(None) == read([1]) == read({"a": 1}) == read("") == ()


def split(file):
    """Two questions, one for each rank."""
    ranks = Ranks.start("cpu")
    rule = KnowRLRollout(written=TableFile.at(file))
    supply = Supply(Rows("a", "b"), 2, seed=0, ranks=ranks)
    found, counted, _ = step(rule, supply)
    known = sorted(line["id"] for line in supply.memory(rule).state()["lines"])
    ranks.end()
    return [r.prompt.id for r in found], counted["knowrl/measured"], known


def test_what_one_rank_measures_all_know_and_one_writes(tmp_path):
    file = tmp_path / "points.jsonl"
    told = values(several(2, partial(split, str(file))))
    assert sorted(names[0] for names, _, _ in told) == ["a", "b"]
    assert [(measured, known) for _, measured, known in told] == [(1, ["a", "b"])] * 2
    alone = tmp_path / "alone.jsonl"
    step(KnowRLRollout(written=TableFile.at(str(alone))), Supply(Rows("a", "b"), 2, seed=0))
    assert file.read_bytes() == alone.read_bytes()


def test_a_run_with_nothing_left_to_measure_still_writes_what_it_knows(tmp_path):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    step(KnowRLRollout(written=TableFile.at(str(old))), Supply(Rows("a"), 1, seed=0))
    later = KnowRLRollout(table=AccuracyTable.read(old), written=TableFile.at(str(new)))
    _, counted, _ = step(later, Supply(Rows("a"), 1, seed=0))
    assert not counted["knowrl/measured"] and new.read_bytes() == old.read_bytes()
