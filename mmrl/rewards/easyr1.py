r"""EasyR1's text rewards in their exact form, for comparing with published numbers (also PAPO's, which are `math`).

Three rewards, each as the official function of one answer and as parts for `Rewards`:

* `math`: white space around <, > and / is removed, then 0.9 · accuracy of the box + 0.1 · format
  `<think>…</think>…\boxed{…}…`. Parts: `math_accuracy`, `functions.think_format`.
* `r1v`: 0.5 · accuracy of `<answer>…</answer>` + 0.5 · format `<think>…</think><answer>…</answer>`.
  Parts: `r1v_accuracy`, `r1v_format`.
* `dapo`: ±1 for the line behind the last "Answer:" within the last 300 characters, + a weighted overlong punishment.
  Part: `dapo_accuracy`; the punishment is the core's (`GRPO.overlong_buffer`, `GRPO.overlong_factor`).

Oddities that are kept on purpose (our own forms in `functions` close them; those of the grader are listed in
`mathruler`):
1. `math` pays a missing box if the reference reads "None".
2. `r1v` searches the tag within one line: an answer on lines of its own is graded as the whole response, which fails.
   Without any tag the whole response is graded too, so a bare "4" has accuracy 1.
3. `r1v` takes the first tag, so `<answer><answer>4</answer>` is graded as `<answer>4`; its format pays for text between
   several tags as long as the ends fit.
4. `dapo` compares normalised strings only: 0.5 is not 1/2. It drops words such as "a", "an" and "points" wherever they
   occur, and everything before the last "=".

Source: hiyouga/EasyR1, examples/reward_function (math.py, r1v.py, dapo.py). The patterns are searched without
backtracking, so that a long answer takes linear time; the outcomes are the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mmrl.rewards.functions import without_tag_spaces
from mmrl.rewards.mathruler import extract_boxed_content, grade_answer
from mmrl.rewards.parts import needs_tags, preloads

if TYPE_CHECKING:
    from mmrl.types import Rollout

DAPO_TAIL = 300
"""Characters at the end of an answer in which DAPO looks for it."""
_DAPO_REPLACED = (
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text"), (",\\text{and}", ","),
    ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
)  # fmt: skip
_DAPO_WORDS = (
    "square ways integers dollars mph inches hours km units \\ldots sue points feet minutes digits cents degrees cm gm "
    "pounds meters meals edges students childrentickets multiples"
)
_DAPO_LATEX = (
    "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}", "\\mathrm{th}",
    "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots",
)  # fmt: skip


def easyr1_math(
    response: str, ground_truth: str, format_weight: float = 0.1
) -> dict[str, float]:
    """EasyR1's `math` reward of one answer: overall, format, accuracy."""
    text = without_tag_spaces(response)
    accuracy = float(grade_answer(extract_boxed_content(text), ground_truth))
    return _combined(accuracy, float(_has_think_and_box(text)), format_weight)


def easyr1_r1v(
    response: str, ground_truth: str, format_weight: float = 0.5
) -> dict[str, float]:
    """EasyR1's `r1v` reward of one answer: overall, format, accuracy."""
    accuracy = float(grade_answer(_first_tag_in_a_line(response), ground_truth.strip()))
    return _combined(accuracy, float(_has_think_and_answer(response)), format_weight)


def easyr1_dapo(
    response: str,
    ground_truth: str,
    response_length: int,
    max_response_length: int,
    overlong_buffer_length: int,
    overlong_penalty_factor: float,
) -> dict[str, float]:
    """EasyR1's `dapo` reward of one answer: overall, accuracy (±1), overlong (-1 to 0), accuracy_normalized."""
    announced = re.findall(r"(?i)answer\s*:\s*([^\n]+)", response[-DAPO_TAIL:])
    answer = announced[-1] if announced else "[INVALID]"
    accuracy = 1.0 if dapo_form(answer) == dapo_form(ground_truth) else -1.0
    over = response_length - (max_response_length - overlong_buffer_length)
    # Held at -1 beyond the limit, which also keeps a buffer of 0 out of the division.
    if over <= 0:
        overlong = 0.0
    elif response_length > max_response_length:
        overlong = -1.0
    else:
        overlong = -over / overlong_buffer_length
    return {
        "overall": accuracy + overlong * overlong_penalty_factor,
        "accuracy": accuracy,
        "overlong": overlong,
        "accuracy_normalized": (accuracy + 1.0) / 2.0,
    }


