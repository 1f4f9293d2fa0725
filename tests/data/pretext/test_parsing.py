"""The parser policy: what counts as an answer, and that no string breaks it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.pretext.catalogue import TASKS
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError, extract
from mmrl.data.pretext.surface import Surface

BOXED, PLAIN, THINK = Surface(tags="boxed"), Surface(tags="plain"), Surface(thinking="think")


@pytest.mark.parametrize(
    ("reply", "surface", "body"),
    [
        ("<answer>3, 1, 2</answer>", Surface(), "3, 1, 2"),
        ("<answer>1</answer> no: <answer> 2 </answer>", Surface(), "2"),
        ("<ANSWER>2</Answer>", Surface(), "2"),
        ("<think>maybe <answer>1</answer> or <answer></think><answer>4</answer>", THINK, "4"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", BOXED, "\\frac{1}{2}"),
        ("  ٣, ４ – 5 ", PLAIN, "3, 4 - 5"),
        ("<answer>１→２</answer>", Surface(), "1>2"),
    ],
)
def test_the_last_answer_is_cut_out(reply: str, surface: Surface, body: str) -> None:
    assert extract(reply, surface) == body


@pytest.mark.parametrize(
    ("reply", "surface", "kind"),
    [
        ("42", Surface(), "missing"),
        ("<answer>1<answer>2</answer></answer>", Surface(), "nested"),
        ("<answer>1</answer><answer>2", Surface(), "unclosed"),
        ("1</answer>", Surface(), "unopened"),
        ("<answer> </answer>", Surface(), "empty"),
        ("\\boxed{1", BOXED, "unclosed"),
        ("\\boxed{\\boxed{1}}", BOXED, "nested"),
        ("<answer>" + "9" * 5000 + "</answer>", Surface(), "long"),
        ("x" * 300_000, PLAIN, "long"),
    ],
)
def test_each_broken_form_has_its_own_kind(reply: str, surface: Surface, kind: str) -> None:
    found = extract(reply, surface)
    assert isinstance(found, ParseError) and found.kind == kind


@pytest.mark.parametrize(
    "body", ["3, 1, 2", "3 1 2", "312", "3->1->2", "[3; 1; 2]", "(3|1|2)", "3,1,2"]
)
def test_orders_are_read_with_any_separator(body: str) -> None:
    assert parsing.integers(body, 3) == (3, 1, 2)


@pytest.mark.parametrize(
    ("body", "count", "kind"),
    [("3, 1", 3, "length"), ("3, 1, x", 3, "malformed"), ("3.0, 1, 2", 3, "malformed"), ("[]", 3, "empty"),
     ("order 3 1 2", 3, "malformed"), ("1234567890, 1, 2", 3, "malformed"), ("1234567890123", 3, "length")],
)  # fmt: skip
def test_wrong_orders_are_refused(body: str, count: int, kind: str) -> None:
    found = parsing.integers(body, count)
    assert isinstance(found, ParseError) and found.kind == kind


def test_prose_is_allowed_only_when_lenient() -> None:
    assert parsing.integers("the order is 3 1 2", 3, lenient=True) == (3, 1, 2)
    assert parsing.interval("from 2 to 3.5 seconds", lenient=True) == (2.0, 3.5)
    assert isinstance(parsing.interval("from 2 to 3.5 seconds"), ParseError)


@pytest.mark.parametrize(
    "body", ["2.0-3.5", "2 s to 3.5 s", "[2, 3.5]", "2 sec - 3.5 seconds", "2~3.5", "2.-3.5"]
)
def test_intervals_are_read_with_units_and_brackets(body: str) -> None:
    assert parsing.interval(body) == (2.0, 3.5)


def test_intervals_keep_their_order_and_range() -> None:
    assert isinstance(parsing.interval("3.5-2"), ParseError)
    assert isinstance(parsing.interval("-1-2"), ParseError)
    assert parsing.intervals("5-6; 1-2") == ((1.0, 2.0), (5.0, 6.0))
    assert parsing.intervals("1-2, 5-6") == ((1.0, 2.0), (5.0, 6.0))
    assert isinstance(parsing.intervals("1-2; x"), ParseError)


@pytest.mark.parametrize(
    ("body", "option"), [("b", "B"), ("(B)", "B"), ("B.", "B"), ("[b]:", "B")]
)
def test_choices_ignore_case_and_brackets(body: str, option: str) -> None:
    assert parsing.choice(body, ["A", "B"]) == option


def test_choices_outside_the_options_are_refused() -> None:
    outside, prose = parsing.choice("E", ["A", "B"]), parsing.choice("A or B", ["A", "B"])
    assert isinstance(outside, ParseError) and outside.kind == "range"
    assert isinstance(prose, ParseError) and prose.kind == "malformed"


def test_numbers_and_words() -> None:
    assert parsing.number("90°", ("°", "degrees")) == 90.0
    assert parsing.number("90 Degrees.", ("degrees",)) == 90.0
    assert isinstance(parsing.number("1e5"), ParseError) and isinstance(
        parsing.number("nan"), ParseError
    )
    assert parsing.numbers("(1, 2.5, -3, .5)", 4) == (1.0, 2.5, -3.0, 0.5)
    assert parsing.words("Pan Left ->  zoom in", 2) == ("pan left", "zoom in")


ODD = st.text(
    alphabet=st.sampled_from(list("0123456789,;.-–→()[]{}<>/\\ answerboxedthinkABsto\n\t٣")),
    max_size=80,
) | st.text(max_size=40)


@settings(max_examples=300, deadline=None)
@given(ODD, st.sampled_from([Surface(), BOXED, PLAIN, THINK]))
def test_no_string_raises(text: str, surface: Surface) -> None:
    for reply in (text, f"<answer>{text}</answer>", f"\\boxed{{{text}}}"):
        body = extract(reply, surface)
        if isinstance(body, ParseError):
            continue
        for read in (
            parsing.integers,
            parsing.numbers,
            parsing.number,
            parsing.interval,
            parsing.intervals,
        ):
            read(body)
        parsing.integers(body, 4, lenient=True)
        parsing.choice(body, ["A", "B"])
        parsing.words(body, 2)


@pytest.mark.parametrize(
    "unit",
    [
        "1 ",
        "1-",
        "(",
        "<answer>",
        "\\boxed{",
        "1.1",
        "- ",
        " ",
        "1 s",
        "s",
        "→",
        "{",
        "9",
        "A, ",
    ],
)
def test_time_is_linear_in_the_reply(unit: str) -> None:
    """No pattern backtracks: a body at the limit is read within a millisecond or two, whatever it repeats."""
    body = (unit * 2000)[: parsing.LONGEST_BODY - 1]
    for read in (
        parsing.integers,
        parsing.numbers,
        parsing.number,
        parsing.interval,
        parsing.intervals,
        parsing.words,
    ):
        times = []
        for _ in range(5):
            start = time.thread_time()
            read(body)
            times.append(time.thread_time() - start)
        assert min(times) < 0.005, f"{read.__name__} took {min(times):.4f} s on {unit!r}"
    start = time.thread_time()
    for surface in (Surface(), BOXED, PLAIN, THINK):
        extract(unit * 20_000, surface)
    assert time.thread_time() - start < 0.5


def test_every_task_reads_text_without_raising_and_pays_only_solutions() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS)
