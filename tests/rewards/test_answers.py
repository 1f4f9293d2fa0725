"""Answers: extraction, comparison, and no string that raises or takes long."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.answers import boxed, tagged
from mmrl.rewards.answers import (
    final_answer,
    last_number,
    matches,
    named_choice,
    read_number,
    references,
    same_choice,
    same_math,
    same_number,
    same_text,
)
from mmrl.rewards.functions import (
    boxed_accuracy,
    choice_accuracy,
    exact_accuracy,
    number_accuracy,
    tagged_accuracy,
)

CUT_OFF = [
    r"\boxed{1",
    r"So \boxed{1",
    r"\boxed{1}. Better: \boxed{",
    r"\boxed{1} or \boxed{\frac{1}{1}",
    "<answer>1",
    "12 cows and 5 dogs make <answer>1",
    "<answer>1</answer> No: <answer>",
    r"<answer>\boxed{1</answer>",
    "<think>it is 1",
    r"<think>it is \boxed{1}",
    "<think>it is <answer>1</answer>",
    "<think>a</think><think>it is <answer>1</answer>",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} then \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\}", r"a \\"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{1} and \boxed{2", None),
        (r"\fbox{3}", None),
        ("none", None),
        ("", None),
    ],
)
def test_boxed_takes_the_last_closed_box(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>4</answer>", "4"),
        ("<answer>\n4\n</answer>", "4"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("<answer>A</answer> no, <answer>B", None),
        ("<answer><answer>4</answer></answer>", "4"),
        ("4", None),
    ],
)
def test_tagged_takes_the_last_closed_tag(text: str, expected: str | None) -> None:
    assert tagged(text) == expected


def test_final_answer_prefers_tag_then_box_then_the_rest() -> None:
    assert (
        final_answer(r"<think>\boxed{1}</think><answer>the value is \boxed{2}</answer>") == "2"
    )
    assert final_answer(r"<think>x</think>it is \boxed{2}") == "2"
    assert final_answer("<think>x</think> 2 ") == "2"
    assert final_answer("<think>I believe that it is 2") == ""


def paid(reward: Callable[..., float], text: str, answer: object) -> float:
    """What a reward pays; it reads no more of a rollout than this."""
    return reward(SimpleNamespace(text=text, prompt=SimpleNamespace(answer=answer)))


@pytest.mark.parametrize("text", CUT_OFF)
def test_what_never_closes_is_not_paid(text: str) -> None:
    rewards = [boxed_accuracy, tagged_accuracy, number_accuracy, exact_accuracy]
    assert [paid(reward, text, "1") for reward in rewards] == [0.0] * 4
    assert paid(choice_accuracy, text.replace("1", "B"), "B") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "A"),
        ("(A)", "A"),
        ("b)", "B"),
        ("B. a dog", "B"),
        ("**D**", "D"),
        (r"\text{C}", "C"),
        (r"$\mathrm{C}$", "C"),
        ("The answer is (E).", "E"),
        ("Option C", "C"),
        ("I think A is right", "A"),
        ("A because it is red", "A"),
        ("The correct answer is A, not B", "A"),
        ("the answer is A or B", None),
        ("(A) and (B)", None),
        ("A. B. C.", None),
        ("A or B", None),
        ("a cat", None),
        ("A cat", None),
        ("F", None),
        ("", None),
    ],
)
def test_choice_names_one_option(text: str, expected: str | None) -> None:
    assert named_choice(text) == expected


def test_choice_letters_and_unusable_reference() -> None:
    assert named_choice("(F)", "ABCDEF") == "F"
    assert same_choice("(B)", "B")
    assert not same_choice("C", "B")
    with pytest.raises(ValueError, match="names no option"):
        same_choice("B", "a red dog")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5 cm", Fraction("1234.5")),
        ("-3/4", Fraction(-3, 4)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        (r"-1\frac{1}{2}", Fraction(-3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"\frac12", Fraction(1, 2)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        ("−7", Fraction(-7)),
        ("$1{,}000$", Fraction(1000)),
        ("$5", Fraction(5)),
        ("x = 2e3", Fraction(2000)),
        (".5", Fraction(1, 2)),
        ("12 apples", Fraction(12)),
        (r"90^{\circ}", Fraction(90)),
        ("10 degrees", Fraction(10)),
    ],
)
def test_number_reads(text: str, value: Fraction) -> None:
    found = read_number(text)
    assert found is not None and found.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "1/0",
        r"\frac{1}{0}",
        "1, 2",
        "3+4",
        "7-3",
        "10:30",
        "12 34",
        r"2\pi",
        "5x",
        "1e999",
        "9" * 300,
    ],
)
def test_number_refuses(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("5 cm", "5", True),
        ("5 cm", "5 m", False),
        ("90°", "90 degrees", True),
        ("50%", "0.5", True),
        (r"50\%", "50", True),
        ("50%", "50%", True),
        ("50%", "0.5%", False),
        ("0.3333333", "1/3", True),
        ("0.33", "1/3", False),
        ("1,000", "1000", True),
        ("-3", "3", False),
        ("", "0", False),
    ],
)
def test_same_number(answer: str, reference: str, equal: bool) -> None:
    assert same_number(answer, reference) is equal


def test_last_number_of_free_text() -> None:
    assert last_number("I count 3 cats and 12 dogs.") == "12"
    assert last_number("about −4.5 of them") == "-4.5"
    assert last_number("v2 nothing") == ""


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("x+1", "1+x", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"\frac{1}{2}", "0.5", True),
        ("(1,2)", "(1, 2)", True),
        ("(2,3)", "(3,2)", False),
        ("x=4", "4", True),
        ("Yes", "yes", True),
        (r"\text{A}", "A", True),
        (r"2\pi", "2", False),
        ("5x", "5", False),
        ("5n", "5", False),
        ("act", "cat", False),
        ("", "4", False),
        ("", "", False),
    ],
)
def test_same_math(answer: str, reference: str, equal: bool) -> None:
    assert same_math(answer, reference) is equal


def test_references_of_any_kind() -> None:
    assert references(4) == ("4",)
    assert references(["a", 2]) == ("a", "2")
    assert references(r"so $x$ is \boxed{4}") == ("4",)
    assert references("<answer> B </answer>") == ("B",)
    assert matches("4.0", references([3, 4]), same_number) == 1.0
    assert matches(None, ("None",), same_text) == 0.0
    for nothing in (None, [], ["a", None]):
        with pytest.raises(ValueError, match="reference answer"):
            references(nothing)


WILD = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="\\{}[]()<>/$^_-+.,0123456789eE %ABCDEboxedfracanswer|\n", max_size=120),
)


@settings(max_examples=150, deadline=None)
@given(WILD, WILD)
def test_no_string_raises(text: str, other: str) -> None:
    for extract in (boxed, tagged, final_answer, named_choice, read_number, last_number):
        extract(text)
    same_text(text, other)
    same_number(text, other)


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="\\{}()x+-=,.0123 frac", max_size=30))
def test_no_expression_raises(text: str) -> None:
    same_math(text, r"\frac{x}{2}")


@settings(max_examples=50, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_fractions_are_read_back(numerator: int, denominator: int) -> None:
    for text in (f"{numerator}/{denominator}", rf"\frac{{{numerator}}}{{{denominator}}}"):
        found = read_number(text)
        assert found is not None and found.value == Fraction(numerator, denominator)


@pytest.mark.parametrize(
    "unit",
    [
        "\\boxed{",
        "<answer>",
        "(A",
        " ",
        "1,",
        "{",
        "1 ",
        "\\frac",
        "the answer is ",
        "\\text{",
        "9",
        "$",
        "- ",
        "A. ",
    ],
)
def test_long_texts_take_linear_time(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    began = time.perf_counter()
    for extract in (boxed, tagged, final_answer, named_choice, read_number, last_number):
        extract(text)
    same_text(text, "x")
    same_math(text, "x+1")
    assert time.perf_counter() - began < 3.0


def test_importing_answers_and_rewards_loads_no_torch() -> None:
    code = "import sys, mmrl.rewards.pay, mmrl.rewards.worker; print('torch' in sys.modules, 'sympy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
