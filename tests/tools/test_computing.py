"""Calculator and Python: what they compute, what they refuse, and that nothing takes long."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.calls import Action
from mmrl.ground.sandbox import Isolation, Limits, Outcome
from mmrl.tools import python
from mmrl.tools.calculator import Calculator, computed, written
from mmrl.tools.python import Python, unfenced_code
from mmrl.tools.tool import BadAction, Trajectory
from mmrl.types import Prompt

WAY = Trajectory(Prompt("p", ()))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(3 + 4) * 12", "84"),
        ("2^10 - 2**3", "1016"),
        ("1 / 3", "0.333333333333"),
        ("-7 // 2 % 3", "2"),
        ("sqrt(2) * sqrt(2)", "2"),
        ("max(1, 2.5, round(3.2))", "3"),
        ("cos(pi)", "-1"),
        ("6 × 7 ÷ 2", "21"),
        ("10**30", "1" + "0" * 30),
    ],
)
def test_a_calculator_computes(expression, value):
    assert Calculator().act(Action("calculator", {"expression": expression}), WAY).text == value


@pytest.mark.parametrize(
    "expression",
    [
        "", "1 +", "1 / 0", "9**9**9**9", "2**99999999", "10.0**400", "(-1)**0.5", "0**-1", "nan", "x",
        "__import__('os')", "(1).real", "[1][0]", "'a' * 9", "True + 1", "1j", "1 if 2 else 3", "lambda: 1", "sqrt(-1)",
        "round(number=1)", "min()", "log(0)", "exp(10**10)", "1" * 501, "(" * 200 + "1", "1 << 9",
        "9**999 * 9**999 * 9**999", "f(1)", "round(1, 2, 3)", "gcd(1.5, 2)", "1; 2", "a := 1",
    ],
)  # fmt: skip
def test_what_is_no_sum_is_refused_at_once(expression):
    began = time.process_time()
    with pytest.raises(BadAction):
        written(computed(expression))
    assert time.process_time() - began < 0.5


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="0123456789+-*/%.()^e πsqrtmax,", max_size=60))
def test_any_text_gives_a_number_or_a_reason(text):
    try:
        assert written(computed(text))
    except BadAction as error:
        assert str(error)


def act(source, tool):
    return tool.act(Action("python", {"code": source}), WAY)


def test_python_tells_what_a_program_prints_and_how_it_fails(monkeypatch):
    ran = []

    def outcome_of(source, *, limits):
        ran.append((source, limits))
        return Outcome(*OUTCOMES[source])

    monkeypatch.setattr(python, "isolation", lambda: Isolation(True))
    monkeypatch.setattr(python, "run_python", outcome_of)
    tool = Python(limits=Limits(seconds=3), errors=9)
    assert act("a", tool).text == "42" and act("a", tool).found == {"ok": True, "ended": "exit"}
    assert act("b", tool).text == "ine\nError"
    assert act("c", tool).text == "1\nIt was ended: it took too long."
    assert act("d", tool).text == python.SILENT
    with pytest.raises(RuntimeError, match="did not come up"):
        act("e", tool)
    assert {limits.seconds for _, limits in ran} == {3}


OUTCOMES = {
    "a": ("exit", 0, "42\n", "", 0.1),
    "b": ("exit", 1, "", "Line\nError", 0.1),
    "c": ("time", None, "1", "", 3.0),
    "d": ("exit", 0, "", "", 0.1),
    "e": ("failed", None, "", "no room", 0.1),
}


def test_python_is_refused_where_programs_cannot_be_shut_in(monkeypatch):
    monkeypatch.setattr(
        python, "isolation", lambda: Isolation(False, "there are no namespaces here.")
    )
    with pytest.raises(ValueError, match=r"no namespaces.*Python\(open=True\)"):
        Python()
    assert Python(open=True).stop == ("</python>",)


def test_python_runs_in_the_real_sandbox():
    tool = Python(open=True)
    fenced = "```python\nprint(6 * 7)\n```"
    assert unfenced_code(fenced) == "print(6 * 7)" and act(fenced, tool).text == "42"
