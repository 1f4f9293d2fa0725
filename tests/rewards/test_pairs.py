"""Pairs of answer and reference with the verdicts of three graders, and laws that hold for all pairs."""

from __future__ import annotations

import csv
import random
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.recipes.shared.paying import Reward, StyleName, style_of
from mmrl.rewards.answers import same_math, same_number, verified
from mmrl.rewards.graders import GraderName
from mmrl.rewards.mathruler import grade_answer

TABLE = Path(__file__).with_name("pairs.tsv")
"""kind, answer, reference, then 1 or 0 of ours, math-verify and mathruler ("-": it never ends), and why we differ."""


def table() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


PAIRS = table()
NAMES = [f"{row['kind']}: {row['answer']} | {row['reference']}" for row in PAIRS]


@pytest.mark.parametrize("row", PAIRS, ids=NAMES)
def test_pair(row: dict[str, str]) -> None:
    answer, reference = row["answer"], row["reference"]
    assert same_math(answer, reference) is (row["ours"] == "1")
    for grader, say in (("math-verify", verified), ("mathruler", grade_answer)):
        if row[grader] != "-":
            assert say(answer, reference) is (row[grader] == "1"), grader


def test_the_table_is_large_and_every_difference_has_a_reason() -> None:
    assert len(PAIRS) >= 300
    assert len({(row["answer"], row["reference"]) for row in PAIRS}) == len(PAIRS)
    for row in PAIRS:
        differs = {row["math-verify"], row["mathruler"]} != {row["ours"]}
        assert bool(row["why we differ"]) is differs, row
    verdicts = Counter((row["kind"], row["ours"]) for row in PAIRS)
    kinds = {kind for kind, _ in verdicts} - {"nothing"}
    # A grader that always says yes, or no, fails in every kind.
    assert all(verdicts[kind, "0"] and verdicts[kind, "1"] for kind in kinds)


SEPARATORS = st.sampled_from([", ", ",", "; ", ";", " ", " → ", " > ", " and ", r" \to ", "-"])
FRAMES = st.sampled_from([("", ""), ("[", "]"), ("(", ")"), ("$", "$"), (r"\text{", "}")])
ITEMS = st.one_of(
    st.lists(st.integers(0, 30), min_size=3, max_size=9, unique=True).map(
        lambda numbers: [str(number) for number in numbers]
    ),
    st.lists(st.sampled_from("ABCDEFGH"), min_size=3, max_size=8, unique=True),
)


@settings(max_examples=200, deadline=None)
@given(ITEMS, SEPARATORS, FRAMES, st.randoms(use_true_random=False))
def test_permutations_of_distinct_items_are_never_equal(
    items: list[str], separator: str, frame: tuple[str, str], chance: random.Random
) -> None:
    shuffled = list(items)
    chance.shuffle(shuffled)
    written, other = (
        frame[0] + separator.join(order) + frame[1] for order in (items, shuffled)
    )
    assert same_math(written, written)
    assert same_math(other, written) is (shuffled == items)
    if separator != " > ":  # a chain of relations says more than a list
        assert same_math(", ".join(shuffled), written) is (shuffled == items)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-(10**40), 10**40), st.sampled_from(["{}", "{:,}", "${}$", "{} cm", "x = {}"])
)
def test_neighbouring_integers_are_never_equal(number: int, spelling: str) -> None:
    text = spelling.format(number)
    assert same_math(text, str(number)) and same_math(str(number), text)
    assert not same_math(text, str(number + 1)) and not same_number(text, str(number - 1))
    assert not same_math(f"{number}.0000001", str(number))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**12), st.sampled_from(["cm", "kg", "s", "km/h", "m^2", "°", "$"]))
def test_another_unit_is_another_answer(number: int, unit: str) -> None:
    assert same_math(f"{number} {unit}", str(number))
    for other in {"mm", "g", "ms", "m/h", "mm^2", "rad", "€"} - {unit}:
        assert not same_math(f"{number} {other}", f"{number} {unit}")


WILD = st.one_of(
    st.text(min_size=1, max_size=60),
    st.text(alphabet="\\{}[]()<>/$^_-+.,:;0123456789eE %ABx=!°µ½\n", min_size=1, max_size=40),
)


@settings(max_examples=200, deadline=None)
@given(WILD)
def test_an_answer_equals_itself(text: str) -> None:
    # What is nothing but dressing is no answer, and so equals not even itself.
    if any(character.isalnum() for character in text):
        assert same_math(f"7{text}7", f"7{text}7")


@pytest.mark.parametrize(
    "bomb",
    [
        "9^{9^{9^{9}}}",
        "9^9^9^9",
        "9**9**9**9",
        "99999999!",
        "(10!)!",
        "((9!)!)!",
        "(x+1)^{12345678}",
        "2^{2^{2^{2^{2^{2}}}}}x",
        "10^{10^{10}}+x",
        r"\sum_{i=1}^{10^{12}} i",
        r"\binom{10^{12}}{5}x",
        "(" * 500 + "1" + ")" * 500,
        "{" * 1000,
        "1," * 900,
        "-" * 1500,
        "[" * 700 + "1,2",
        "(1,2)," * 200,
        r"\frac{" * 200 + "1",
        "9" * 1900 + "!",
        "1e9999",
        "2^" * 500,
    ],
)
def test_bombs_take_bounded_time(bomb: str) -> None:
    began = time.perf_counter()
    same_math(bomb, "x+1")
    same_math("x+1", bomb)
    same_math(bomb, "7")
    assert time.perf_counter() - began < 10.0


@pytest.mark.parametrize("style", ["box", "answer", "tag", "plain", "choice"])
@pytest.mark.parametrize("grader", ["ours", "math-verify", "mathruler"])
def test_grader_and_place(style: StyleName, grader: GraderName) -> None:
    pay = Reward(grader=grader).accuracy_of(style_of(style))

    def paid(answer: str, reference: str, closing: str = "") -> float:
        place = {"box": r"\boxed{", "choice": r"\boxed{", "plain": ""}.get(style, "<answer>")
        ends = {"box": "}", "choice": "}", "plain": ""}.get(style, "</answer>")
        text = f"{closing}{place}{answer}{ends}"
        return pay(SimpleNamespace(text=text, prompt=SimpleNamespace(answer=reference)))

    assert paid("B", "B") == 1.0 and paid("C", "B") == 0.0
    if grader == "ours":
        assert paid("B. dog", "B") == 1.0 and paid("C. dog", "B") == 0.0
        assert paid("B", "B", closing="<think>never closed ") == 0.0
    elif grader == "mathruler":  # its own rule: per cent signs are dropped
        assert paid("12%", "0.12") == 0.0 and paid("12%", "12") == 1.0
