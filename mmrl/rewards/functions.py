r"""Reward functions on texts: accuracy, format, length and repetition. Each takes one rollout and gives one number.

Sources: think format from PAPO's official code (which takes it from EasyR1); length penalty from DAPO; repetition
penalty from Perception-R1. Departures:
1. Accuracy compares by `answers` (see its list); the official graders are in `rewards_compat`.
2. `answer_format` wants each tag exactly once.
3. Penalties lie in [-1, 0]; their scale is the weight of the part.

The module imports no torch, so that a worker which loads a reward from here stays small.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmrl.ground.answers import boxed, tagged
from mmrl.rewards.answers import (
    final_answer,
    last_number,
    matches,
    number,
    references,
    same_choice,
    same_math,
    same_number,
    same_text,
)
from mmrl.rewards.parts import preloads

if TYPE_CHECKING:
    from mmrl.types import Rollout


@preloads("math_verify")
def boxed_accuracy(rollout: Rollout) -> float:
    r"""1 if the last `\boxed{…}` equals the reference as text, number or mathematics, else 0."""
    return matches(boxed(rollout.text), references(rollout.prompt.answer), same_math)


@preloads("math_verify")
def tagged_accuracy(rollout: Rollout) -> float:
    """1 if the last `<answer>…</answer>` (or the box in it) equals the reference, else 0."""
    inside = tagged(rollout.text)
    answer = inside if inside is None else boxed(inside) or inside
    return matches(answer, references(rollout.prompt.answer), same_math)


def choice_accuracy(rollout: Rollout) -> float:
    """1 if the final answer names the option A to E of the reference and no other, else 0."""
    return matches(final_answer(rollout.text), references(rollout.prompt.answer), same_choice)


def number_accuracy(rollout: Rollout, *, tolerance: float = 1e-6) -> float:
    """1 if the final answer is the reference number within a relative tolerance, else 0; a text: its last number."""
    answers = references(rollout.prompt.answer)
    if unreadable := [answer for answer in answers if number(answer) is None]:
        raise ValueError(
            f"The reference answer {unreadable[0][:80]!r} is no number; use boxed_accuracy for expressions."
        )
    answer = final_answer(rollout.text)
    answer = answer if number(answer) is not None else last_number(answer)
    return float(any(same_number(answer, one, tolerance) for one in answers))


def exact_accuracy(rollout: Rollout) -> float:
    """1 if the final answer equals the reference up to case and spaces, else 0."""
    return matches(final_answer(rollout.text), references(rollout.prompt.answer), same_text)


def think_format(rollout: Rollout, *, opened: bool = False) -> float:
    r"""1 if the whole answer reads `<think>…</think>…\boxed{…}…` (spaces around <, >, / ignored), else 0.

    With `opened=True` the prompt has opened the thinking already (Qwen3-VL Thinking) and the first tag may be missing.
    """
    text = without_tag_spaces(rollout.text)
    if not opened and not text.startswith("<think>"):
        return 0.0
    closed = text.find("</think>")
    box = text.find("\\boxed{", closed) if closed >= 0 else -1
    return float(box >= 0 and text.find("}", box) >= 0)


def answer_format(rollout: Rollout, *, think: bool = True) -> float:
    """1 if the whole answer reads `<think>…</think><answer>…</answer>`, each tag once, only spaces between; else 0.

    With `think=False` it must read `<answer>…</answer>` alone.
    """
    text = rollout.text.strip()
    tags = ("<think>", "</think>", "<answer>", "</answer>")[0 if think else 2 :]
    if (
        any(text.count(tag) != 1 for tag in tags)
        or not text.startswith(tags[0])
        or not text.endswith("</answer>")
    ):
        return 0.0
    if not think:
        return 1.0
    closed, opened = text.find("</think>") + len("</think>"), text.find("<answer>")
    return float(closed <= opened and not text[closed:opened].strip())


@dataclass(frozen=True)
class LengthPenalty:
    """0 up to `limit - buffer` tokens, then linearly down to -1 at `limit` (DAPO's soft overlong punishment)."""

    limit: int
    """Tokens at which the penalty is -1."""
    buffer: int
    """Tokens over which it grows."""

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.limit:
            raise ValueError(
                f"LengthPenalty.buffer is {self.buffer}; it must lie in 1 .. limit ({self.limit})."
            )

    def __call__(self, rollout: Rollout) -> float:
        over = len(rollout.tokens) - (self.limit - self.buffer)
        return -min(max(over / self.buffer, 0.0), 1.0)


@dataclass(frozen=True)
class RepetitionPenalty:
    """-(1 - distinct / all) over the n-grams of lower-case words; 0 for a text shorter than n words."""

    n: int = 20
    """Words per n-gram."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"RepetitionPenalty.n is {self.n}; an n-gram has at least 1 word.")

    def __call__(self, rollout: Rollout) -> float:
        words = rollout.text.lower().split()
        total = len(words) - self.n + 1
        if total < 1:
            return 0.0
        return -(1.0 - len({tuple(words[i : i + self.n]) for i in range(total)}) / total)


def without_tag_spaces(text: str) -> str:
    """Remove white space around <, > and /, in linear time."""
    pieces = re.split(r"([<>/])", text)
    last = len(pieces) - 1
    stripped = [
        (piece.lstrip() if i else piece).rstrip() if i < last else piece.lstrip()
        for i, piece in enumerate(pieces)
    ]
    return "".join(stripped) if last else text
