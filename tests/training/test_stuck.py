"""A run that earns nothing says once what its answers look like."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from mmrl.training import stuck
from mmrl.training.stuck import STEPS, Stuck


@dataclass
class Asked:
    """What of a prompt is read."""

    answer: str = "seven"


@dataclass
class Answer:
    """What of a rollout is read."""

    text: str
    reward: float | None
    group: int = 0
    stop: str = "end"
    tokens: tuple[int, ...] = (1, 2)
    prompt: Asked = field(default_factory=Asked)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(stuck.Progress, "say", lines.append)
    return lines


def test_it_is_said_once_after_so_many_steps_in_a_row(said):
    watching = Stuck()
    nothing = [Answer("blue", 0.0), Answer("red " * 500, None, group=1), Answer("x", 0.0, 2)]
    for _ in range(STEPS - 1):
        watching.observe(nothing)
    watching.observe([*nothing, Answer("seven", 0.1)])
    for _ in range(STEPS - 1):
        watching.observe(nothing)
    assert not said, "a step that earned something begins the count anew"
    for _ in range(STEPS):
        watching.observe(nothing)
    (text,) = said
    assert "'blue' (2 tokens, end; truth: 'seven')" in text and "--data.style" in text
    assert text.count("truth:") == 2 and max(map(len, text.splitlines())) < 400


def test_answers_that_are_cut_have_their_own_advice(said):
    watching = Stuck()
    for _ in range(STEPS):
        watching.observe([Answer("and so", 0.0, stop="length")])
    assert "1 of 1 were cut: raise --sampling.max-tokens" in said[0]
