"""EasyR1's rewards in their exact form: golden values, oddities, and the difference to our own forms."""

from __future__ import annotations

import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.rewards.easyr1 import (
    dapo_accuracy,
    dapo_form,
    easyr1_dapo,
    easyr1_math,
    easyr1_r1v,
    math_accuracy,
    r1v_accuracy,
    r1v_format,
)
from mmrl.rewards.functions import boxed_accuracy, think_format
from mmrl.rewards.mathruler import extract_boxed_content, grade_answer
from mmrl.types import Prompt, Rollout

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rewards"
OFFICIAL = {
    "easyr1_math": easyr1_math,
    "easyr1_r1v": easyr1_r1v,
    "easyr1_dapo": easyr1_dapo,
    "mathruler_extract_boxed": extract_boxed_content,
    "mathruler_grade": grade_answer,
}


def rollout(text: str, answer: object = "4") -> Rollout:
    prompt = Prompt("p0", [{"role": "user", "content": "How many?"}], answer=answer)
    return Rollout(
        prompt,
        0,
        torch.arange(2),
        torch.arange(3),
        torch.zeros(3, dtype=torch.uint8),
        text,
        "eos",
    )


def golden_cases() -> dict[str, list[dict[str, Any]]]:
    return json.loads((GOLDEN / "easyr1.json").read_text())["functions"]


@pytest.mark.parametrize("function", sorted(OFFICIAL))
def test_golden_rewards_easyr1(function: str) -> None:
    cases = golden_cases().get(function)
    if not cases:
        pytest.skip(f"{GOLDEN / 'easyr1.json'} has no case of {function}")
    for case in cases:
        found = OFFICIAL[function](**case["input"])
        expected = case["output"]
        if isinstance(expected, dict):
            expected = pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert found == expected, case["id"]


def test_golden_rewards_easyr1_has_known_functions_and_names_the_others() -> None:
    names = set(golden_cases())
    assert names & set(OFFICIAL), (
        f"{GOLDEN / 'easyr1.json'} holds no function that is known here: {sorted(names)}"
    )
    if unknown := sorted(names - set(OFFICIAL)):
        warnings.warn(f"golden functions that are not checked: {unknown}", stacklevel=1)


def test_golden_rewards_easyr1_parts_agree_with_the_whole() -> None:
    """The parts for `Rewards` give the numbers of the official function."""
    cases = golden_cases()
    for case in cases.get("easyr1_math", []):
        answer = rollout(case["input"]["response"], case["input"]["ground_truth"])
        assert math_accuracy(answer) == case["output"]["accuracy"], case["id"]
        assert think_format(answer) == case["output"]["format"], case["id"]
    for case in cases.get("easyr1_r1v", []):
        answer = rollout(case["input"]["response"], case["input"]["ground_truth"])
        assert r1v_accuracy(answer) == case["output"]["accuracy"], case["id"]
        assert r1v_format(answer) == case["output"]["format"], case["id"]
    for case in cases.get("easyr1_dapo", []):
        answer = rollout(case["input"]["response"], case["input"]["ground_truth"])
        assert dapo_accuracy(answer) == case["output"]["accuracy"], case["id"]


def test_the_documented_holes_are_open_here_and_closed_in_our_forms() -> None:
    nothing = rollout("I do not know", "None")
    assert math_accuracy(nothing) == 1.0 and boxed_accuracy(nothing) == 0.0
    lines = rollout("<think>t</think>\n<answer>\n4\n</answer>", "4")
    assert r1v_accuracy(lines) == 0.0 and r1v_format(lines) == 1.0
    percent = rollout(r"\boxed{12\%}", "0.12")
    assert math_accuracy(percent) == 0.0 and boxed_accuracy(percent) == 1.0
    root = rollout(r"\boxed{\sqrt{4}}", "2")
    assert math_accuracy(root) == 0.0 and boxed_accuracy(root) == 1.0


@pytest.mark.parametrize(
    ("given", "reference", "same"),
    [
        ("2/4", "1/2", False),
        ("0.5", "1/2", True),
        (r"\frac{\sqrt{12}}{2}", r"\sqrt{3}", True),
        (r"\text{ cm}", "cm", True),
        (r"(-\infty, 3]", r"(-\infty,3]", True),
        (r"3\pi", r"\pi\cdot 3", True),
        ("abc", "cba", False),
        ("5 million", "5000000", False),
        (r"x^{10}", r"x^{10}+0", False),
    ],
)
def test_grader_rules(given: str, reference: str, same: bool) -> None:
    assert grade_answer(given, reference) is same


def test_reference_must_be_there_and_may_have_alternatives() -> None:
    assert math_accuracy(rollout(r"\boxed{4}", ["5", 4])) == 1.0
    with pytest.raises(ValueError, match="'p0' has the reference answer None"):
        math_accuracy(rollout(r"\boxed{4}", None))


def test_long_answers_take_linear_time() -> None:
    began = time.perf_counter()
    for unit in (
        "<answer>",
        "</think>",
        " ",
        "\\boxed{",
        "</think> <answer>",
        "1,000",
        "\\frac{",
        "Answer: ",
    ):
        long = rollout("<think>" + unit * (200_000 // len(unit)) + "x y z")
        for function in (math_accuracy, r1v_accuracy, r1v_format, dapo_accuracy):
            function(long)
    assert time.perf_counter() - began < 10.0
    assert dapo_form("x = $\\frac12$") == r"\frac{1}{2}"
