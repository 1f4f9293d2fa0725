"""PEARL's perception sub-questions: asking, marking, leaks."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.perception.checklist import (
    Check,
    checks_of,
    leaks,
    marks,
    perception_accuracy,
    perception_prompt,
    question_text,
    questions_about,
)
from mmrl.types import Media, Prompt

ROWS = [
    {"q": "How many cats are there?", "a": "3", "type": "number"},
    {"q": "Is the door open?", "a": "yes", "type": "bool"},
    {"q": "Which colour is the car? A. red B. blue", "a": "B", "type": "choice"},
    {"q": "What does the sign say?", "a": "Exit"},
]
CHECKS = checks_of({"checklist": ROWS})


def prompt(**extra: Any) -> Prompt:
    content = [{"type": "image"}, {"type": "text", "text": "Solve it."}, {"type": "image"}]
    image = Media(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    return Prompt(
        "q1", ({"role": "user", "content": content},), (image, image), "7", extra=extra
    )


def test_marks_by_number():
    assert marks("1. 3\n2. Yes\n3. B\n4. exit.", CHECKS) == (1, 1, 1, 1)
    assert marks("4) Exit\n2: yes it is\n1. three", CHECKS)[1::2] == (1, 1)
    assert marks("1. 4\n2. no\n3. A\n4. Enter", CHECKS) == (0, 0, 0, 0)
    assert marks("3 cats, door open", CHECKS) == (0, 0, 0, 0)
    assert marks("2. yes or no", CHECKS)[1] == 0
    assert marks("1. 2\n1. 3", CHECKS)[0] == 0 and marks("1. 3\n1. 3", CHECKS)[0] == 1


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(4)), right=st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_order_of_sub_questions_does_not_matter(order, right):
    answers = [row["a"] if good else "zzz" for row, good in zip(ROWS, right, strict=True)]
    checks = [CHECKS[index] for index in order]
    text = "\n".join(f"{place}. {answers[index]}" for place, index in enumerate(order, start=1))
    assert marks(text, checks) == tuple(float(right[index]) for index in order)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_no_answer_raises(text):
    for answer in (text, f"1. {text}", f"1. {text}\n2. {text}\n3. {text}\n4. {text}"):
        assert all(mark in (0.0, 1.0) for mark in marks(answer, CHECKS))


def test_perception_prompt_keeps_the_media_and_asks_only_the_list():
    asked = perception_prompt(prompt(checklist=ROWS, label="secret"))
    assert asked is not None and asked.id == "q1#checklist" and len(asked.media) == 2
    parts = asked.messages[0]["content"]
    assert [part["type"] for part in parts] == ["image", "image", "text"]
    assert parts[-1]["text"] == question_text(CHECKS) and "Solve it." not in parts[-1]["text"]
    assert asked.extra["checklist_of"] == "q1" and "label" not in asked.extra
    assert asked.answer == ["3", "yes", "B", "Exit"]
    assert perception_prompt(prompt()) is None


def test_perception_accuracy_is_the_mean_and_is_not_available_elsewhere():
    asked = perception_prompt(prompt(checklist=json.dumps(ROWS)))
    assert perception_accuracy(SimpleNamespace(text="1. 3\n2. no\n3. B", prompt=asked)) == 0.5  # type: ignore[arg-type]
    assert (
        perception_accuracy(SimpleNamespace(text="1. 3", prompt=prompt(checklist=ROWS))) is None
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "row",
    [
        {"q": "x"},
        {"q": "x", "a": "many", "type": "number"},
        {"q": "x", "a": "maybe", "type": "bool"},
        {"q": "x", "a": "red", "type": "choice"},
        {"q": "x", "a": "y", "type": "essay"},
        {"q": "x", "a": " "},
        "x",
    ],
)
def test_an_unreadable_list_is_the_rows_fault(row):
    with pytest.raises(ValueError, match="prompt 'q1': the column checklist"):
        checks_of({"checklist": [row]}, "q1")


def test_leaks_are_found():
    checks = [
        Check("What number is on the shirt?", "7", "number"),
        Check("What animal is it?", "dog"),
    ]
    assert leaks(checks, "The dog with shirt 17 runs.") == (checks[1],)
    assert leaks([*checks, Check("Is the dog wet?", "yes", "bool")], "How old is it?") == (
        checks[1],
    )
    assert leaks(checks, "What is it?") == ()


def test_questions_from_labelled_boxes():
    objects = [
        {"label": "cat", "bbox_2d": [0, 0, 10, 10]},
        {"label": "dog", "bbox_2d": [50, 0, 60, 10]},
        {"label": "car", "bbox_2d": [20, 0, 40, 10]},
        {"label": "cat", "bbox_2d": [80, 0, 90, 10]},
    ]
    checks = questions_about(objects)
    assert [check.answer for check in checks] == ["2", "1", "1", "no"]
    assert "dog" in checks[3].question and checks[3].question.index("dog") < checks[
        3
    ].question.index("car")
    assert len(questions_about(objects, most=2)) == 2
