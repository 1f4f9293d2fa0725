"""Brick stacks and causal questions: the solvers agree with brute force, and words and pictures with the truth."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from mmrl.data.pretext.contract import Draft
from mmrl.data.pretext.craft.causal_models import (
    LEVELS,
    Model,
    Query,
    answer,
    draw_model,
    draw_query,
    relevant_count,
)
from mmrl.data.pretext.tasks.brick_stack import BrickStackTask, drawn_stacks
from mmrl.data.pretext.tasks.causal_query import CausalQueryTask
from mmrl.ground.seeds import Streams, philox

BRICKS, CAUSES = BrickStackTask(), CausalQueryTask()


def drafts(task, count=12, **knobs):
    found = []
    for seed in range(4 * count):
        draft = task.propose((), task.complete(knobs), Streams("test", task.name, seed))
        if isinstance(draft, Draft):
            found.append(draft)
    return found[:count]


def solved(sentences, wanted):
    """From the sentences alone: whatever lies on a brick comes off first."""
    above = {below: top for top, below in re.findall(r"(\w) is on top of (\w)\.", sentences)}
    chain = [wanted]
    while chain[-1] in above:
        chain.append(above[chain[-1]])
    return chain[::-1]


def test_the_answer_is_what_the_sentences_say_in_any_order():
    for draft in drafts(BRICKS, bricks=5, others=3, show="text"):
        given, wanted = draft.fields["given"], draft.fields["wanted"]
        assert solved(given, wanted) == draft.truth["answer"]
        lines = re.findall(r"[^.]+\.", given)
        assert solved(" ".join(reversed(lines)), wanted) == draft.truth["answer"]
        assert len(draft.truth["bricks"]) == 8 and not draft.visuals


def test_each_depth_is_asked_equally_often():
    depths = [
        len(draft.truth["answer"]) for draft in drafts(BRICKS, 400, bricks=4, show="text")
    ]
    assert max(abs(depths.count(d) / 400 - 0.25) for d in (1, 2, 3, 4)) < 0.07


def test_right_beginnings_earn_their_share_and_nothing_else_does():
    truth = {"answer": ["A", "C", "B"], "bricks": list("ABCDE"), "gamma": 0.3}
    for text, reward in (("A, C, B", 1.0), ("a c b", 1.0), ("A//C//B", 0.0), ("A, C", 0.2), ("A, C, E", 0.2),
                         ("A", 0.1), ("B, C, A", 0.0), ("A, C, B, D", 0.2), ("A, A, B", 0.0),
                         ("A, C, Z", 0.0), ("the brick A", 0.0)):  # fmt: skip
        score = BRICKS.score(f"<answer>{text}</answer>", truth)
        assert score.reward == pytest.approx(reward), text
        assert score.correct == (reward == 1.0)


def test_bricks_are_drawn_where_their_boxes_are():
    picture, boxes = drawn_stacks([["A", "B", "C"], ["D"]], philox("bricks"))
    assert boxes["C"][1] < boxes["B"][1] < boxes["A"][1] == boxes["D"][1]
    assert boxes["D"][0] > boxes["A"][2]
    for x0, y0, x1, y1 in boxes.values():
        inner = picture[y0 + 3 : y1 - 4, x0 + 3 : x1 - 4].reshape(-1, 3)
        assert (inner == inner[0]).all(1).mean() > 0.6 and inner.min() < 60, (
            "a colour and a letter"
        )
    asked = drafts(BRICKS, 3, show="picture")[0]
    assert asked.fields["given"] == "" and len(asked.evidence[0].boxes) == len(
        asked.truth["answer"]
    )


def test_symbols_are_asked_for_on_request_and_change_no_question():
    plain, symbolic = (drafts(BRICKS, 3, symbols=s, show="text") for s in (False, True))
    for a, b in zip(plain, symbolic, strict=True):
        assert a.truth == b.truth and "B//A" in b.fields["symbols"] and not a.fields["symbols"]


def worlds(model: Model):
    """Every assignment of the noise's intervals: (probability, facts by a function of what is done)."""
    edges = [sorted({0.0, *table, 1.0}) for table in model.tables]
    intervals = [list(pairwise(e)) for e in edges]
    for cells in product(*intervals):
        weight = float(np.prod([high - low for low, high in cells]))
        middles = [(low + high) / 2 for low, high in cells]

        def run(done, middles=middles):
            values: list[int] = []
            for variable, above in enumerate(model.parents):
                rate = model.rate(variable, [values[parent] for parent in above])
                drawn = int(middles[variable] < rate)
                values.append(done.get(variable, drawn))
            return values

        yield weight, run


def enumerated(model: Model, query: Query):
    """By full enumeration of all noise."""
    fits = hits = 0.0
    for weight, run in worlds(model):
        facts = run({} if query.level == "counterfactual" else query.done)
        if all(facts[v] == value for v, value in query.seen.items()):
            fits += weight
            hits += weight * run(query.done)[query.asked]
    return hits / fits if fits > 0 else None


@pytest.mark.parametrize("level", LEVELS)
def test_the_solver_is_full_enumeration(level):
    rng = philox("causal", level)
    for count in (3, 4, 4, 5):
        model = draw_model(count, 2, rng)
        query = draw_query(model, level, rng)
        found, right = answer(model, query), enumerated(model, query)
        assert (found is None) == (right is None)
        if found is not None:
            assert found == pytest.approx(right, abs=1e-12)
        assert 1 <= relevant_count(model, query) <= count


