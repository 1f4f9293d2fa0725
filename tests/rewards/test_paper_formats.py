"""Forms that single papers pay for, against their published patterns on made-up answers."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.paper_formats import has_boxed_lines, has_open_answer

# The forms as regular expressions, which backtrack.
LINES = re.compile(
    r"<think>\n.*?\n</think>\n<answer>\n.*?\\boxed{.+?}.*?\n</answer>", re.DOTALL
)
OPEN = re.compile(r"<think>.*?</think>.*?<answer>.*?</answer>", re.DOTALL)
PIECES = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "\n", "\\boxed{", "}", "4", " ", "{"]
)
WHOLE = "<think>\n4\n</think>\n<answer>\n\\boxed{4}\n</answer>"


@st.composite
def nearly_right(draw):
    """A right answer with a stretch of it replaced."""
    start = draw(st.integers(0, len(WHOLE)))
    end = draw(st.integers(start, len(WHOLE)))
    return WHOLE[:start] + "".join(draw(st.lists(PIECES, max_size=4))) + WHOLE[end:]


@settings(max_examples=1500, deadline=None)
@given(st.one_of(nearly_right(), st.lists(PIECES, max_size=14).map("".join)))
def test_the_forms_are_those_of_the_patterns(text):
    assert has_boxed_lines(text) == bool(LINES.fullmatch(text))
    assert has_open_answer(text) == bool(OPEN.fullmatch(text))


def test_long_answers_take_linear_time():
    long = "<think>\n" + "\n</think>\n<answer>\n\\boxed{" * 50_000
    assert not has_boxed_lines(long) and not has_open_answer(long)
    assert has_boxed_lines(WHOLE) and has_open_answer("<think></think> so <answer></answer>")
