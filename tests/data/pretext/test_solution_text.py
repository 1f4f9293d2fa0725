"""Anybody's worked solution: its steps, what may be hidden in it, and its order."""

import re

import pytest

from mmrl.data.pretext.craft.solution_text import (
    LONGEST,
    candidate_spans,
    hide,
    shuffle,
    split_steps,
)
from mmrl.data.pretext.marking.rewards import is_permutation
from mmrl.data.pretext.tasks.masked_fill import MaskedFillTask
from mmrl.data.pretext.tasks.step_reorder import StepReorderTask
from mmrl.ground.seeds import philox

STEPS = [
    "Let the width be w = 12.",
    "The length is l = w + 3.5 = 15.5.",
    "Next, the area is $A = w \\cdot l = 186$ square metres.",
    "Finally, half of it is B = 93.",
]
SOLUTIONS = {
    "numbered": "\n".join(f"{n}. {step}" for n, step in enumerate(STEPS, 1)),
    "steps": "\n".join(f"Step {n}: {step}" for n, step in enumerate(STEPS, 1)),
    "paragraphs": "\n\n".join(STEPS),
    "lines": "\n".join(STEPS),
    "sentences": " ".join(STEPS),
}


@pytest.mark.parametrize("way", SOLUTIONS)
def test_solutions_are_split_in_the_way_they_are_written(way):
    assert split_steps(SOLUTIONS[way]) == STEPS


def test_short_pieces_join_the_step_before_and_other_texts_are_refused():
    assert split_steps("\n".join([*STEPS, "= 93."])) == [*STEPS[:-1], f"{STEPS[-1]} = 93."]
    assert split_steps("One sentence. Another one follows here.") is None
    assert split_steps("") is None
    assert split_steps("a long step of some words.\n" * (LONGEST // 20)) is None


@pytest.mark.parametrize(
    ("step", "spans"),
    [
        ("Let w = 12.", ["12"]),
        ("x = a + 3.5 = 15.5.", ["a + 3.5", "3.5", "15.5"]),
        ("There are 3 dogs and 4 cats.", ["3", "4"]),
        ("The price is 1,200 for x2 items.", []),
        ("$A = \\frac{x}{2} = 7$ m", ["\\frac{x}{2}", "7"]),
        ("No number stands here.", []),
    ],
)
def test_numbers_and_right_hand_sides_may_be_hidden(step, spans):
    assert {step[slice(*span)] for span in candidate_spans(step)} == set(spans)


def test_the_hidden_spans_restore_the_text_and_stand_nowhere_else():
    question = "A garden is 186 large. How large is half of it?"
    for seed in range(40):
        found = hide(STEPS, 3, question, philox(seed))
        assert found is not None
        lines, answer = found
        assert 1 <= len(answer) <= 3 and lines[-1] == STEPS[-1], "the last step stays"
        restored = "\n".join(lines)
        for span in answer:
            assert not re.search(
                rf"(?<!\w){re.escape(span)}(?!\w)", f"{question}\n{restored}"
            ), span
        for place, span in enumerate(answer, 1):
            restored = restored.replace(f"[MASK_{place}]", span)
        assert restored == "\n".join(STEPS)
        assert "186" not in answer, "the question tells it"
        truth = {"answer": answer}
        task = MaskedFillTask()
        assert task.score(f"<answer>{task.format(truth)}</answer>", truth).correct
    assert hide(["no number"] * 4, 3, "", philox(0)) is None
    assert hide(STEPS, 3, question, philox(7)) == hide(STEPS, 3, question, philox(7))


@pytest.mark.parametrize("by_needs", [False, True])
def test_shuffled_steps_do_not_tell_their_order(by_needs):
    found = shuffle(STEPS, by_needs, philox(1))
    assert found is not None
    lines, answer, asked = found
    assert is_permutation(answer, [line.split(".")[0] for line in lines])
    assert [line[0] for line in lines] == ["A", "B", "C", "D"] and answer != [
        "A",
        "B",
        "C",
        "D",
    ]
    assert not re.search(r"Next|Finally|^\w\. \d\.", "\n".join(lines))
    assert len(asked) == (3 if by_needs else 6), "w before l, w and l before A; or all pairs"
    truth = {"answer": answer, "needs": asked, "gamma": 0.5}
    task = StepReorderTask()
    assert task.score(f"<answer>{', '.join(answer)}</answer>", truth).reward == 1.0
    backwards = task.score(f"<answer>{', '.join(answer[::-1])}</answer>", truth)
    assert backwards.reward == 0.0 and not backwards.correct


def test_orders_that_cannot_be_told_are_not_asked_for():
    assert shuffle(["the same step here"] * 4, False, philox(0)) is None
    assert shuffle([f"step number {n}" for n in range(13)], False, philox(0)) is None
    assert (
        shuffle(["no letters at all", "nor here", "nothing", "at last"], True, philox(0))
        is None
    )
    swapped = ["x = 1 comes first", "y = x + 1 follows", "say 2", "say 3"]
    found = shuffle(swapped, True, philox(0))
    assert found is not None and len(found[2]) == 1, "only x before y is asked"
