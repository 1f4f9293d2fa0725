"""Video-R1 (arXiv 2503.21776): accuracy by problem type, and the group bonuses of T-GRPO. No torch.

    accuracy   multiple choice: equal answers · numerical: equal after rounding to two decimals, 0 if one has a point or
               comma and the other has none · OCR: 1 - word error rate · free-form: mean F1 of ROUGE-1, -2, -L ·
               regression: 1 - |Δ| / |y| · anything else 0; all in [0, 1]
    T-GRPO     a group with ordered frames and one with shuffled frames. If the mean accuracy of the first is at least
               0.8 times that of the second, each ordered answer with accuracy > 0.1 gets 0.3
    length     if at least two answers have accuracy > 0.1, each of those with 320 to 512 tokens gets 0.2

Departures from the code:
1. Each answer is marked by its own problem type; there the first one's type marks the whole list.
2. Only what is no finite number is worth 0 without a comparison; there any failure of a marker is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmrl.data.grounding.rouge import rouge, word_error_rate

if TYPE_CHECKING:
    from mmrl.types import Rollout

TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
GOOD = 0.1
"""An answer above this accuracy can get a bonus."""


def accuracy(text: str, solution: str, problem_type: str) -> float:
    """In [0, 1]; both texts carry their answer in an answer block. An unknown type is worth 0, as there."""
    said, true = _inside(text), _inside(solution)
    if problem_type == "multiple choice":
        return float(said == true)
    if problem_type == "OCR":
        return min(1.0, max(0.0, 1 - word_error_rate(true, said)))
    if problem_type == "free-form":
        return float(np.mean(list(rouge(true, said).values())))
    if problem_type not in ("numerical", "regression"):
        return 0.0
    a, b = _number(said), _number(true)
    if a is None or b is None:
        return 0.0
    if problem_type == "numerical":
        # 3 and 3.0 differ: whether a fraction was asked for belongs to the answer.
        alike = _is_decimal(said) == _is_decimal(true)
        return float(alike and round(a, 2) == round(b, 2))
    error = (abs(a - b) + 1e-9) / (abs(b) + 1e-9)
    return 1 - min(1.0, max(0.0, error))


def video_r1_accuracy(rollout: Rollout) -> float:
    """`accuracy` as a reward: reads `prompt.answer` and `extra["problem_type"]`. Raises ValueError without a type."""
    kind = rollout.prompt.extra.get("problem_type")
    if kind not in TYPES:
        raise ValueError(
            f"Prompt {rollout.prompt.id!r} has the problem type {kind!r}; allowed are {', '.join(TYPES)}."
        )
    # Rows of other readers hold the bare answer; both forms are put into a block, where `accuracy` looks.
    true = _inside(str(rollout.prompt.answer), bare=True)
    return accuracy(rollout.text, f"<answer>{true}</answer>", kind)


def video_r1_format(text: str) -> float:
    """1 if the whole text is a thinking and an answer block; else 0."""
    blocks = r"<think>.*?</think>\s*<answer>.*?</answer>"
    return float(re.fullmatch(blocks, text, re.DOTALL) is not None)


def temporal_bonus(
    ordered: Sequence[float], shuffled: Sequence[float], share: float = 0.8, bonus: float = 0.3
) -> list[float]:
    """T-GRPO's bonus for each ordered answer from the accuracies of both groups; all 0 without a shuffled group."""
    if not len(shuffled) or np.mean(ordered) < share * np.mean(shuffled):
        return [0.0] * len(ordered)
    return [bonus if value > GOOD else 0.0 for value in ordered]


def length_bonus(
    accuracies: Sequence[float],
    lengths: Sequence[int],
    low: int = 320,
    high: int = 512,
    bonus: float = 0.2,
) -> list[float]:
    """The bonus of each answer for a length in tokens within [low, high], if at least two answers are good."""
    good = [value > GOOD for value in accuracies]
    # One good answer may be luck, and its length says nothing.
    enough = sum(good) >= 2
    bonuses = []
    for is_good, length in zip(good, lengths, strict=True):
        earned = enough and is_good and low <= length <= high
        bonuses.append(bonus if earned else 0.0)
    return bonuses


def t_grpo_bonus(
    ordered: Sequence[float], shuffled: Sequence[float], lengths: Sequence[int]
) -> list[float]:
    """What each ordered answer is paid on top of accuracy and format: temporal and length bonus.

    In the code the length bonus looks at the accuracy with the temporal bonus; that bonus goes only to answers that are
    good already, so that nothing depends on it.
    """
    pairs = zip(temporal_bonus(ordered, shuffled), length_bonus(ordered, lengths), strict=True)
    return [temporal + length for temporal, length in pairs]


def _inside(text: str, bare: bool = False) -> str:
    """The stripped inside of the first answer block; without one nothing, or all of the text if `bare`."""
    found = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if found:
        return found.group(1).strip()
    return text.strip() if bare else ""


def _is_decimal(text: str) -> bool:
    return "." in text or "," in text


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    # The word nan must not win a comparison.
    return value if math.isfinite(value) else None
