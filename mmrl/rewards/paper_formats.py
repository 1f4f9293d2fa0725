r"""Forms of answers that single papers pay for, exactly as their code matches them. No torch.

`boxed_lines_format`   Perception-R1: <think>, </think>, <answer> and </answer> on lines of their own, \boxed{…} within
                       the answer, nothing before or after
`open_answer_format`   CalibRL: <think>…</think>…<answer>…</answer>, anything between the two blocks

The patterns are searched without backtracking, so that a long answer takes linear time; the outcomes are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmrl.rewards.parts import needs_tags

if TYPE_CHECKING:
    from mmrl.types import Rollout

_OPEN, _BETWEEN, _CLOSE = "<think>\n", "\n</think>\n<answer>\n", "\n</answer>"
_BOX = "\\boxed{"


@needs_tags("<think>", "</think>", "<answer>", "</answer>")
def boxed_lines_format(rollout: Rollout) -> float:
    """1 if the whole answer has Perception-R1's form, else 0."""
    return float(has_boxed_lines(rollout.text))


@needs_tags("<think>", "</think>", "<answer>", "</answer>")
def open_answer_format(rollout: Rollout) -> float:
    """1 if the whole answer has CalibRL's form, else 0."""
    return float(has_open_answer(rollout.text))


def has_boxed_lines(text: str) -> bool:
    """Perception-R1's form (verl/utils/reward_score/boxed_math_verify.py)."""
    if not text.startswith(_OPEN) or not text.endswith(_CLOSE):
        return False
    closed = text.find(_BETWEEN, len(_OPEN))
    if closed < 0:
        return False
    end = len(text) - len(_CLOSE)
    box = text.find(_BOX, closed + len(_BETWEEN), end)
    # At least one character in the box; any later brace closes it, braces are not balanced.
    return box >= 0 and text.rfind("}", box + len(_BOX) + 1, end) >= 0


def has_open_answer(text: str) -> bool:
    """CalibRL's form (src/reward_score/virl_verify.py)."""
    if not text.startswith("<think>"):
        return False
    closed = text.find("</think>", len("<think>"))
    opened = text.find("<answer>", closed) if closed >= 0 else -1
    if opened < 0 or not text.endswith("</answer>"):
        return False
    return len(text) - len("</answer>") >= opened + len("<answer>")
