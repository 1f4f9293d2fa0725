r"""Reward functions on texts: accuracy, format and repetition. Each takes one rollout and gives one number.

Sources: think format from PAPO's official code (which takes it from EasyR1); repetition penalty from Perception-R1.
What length costs is a setting of the core (`GRPO.overlong_buffer`). Departures:
1. Accuracy compares by `answers` (see its list); the official graders are in `easyr1`.
2. `answer_format` wants each tag exactly once.
3. The penalty lies in [-1, 0]; its scale is the weight of the part.

The module imports no torch, so that a worker which loads a reward from here stays small.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmrl.ground.answers import BOX, boxed, tagged, thought_is_open
from mmrl.ground.require import require
from mmrl.rewards.answers import (
    final_answer,
    last_number,
    letters_of,
    matches,
    read_number,
    references,
    same_choice,
    same_math,
    same_number,
    same_wording,
    several_numbers,
)
from mmrl.rewards.parts import needs_tags, preloads

if TYPE_CHECKING:
    from mmrl.types import Rollout


@preloads("math_verify")
def boxed_accuracy(rollout: Rollout) -> float:
    r"""1 if the last `\boxed{…}` equals the reference as text, number or mathematics, else 0."""
    return matches(in_box(rollout.text), references(rollout.prompt.answer), same_math)


@needs_tags("<answer>", "</answer>")
@preloads("math_verify")
def tagged_accuracy(rollout: Rollout) -> float:
    """1 if the last `<answer>…</answer>` (or the box in it) equals the reference, else 0."""
    return matches(in_tag(rollout.text), references(rollout.prompt.answer), same_math)


@needs_tags("<answer>", "</answer>")
def words_accuracy(rollout: Rollout) -> float:
    """1 if the last `<answer>…</answer>` has the words of the reference, each as often, in any order; else 0."""
    said = sorted((in_tag(rollout.text) or "").lower().split())
    expected = references(rollout.prompt.answer)
    return float(any(said == sorted(one.lower().split()) for one in expected))


def choice_accuracy(rollout: Rollout) -> float:
    """1 if the final answer names the option of the reference, A to E or a later letter, and no other, else 0."""
    answer = final_answer(rollout.text)
    expected = references(rollout.prompt.answer)
    return float(any(same_choice(answer, one, letters_of(one)) for one in expected))


def number_accuracy(rollout: Rollout, *, tolerance: float | None = None) -> float:
    """1 if the final answer is the reference number, else 0; of a sentence its last number counts.

    An integer must be hit exactly, a decimal to 1e-6; `tolerance` sets one relative error for all. A range, list, date
    or clock time is not one number, and the last of its numbers is not the answer.
    """
    expected = references(rollout.prompt.answer)
    for reference in expected:
        if read_number(reference) is None:
            raise ValueError(
                f"The reference answer {reference[:80]!r} is no number; use boxed_accuracy for expressions."
            )
    answer = final_answer(rollout.text)
    if read_number(answer) is None:
        answer = "" if several_numbers(answer) else last_number(answer)
    return float(any(same_number(answer, reference, tolerance) for reference in expected))


def exact_accuracy(rollout: Rollout) -> float:
    """1 if the final answer equals the reference up to case and spaces, or its option ("B. dog" for B), else 0."""
    answer = final_answer(rollout.text)
    return matches(answer, references(rollout.prompt.answer), same_wording)


@needs_tags("<think>", "</think>")
def think_format(rollout: Rollout, *, opened: bool = False) -> float:
    r"""1 if the whole answer reads `<think>…</think>…\boxed{…}…` (spaces around <, >, / ignored), else 0.

    With `opened=True` the prompt has opened the thinking already (Qwen3-VL Thinking) and the first tag may be missing.
    """
    text = without_tag_spaces(rollout.text)
    if not opened and not text.startswith("<think>"):
        return 0.0
    closed = text.find("</think>")
    box = text.find("\\boxed{", closed) if closed >= 0 else -1
    # Any later brace closes the box, as in the official pattern: the format does not balance braces.
    return float(box >= 0 and text.find("}", box) >= 0)


@needs_tags("<answer>", "</answer>")
def answer_format(rollout: Rollout, *, think: bool = True) -> float:
    """1 if the whole answer reads `<think>…</think><answer>…</answer>`, each tag once, only spaces between; else 0.

    With `think=False` it must read `<answer>…</answer>` alone.
    """
    text = rollout.text.strip()
    tags = ["<answer>", "</answer>"]
    if think:
        tags = ["<think>", "</think>", *tags]
    # Each tag once: a second <answer> inside the thinking would let the answer be chosen afterwards.
    if any(text.count(tag) != 1 for tag in tags):
        return 0.0
    if not text.startswith(tags[0]) or not text.endswith(tags[-1]):
        return 0.0
    if not think:
        return 1.0
    closed = text.find("</think>") + len("</think>")
    opened = text.find("<answer>")
    # The slice of a turned order is empty, so the order is asked for as well.
    return float(closed <= opened and not text[closed:opened].strip())


@dataclass(frozen=True)
class RepetitionPenalty:
    """-(1 - distinct / all) over the n-grams of lower-case words; 0 for a text shorter than n words."""

    n: int = 20
    """Words per n-gram."""

    def __post_init__(self) -> None:
        require(self, n=(self.n >= 1, "at least 1, the words of an n-gram"))

    def __call__(self, rollout: Rollout) -> float:
        words = rollout.text.lower().split()
        total = len(words) - self.n + 1
        if total < 1:
            return 0.0
        distinct = {tuple(words[start : start + self.n]) for start in range(total)}
        return -(1.0 - len(distinct) / total)


def in_box(text: str) -> str | None:
    """The content of the last box; None if there is none, or if it or a thought is never closed."""
    return None if thought_is_open(text) else boxed(text)


def in_tag(text: str) -> str | None:
    """The content of the last `<answer>`, or of the box in it; None if one of them or a thought is never closed."""
    inside = None if thought_is_open(text) else tagged(text)
    if inside is None or BOX not in inside:
        return inside
    return boxed(inside)


def without_tag_spaces(text: str) -> str:
    """Remove white space around <, > and /, in linear time."""
    # Split rather than `\s*([<>/])\s*`, whose backtracking is quadratic in a long run of spaces.
    first, *rest = re.split(r"([<>/])", text)
    if not rest:
        return text
    # The outer ends of the text touch no sign and keep their spaces.
    between = [piece.strip() for piece in rest[:-1]]
    return "".join([first.rstrip(), *between, rest[-1].lstrip()])
