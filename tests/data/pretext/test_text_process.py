"""Step reorder and masked-then-fill, and the worked solutions they are made of."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.pretext.contract import Sample
from mmrl.data.pretext.craft.worked_steps import (
    calculation,
    closure,
    dependencies,
)
from mmrl.data.pretext.stream.samples import make
from mmrl.data.pretext.surface import Surface
from mmrl.data.pretext.tasks.masked_fill import (
    MaskedFillTask,
    equivalent_expressions,
    masked_lines,
    span_score,
)
from mmrl.data.pretext.tasks.step_reorder import StepReorderTask

REORDER, FILL = StepReorderTask(), MaskedFillTask()


def order_count(pairs: set[tuple[int, int]], count: int) -> int:
    """In how many orders the steps can stand, by trying all."""
    return sum(
        all(order.index(a) < order.index(b) for a, b in pairs)
        for order in permutations(range(count))
    )


def drawn(task, index: int = 0, **knobs) -> Sample:
    sample = make(task, (), knobs, index=index)
    assert isinstance(sample, Sample), sample
    return sample


@pytest.mark.parametrize("pair", [False, True])
def test_calculations_have_the_promised_number_of_orders(pair):
    found = 0
    for seed in range(30):
        steps = calculation(6, np.random.default_rng(seed), pair=pair)
        if steps is None:
            continue
        found += 1
        assert order_count(dependencies([step.text for step in steps]), 6) == (2 if pair else 1)
        known: dict[str, int] = {}
        for step in steps:
            value = (
                eval(step.expression.replace("×", "*"), {}, known) if step.sign else step.value
            )
            assert value == step.value and 10 <= value <= 99 and value not in known.values()
            known[step.letter] = value
    assert found > 20


def test_dependencies_do_not_depend_on_the_order_of_the_steps():
    steps = ["Let a = 12.", "b = a + 3 = 15.", "c = a × 2 = 24.", "d = b + c = 39."]
    pairs = dependencies(steps)
    assert pairs == {(0, 1), (0, 2), (1, 3), (2, 3)}
    assert closure(pairs, 4) == pairs | {(0, 3)}
    assert order_count(pairs, 4) == 2
    turned = dependencies(steps[::-1])
    assert {(3 - a, 3 - b) for a, b in turned} == pairs


@pytest.mark.parametrize("pair", [False, True])
def test_every_accepted_order_keeps_what_is_needed(pair):
    sample = drawn(REORDER, 2, steps=5, pair=pair)
    truth = sample.truth
    pay = {}
    for order in permutations(sorted(truth["answer"])):
        pay[order] = REORDER.verify(order, truth)
    right = [order for order, score in pay.items() if score.correct]
    assert len(right) == (2 if pair else 1) and tuple(truth["answer"]) in right
    knobs = REORDER.complete({"steps": 5, "pair": pair})
    assert np.mean([score.reward for score in pay.values()]) == pytest.approx(
        REORDER.chance_reward(knobs)
    )
    assert all(score.reward <= 0.5 for order, score in pay.items() if order not in right)
    assert {score.key for order, score in pay.items() if order in right} == {
        tuple(truth["answer"])
    }


def test_reorder_answers():
    truth = {
        "answer": ["B", "A", "C"],
        "needs": [["B", "A"], ["A", "C"], ["B", "C"]],
        "gamma": 0.5,
    }
    for text in ("B, A, C", "b a c", "BAC", "B -> A -> C", "B; A; C"):
        assert REORDER.score(Surface().wrap(text), truth).correct
    assert REORDER.score(Surface().wrap("A, B, C"), truth).reward == pytest.approx(0.5 * 2 / 3)
    for text in ("B, A", "B, B, C", "B, A, D", "BACC"):
        assert REORDER.score(Surface().wrap(text), truth).reward == 0.0


@pytest.mark.parametrize("spans", ["values", "expressions", "mixed"])
def test_putting_the_truth_back_restores_the_text(spans):
    for seed in range(10):
        steps = calculation(6, np.random.default_rng(seed))
        if steps is None:
            continue
        kinds = {"values": "value", "expressions": "expression"}
        hidden = {1: kinds.get(spans, "value"), 3: kinds.get(spans, "expression")}
        lines, answer = masked_lines(steps, hidden)
        text = "\n".join(lines)
        for place, span in enumerate(answer, 1):
            assert text.count(f"[MASK_{place}]") == 1
            text = text.replace(f"[MASK_{place}]", span)
        assert text == "\n".join(step.text for step in steps)


def test_hidden_spans_are_not_visible():
    for index in range(12):
        sample = drawn(FILL, index, spans="mixed", masks=3, steps=7)
        text = sample.messages[0]["content"][-1]["text"].split("The answer is")[0]
        tokens = text.replace(".", " ").split()
        assert not set(sample.truth["answer"]) & set(tokens)


def test_fill_answers():
    truth = {"answer": ["42", "a + b"]}
    for text in (
        "1: 42; 2: a + b",
        "1: 42.0\n2: b+a",
        "2: (a)+b; 1: 42",
        "[MASK_1]: 42; [MASK_2]: a + b; 3: 9",
    ):
        assert FILL.score(Surface().wrap(text), truth).correct, text
    assert FILL.score(Surface().wrap("1: 42"), truth).reward == 0.5
    assert FILL.score(Surface().wrap("1: 41; 2: a + b"), truth).reward == 0.5
    assert FILL.score(Surface().wrap("1: 41; 1: 42; 2: a + b"), truth).reward == 0.5
    assert FILL.score(Surface().wrap("1: 42; 2: a + c"), truth).reward == pytest.approx(
        (1 + 0.5 * 2 / 3) / 2
    )
    assert FILL.score(Surface().wrap("42"), {"answer": ["42"]}).correct
    assert FILL.score(Surface().wrap("no idea"), truth).reward == 0.0


def test_expressions_are_compared_as_functions():
    for first, second in (
        ("a × b", "b*a"),
        ("2 × a", "a + a"),
        ("(a + b) × 2", "2*b + 2*a"),
        ("a - b - c", "a-(b+c)"),
    ):
        assert equivalent_expressions(first, second)
    for first, second in (
        ("a × b", "84"),
        ("a - b", "b - a"),
        ("a + b", "a + b +"),
        ("a", "(a"),
        ("", "a"),
        ("ab", "a"),
    ):
        assert not equivalent_expressions(first, second)
    assert span_score("$a \\times b$", "b × a") == 1.0


@settings(max_examples=150, deadline=None)
@given(st.text("ab12+-*×() .$", max_size=90))
def test_wild_expressions_never_raise(text):
    assert 0.0 <= span_score(text, "a + b") <= 1.0
    assert span_score(text, "42") in (0.0, 1.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ["2if a", "1e5", "9en", "0x2", "3 or 4", "1in b"])
def test_what_python_would_warn_about_is_no_expression_and_silent(text):
    assert span_score(text, "a + b") == 0.0


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="4 to 12"):
        make(REORDER, (), {"steps": 3})
    with pytest.raises(ValueError, match="masks"):
        make(FILL, (), {"steps": 4, "masks": 3})