CHAIN = Model(((), (0,), (1,)), ((0.3,), (0.2, 0.9), (0.1, 0.7)))
FORK = Model(((), (0,), (0,)), ((0.3,), (0.2, 0.9), (0.1, 0.7)))


def test_doing_is_seeing_at_a_root_and_only_there():
    seen, done = Query(2, {0: 1}, {}, "association"), Query(2, {}, {0: 1}, "intervention")
    assert answer(CHAIN, seen) == pytest.approx(answer(CHAIN, done))
    seen, done = Query(2, {1: 1}, {}, "association"), Query(2, {}, {1: 1}, "intervention")
    assert answer(FORK, seen) != pytest.approx(answer(FORK, done))
    assert answer(FORK, done) == pytest.approx(0.3 * 0.7 + 0.7 * 0.1), "as if nobody had acted"


def test_a_counterfactual_shares_the_noise_of_the_fact():
    # Had the cause been 1: who is 1 already stays 1, for the rate only rises.
    kept = Query(1, {0: 0, 1: 1}, {0: 1}, "counterfactual")
    assert answer(CHAIN, replace(kept, seen={0: 0, 1: 1})) == pytest.approx(1.0)
    fell = replace(kept, seen={0: 0, 1: 0})
    assert answer(CHAIN, fell) == pytest.approx((0.9 - 0.2) / 0.8)
    impossible = Model(((), (0,)), ((1.0,), (0.5, 0.5)))
    assert answer(impossible, Query(1, {0: 0}, {}, "association")) is None


def test_difficulty_is_counted_after_surgery():
    assert relevant_count(CHAIN, Query(2, {}, {1: 1}, "intervention")) == 2
    assert relevant_count(CHAIN, Query(2, {1: 1}, {}, "association")) == 3
    assert relevant_count(CHAIN, Query(2, {1: 0, 0: 1}, {1: 1}, "counterfactual")) == 3


def test_pay_is_the_papers_within_its_slack():
    truth = {"answer": [0.42, 0.58], "relevant": 3}
    for text, reward in (("0.42, 0.58", 1.0), ("0.43, 0.57", 1.0), ("0.41, 0.59", 1.0),
                         ("0.44, 0.56", 0.2), ("0.58, 0.42", 0.2), ("0.4249, 0.5751", 1.0),
                         ("0.42", 0.0), ("0.42, 0.5, 0.08", 0.0), ("likely", 0.0)):  # fmt: skip
        score = CAUSES.score(f"<answer>{text}</answer>", truth)
        assert score.reward == pytest.approx(reward), text
        assert score.correct == (reward == 1.0)


def read_back(draft):
    """The model that the words tell, by its names."""
    tables, above = {}, {}
    for name, given, rate in re.findall(
        r"P\((\w+) = 1(?: \| ([^)]*))?\) = (\d\.\d\d)", draft.fields["tables"]
    ):
        pairs = tuple(sorted(re.findall(r"(\w+) = (\d)", given)))
        tables[name, pairs] = float(rate)
        above[name] = [parent for parent, _ in pairs]
    order: list[str] = []
    while len(order) < len(above):
        order += [n for n in above if n not in order and set(above[n]) <= set(order)]
    parents = tuple(tuple(order.index(p) for p in sorted(above[n])) for n in order)
    numbers = []
    for name in order:
        names = sorted(above[name])
        states = product("01", repeat=len(names))
        numbers.append(tuple(tables[name, tuple(zip(names, s, strict=True))] for s in states))
    return Model(parents, tuple(numbers)), order


@pytest.mark.parametrize("level", LEVELS)
def test_the_words_alone_tell_the_answer(level):
    for draft in drafts(CAUSES, 4, level=level, show="text", variables=5):
        model, names = read_back(draft)
        told = draft.fields["question"].split(
            "sets" if level == "intervention" else "Had somebody set"
        )
        done = dict(re.findall(r"(\w+) = (\d)", told[1])) if len(told) > 1 else {}
        seen = dict(re.findall(r"(\w+) = (\d)", told[0]))
        whose = r"likely is (\w+) (?:then )?to be|likely would (\w+) have been"
        asked = re.search(whose, draft.fields["question"])
        assert asked
        query = Query(
            names.index(asked[1] or asked[2]),
            {names.index(n): int(v) for n, v in seen.items()},
            {names.index(n): int(v) for n, v in done.items()},
            level,
        )
        assert round(answer(model, query), 2) == pytest.approx(draft.truth["answer"][1])


def test_a_picture_hides_the_names_of_causes_and_shows_them_all():
    for draft in drafts(CAUSES, 3, variables=5):
        picture = draft.visuals[0].pixels
        assert picture.shape[2] == 3 and (picture < 100).any()
        assert " = 0," not in draft.fields["tables"] and "alphabetical" in draft.fields["graph"]


@pytest.mark.parametrize(("task", "knobs", "why"), [
    (BRICKS, {"bricks": 1}, "at least 2"), (BRICKS, {"bricks": 20, "others": 9}, "at most 26"),
    (CAUSES, {"variables": 2}, "3 to 12"), (CAUSES, {"parents": 4}, "1 to 3"),
])  # fmt: skip
def test_sizes_that_do_not_work_are_refused(task, knobs, why):
    with pytest.raises(ValueError, match=why):
        task.propose((), task.complete(knobs), Streams("x"))
