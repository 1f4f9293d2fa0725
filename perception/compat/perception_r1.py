r"""Rewards of Perception-R1 (arXiv 2506.07218) as in the official code (tongxiao2002/Perception-R1).

overall = 0.9 accuracy + 0.1 format; the launch script adds 0.7 times the visual part and, unweighted, the n-gram
penalty. Format: the whole response reads `<think>\n…\n</think>\n<answer>\n…\boxed{…}…\n</answer>`, with
`perception_tag` preceded by `<perception>\n…\n</perception>\n`. Accuracy: math-verify's parse of the answer equals that
of the ground truth. Visual: the mean verdict of a judge. N-gram penalty: max_penalty (1 - distinct / all n-grams).

Oddities kept on purpose (closed in `mmrl.perception.consistency` and `mmrl.rewards.functions`):
1. `<answer>…</answer>` is searched on one line; the wanted format has line breaks there, so that the whole response is
   parsed, whose box math-verify prefers.
2. The visual part divides by the number of parsed verdicts + 1e-6, not by the number of annotations: a judge that
   answers the first fact only gives almost 1, and a perfect score is 0.999999.
3. The parser stops at the first missing index, takes the last occurrence of an index, reads what is no number as 0.

math-verify runs without its signal time-outs, which work in the main thread only; run the score where it can be killed.
"""

from __future__ import annotations

import re

from mmrl.perception.compat import math_verified

_FORMAT = re.compile(
    r"<think>\n.*?\n</think>\n<answer>\n.*?\\boxed{.+?}.*?\n</answer>", re.DOTALL
)
_FORMAT_PERCEPTION = re.compile(
    r"<perception>\n.*?\n</perception>\n" + _FORMAT.pattern, re.DOTALL
)
_ANSWER = re.compile(r"<answer>(.*?)</answer>")


def perception_r1(
    response: str, ground_truth: str, *, perception_tag: bool = False
) -> dict[str, float]:
    """Score an answer: `overall`, `accuracy` (0 or 1) and `format` (0 or 1)."""
    layout = _FORMAT_PERCEPTION if perception_tag else _FORMAT
    form = float(layout.fullmatch(response) is not None)
    right = _accuracy(response, ground_truth)
    return {"overall": 0.9 * right + 0.1 * form, "accuracy": right, "format": form}


def judge_scores(judge_text: str) -> tuple[list[float], float]:
    """The verdicts `<info1>…</info1>`, `<info2>…</info2>`, … clipped to [0, 1], and the visual reward made of them."""
    scores: list[float] = []
    while (verdict := _last_between(judge_text, len(scores) + 1)) is not None:
        try:
            value = float(verdict)
        except ValueError:
            value = 0.0
        # max(0, min(1, NaN)) is 1: a judge that writes "nan" pays in full, as officially.
        scores.append(max(0.0, min(1.0, value)))
    # Officially 1e-6 keeps an empty list out of the division; it also takes a millionth off every reward.
    return scores, sum(scores) / (len(scores) + 1e-6)


def ngram_penalty(text: str, ngram_size: int = 20, max_penalty: float = -2.0) -> float:
    """max_penalty * (1 - distinct / all) over the n-grams of lower-case words; 0 for a text of fewer words."""
    words = text.lower().split()
    total = len(words) - ngram_size + 1
    if total < 1:
        return 0.0
    distinct = {tuple(words[start : start + ngram_size]) for start in range(total)}
    return max_penalty * (1 - len(distinct) / total)


def _accuracy(response: str, ground_truth: str) -> float:
    """1 if math-verify finds answer and ground truth equal, else 0."""
    found = _ANSWER.search(response)
    answer = found.group(1) if found else response
    return float(math_verified(ground_truth.strip(), answer.strip()))


def _last_between(text: str, index: int) -> str | None:
    """What stands between the last `<info i>` that is closed later, with at least one character, and the next end."""
    opening, closing = f"<info{index}>", f"</info{index}>"
    end = len(text)
    while (start := text.rfind(opening, 0, end)) >= 0:
        inside = start + len(opening)
        close = text.find(closing, inside + 1)
        if close >= 0:
            return text[inside:close]
        end = start  # opened last but never closed: look for the one before
    return None