@preloads("sympy")
def math_accuracy(rollout: Rollout) -> float:
    """The accuracy of EasyR1's `math` reward, 0 or 1."""
    box = extract_boxed_content(without_tag_spaces(rollout.text))
    references = _references(rollout)
    return float(any(grade_answer(box, reference) for reference in references))


@needs_tags("<answer>", "</answer>")
@preloads("sympy")
def r1v_accuracy(rollout: Rollout) -> float:
    """The accuracy of EasyR1's `r1v` reward, 0 or 1."""
    answer = _first_tag_in_a_line(rollout.text)
    references = _references(rollout)
    return float(any(grade_answer(answer, reference) for reference in references))


@needs_tags("<think>", "</think>", "<answer>", "</answer>")
def r1v_format(rollout: Rollout) -> float:
    """The format of EasyR1's `r1v` reward, 0 or 1."""
    return float(_has_think_and_answer(rollout.text))


def dapo_accuracy(rollout: Rollout) -> float:
    """The accuracy of EasyR1's `dapo` reward, -1 or 1."""
    best = -1.0
    for reference in _references(rollout):
        # Length 0 of 1 and factor 0: the overlong punishment plays no part here.
        score = easyr1_dapo(rollout.text, reference, 0, 1, 1, 0.0)
        best = max(best, score["accuracy"])
    return best


def dapo_form(answer: str) -> str:
    """The normalised string that DAPO compares."""
    answer = answer.rpartition("=")[2]
    # The order is the official one and matters: "an " goes before "a ", spaces before units.
    for before, after in _DAPO_REPLACED:
        answer = answer.replace(before, after)
    for dropped in (*_DAPO_WORDS.split(), *_DAPO_LATEX):
        answer = answer.replace(dropped, "")
    answer = re.sub(r"[^\n]*?\$([^\n]*?)\$[^\n]*", r"$\1$", answer)
    for command in ("text", "textbf", "overline"):
        answer = re.sub(rf"\\{command}{{(.*?)}}", r"\1", answer)
    answer = re.sub(r"\\boxed{(.*)}", r"\1", answer)
    answer = re.sub("frac([^{])(.)", r"frac{\1}{\2}", answer)
    answer = re.sub("sqrt([^{])", r"sqrt{\1}", answer)
    answer = answer.replace("$", "")
    # Commas are thousands only if nothing else is left: "1,2" as a pair of numbers becomes 12 as well.
    digits = answer.replace(",", "")
    return (digits if digits.isdigit() else answer).strip()


def _references(rollout: Rollout) -> list[str]:
    """The reference answers as they stand: the official functions open no box in them."""
    answer = rollout.prompt.answer
    several = answer if isinstance(answer, list | tuple) else [answer]
    if not several or any(one is None for one in several):
        raise ValueError(
            f"Prompt {rollout.prompt.id!r} has the reference answer {answer!r}; accuracy needs one."
        )
    return [str(one) for one in several]


def _combined(accuracy: float, form: float, weight: float) -> dict[str, float]:
    """The named scores of one answer; `weight` is that of the format."""
    return {
        "overall": (1 - weight) * accuracy + weight * form,
        "format": form,
        "accuracy": accuracy,
    }


def _has_think_and_box(text: str) -> bool:
    """Does `<think>.*</think>.*\\boxed{.*}.*` match all of it? Searched from left to right, in linear time."""
    closed = text.find("</think>") if text.startswith("<think>") else -1
    box = text.find("\\boxed{", closed) if closed >= 0 else -1
    return box >= 0 and text.find("}", box) >= 0


def _has_think_and_answer(text: str) -> bool:
    """Does `<think>.*</think>\\s*<answer>.*</answer>` match all of it?"""
    if not text.startswith("<think>") or not text.endswith("</answer>"):
        return False
    turn = re.compile(r"</think>\s*<answer>").search(text, len("<think>"))
    if turn is None:
        return False
    # The closing tag at the end must not overlap the opening one.
    return turn.end() <= len(text) - len("</answer>")


def _first_tag_in_a_line(text: str) -> str:
    """What the first tag that is closed on its line holds, or the whole text."""
    # The official pattern's dot stops at a line end, so each line is searched by itself.
    for line in text.split("\n"):
        _, opened, behind = line.partition("<answer>")
        inside, closed, _ = behind.partition("</answer>")
        if opened and closed:
            return inside.strip()
    return text.strip()
