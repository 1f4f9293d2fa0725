"""Styles ask for what they pay, in the place of the paper's instruction; weights and graders are those asked for."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from mmrl.losses.advantages import group_normalized
from mmrl.perception.rewards import grounding_format
from mmrl.recipes.shared.launch import resolved
from mmrl.recipes.shared.paying import STYLES, Reward, style_of
from mmrl.types import Prompt, Rollout

NOTHING = torch.zeros(0, dtype=torch.long)
ANSWERS = {
    "box": "<think>two and two</think> So \\boxed{4}",
    "box-inline": "<think>two and two</think> So \\boxed{4}",
    "box-system": "<think>two and two</think> So \\boxed{4}",
    "box-lines": "<think>\ntwo and two\n</think>\n<answer>\n\\boxed{4}\n</answer>",
    "answer": "<think>two and two</think>\n<answer>4</answer>",
    "answer-open": "<think>two and two</think> So: <answer>4</answer>",
    "tag": "<answer>4</answer>",
    "plain": "4",
}
OBJECTS = (
    '<think>there</think>\n<answer>[{"bbox_2d": [1, 2, 30, 40], "point_2d": [9, 9]}]</answer>'
)
TRUTH = [{"bbox_2d": [1, 2, 30, 40], "point_2d": [9, 9]}]


def said(text, answer="4"):
    prompt = Prompt(id="p", messages=[], answer=answer)
    return Rollout(prompt, 0, NOTHING, NOTHING, NOTHING, text, "eos")


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_style_asks_for_is_paid_in_full(name):
    style = style_of(name)
    assert style.accuracy(said(ANSWERS[name])) == style.format(said(ANSWERS[name])) == 1.0
    assert style.accuracy(said(ANSWERS[name], "5")) == 0.0
    assert style.read(ANSWERS[name]) == "4"


def test_every_style_names_the_marks_that_it_pays_for():
    marks = {"box": ("<think>", "\\boxed{}"), "answer": ("<think>", "<answer>")}
    marks["choice"] = marks["box"]
    marks["objects"] = ("<think>", "<answer>", "bbox_2d", "point_2d", "JSON")
    marks["box-lines"] = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{}", "line")
    for name in set(STYLES) - {"tag", "plain"}:
        template = STYLES[name].template
        asked = template.fill("What is it?", {}) + template.system
        for mark in marks.get(name, marks[name.split("-")[0]]):
            assert mark in asked, (name, mark)
        assert "What is it?" in asked


def test_instructions_stand_where_the_papers_have_them():
    filled = {name: style.template.fill("Q?", {}) for name, style in STYLES.items()}
    assert filled["box"].startswith("Q?\n\n") and not STYLES["box"].template.system
    assert filled["box-inline"].startswith("Q? ") and "\n" not in filled["box-inline"]
    assert filled["box-system"] == "Q?" and "\\boxed{}" in STYLES["box-system"].template.system


def test_visurf_asks_for_boxes_and_pays_boxes():
    recipe = importlib.import_module("mmrl.recipes.visurf")
    asked = resolved(recipe.main, recipe.PRESETS, ["7b"]).arguments
    style = style_of(asked["data"].style)
    assert "bbox_2d" in style.template.fill("the red cup", {})
    assert style.accuracy(said(OBJECTS, TRUTH)) == 1.0
    assert style.format is grounding_format and style.format(said(OBJECTS, TRUTH)) == 1.0
    assert style.accuracy(said("<answer>a red cup</answer>", TRUTH)) == 0.0


def test_vogue_as_released_does_not_pay_the_form():
    """Five wrong answers, three of them well-formed: nothing is learned (with a tenth for the form: 0.73 and -1.10)."""
    recipe = importlib.import_module("mmrl.recipes.vogue")
    group, mask = torch.zeros(5, dtype=torch.long), torch.ones(5, 1, dtype=torch.bool)
    form = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    for preset in ("7b", "3b", "qwen3-4b", "qwen3-8b"):
        reward = resolved(recipe.main, recipe.PRESETS, [preset]).arguments["reward"]
        assert (reward.accuracy, reward.format) == (1.0, 0.0)
        paid = reward.accuracy * torch.zeros(5) + reward.format * form
        assert torch.equal(group_normalized(paid, group, mask), torch.zeros(5))
    other = group_normalized(Reward(format=0.1).format * form, group, mask)
    torch.testing.assert_close(other[:2], torch.tensor([0.7303, -1.0954]), atol=1e-3, rtol=0)


def test_weights_reach_the_rewards_and_the_form_is_logged_if_unpaid():
    rewards = Reward(accuracy=1.0, format=0.0).rewards(style_of("tag"))
    try:
        assert rewards.weights == {"accuracy": 1.0, "format": 0.0}
        (paid,) = rewards([said("<answer>4</answer>")])
        assert paid.reward == 1.0 and paid.parts == {"accuracy": 1.0, "format": 1.0}
    finally:
        rewards.close()
    with pytest.raises(ValueError, match=r"Reward\.format is -1"):
        Reward(format=-1)


def test_graders_are_exchanged_and_do_not_fit_boxes():
    """A fraction that is not reduced: right for math-verify, wrong for mathruler. A missing box is no answer."""
    style, half = (
        style_of("box"),
        said("<think>x</think> \\boxed{\\frac{2}{4}}", "\\frac{1}{2}"),
    )
    found = {}
    for grader in ("ours", "math-verify", "mathruler"):
        accuracy = Reward(grader=grader).accuracy_of(style)
        found[grader] = accuracy(half)
        assert accuracy(said(ANSWERS["box"])) == 1.0 and accuracy(said("no box")) == 0.0
    assert found["math-verify"] == 1.0 and found["mathruler"] == 0.0
    in_tags = Reward(grader="mathruler").accuracy_of(style_of("answer"))
    assert in_tags(said(ANSWERS["answer"])) == 1.0 and in_tags(said("4")) == 0.0
    with pytest.raises(ValueError, match=r"--reward\.grader is mathruler, but boxes"):
        Reward(grader="mathruler").accuracy_of(style_of("objects"))
    assert json.loads(OBJECTS.split("<answer>")[1].split("</answer>")[0]) == TRUTH
