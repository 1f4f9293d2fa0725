r"""How questions are put and answers are paid: the styles of the papers, and what the parts of the reward weigh.

A style is what belongs together: the instruction and its place, who reads the answer, and the form that is paid. The
styles of papers ask for exactly what the paper's instruction asks for, in our words:

    box           think in tags, answer in a box; behind the question, after a blank line (PAPO, VPPO)
    box-inline    the same, on the line of the question (EasyR1's `math`: VOGUE, MSSR)
    box-system    the same, as the system turn (NoisyRollout)
    box-lines     think and answer in tags on lines of their own, a box in the answer (Perception-R1)
    answer        think and answer in tags, nothing between them
    answer-open   the same; anything may stand between the blocks (CalibRL)
    choice        as box; the answer is the letter of an option, however it is put ("B", "(b)", "B. dog")
    objects       think and answer in tags; the answer is a JSON list of boxes and points (VisionReasoner, ViSurf)

`RewardWeights.rewards(style)` are the `Rewards` of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from mmrl.data.rows.templates import PLAIN, THINK_THEN_ANSWER, THINK_THEN_BOX, Template
from mmrl.ground.declared import added
from mmrl.ground.require import require
from mmrl.perception.rewards import GroundingReward, grounding_format
from mmrl.recipes.shared.own_rewards import own_parts, read
from mmrl.rewards import functions as pay
from mmrl.rewards.answers import final_answer, tagged
from mmrl.rewards.easyr1 import math_accuracy
from mmrl.rewards.functions import in_box, in_tag
from mmrl.rewards.graders import Graded, GraderName
from mmrl.rewards.paper_formats import boxed_lines_format, open_answer_format
from mmrl.rewards.parts import RIGHT_ABOVE
from mmrl.rewards.pay import Rewards

StyleName = Literal[
    "box", "box-inline", "box-system", "box-lines", "answer", "answer-open", "objects", "tag", "plain", "choice"
]  # fmt: skip
INLINE = Template(
    "{question} Work it out first, as if talking to yourself, inside <think> </think>; then state the result, "
    "which must be in \\boxed{}."
)
SYSTEM = Template(
    system="Work every question out first, as if talking to yourself, inside <think> </think>; then state the "
    "result, which must be in \\boxed{}."
)
LINES = Template(
    "{question} Work it out first, as if talking to yourself; then answer. Write each tag on a line of its own, in "
    "this order: <think>, your reasoning, </think>, <answer>, your answer with its result in \\boxed{}, </answer>."
)
OBJECTS = Template(
    'Find "{question}" in the picture. Compare what could be meant and choose what fits best. Reason inside '
    "<think> </think>, then give inside <answer> </answer> a JSON list with the box of each thing you found and a "
    "point inside it, in pixels; an empty list if there is none. For example: <answer>"
    '[{"bbox_2d": [12, 40, 180, 96], "point_2d": [90, 70]}]</answer>'
)


@dataclass(frozen=True)
class Style:
    """A way of asking and the rewards that read it."""

    template: Template
    accuracy: Callable[..., float]
    format: Callable[..., float]
    read: Callable[[str], str | None]
    """Text -> answer, for the graders of others."""


STYLES: dict[str, Style] = {
    "box": Style(THINK_THEN_BOX, pay.boxed_accuracy, pay.think_format, in_box),
    "box-inline": Style(INLINE, pay.boxed_accuracy, pay.think_format, in_box),
    "box-system": Style(SYSTEM, pay.boxed_accuracy, pay.think_format, in_box),
    "box-lines": Style(LINES, pay.tagged_accuracy, boxed_lines_format, in_tag),
    "answer": Style(THINK_THEN_ANSWER, pay.tagged_accuracy, pay.answer_format, in_tag),
    "answer-open": Style(THINK_THEN_ANSWER, pay.tagged_accuracy, open_answer_format, in_tag),
    "objects": Style(OBJECTS, GroundingReward(), grounding_format, tagged),
    "tag": Style(PLAIN, pay.tagged_accuracy, partial(pay.answer_format, think=False), in_tag),
    # A plain answer has no form of its own to pay for.
    "plain": Style(PLAIN, pay.exact_accuracy, pay.exact_accuracy, final_answer),
    "choice": Style(THINK_THEN_BOX, pay.choice_accuracy, pay.think_format, in_box),
}


def style_of(name: str) -> Style:
    """Template and rewards that belong together."""
    return STYLES[name]


@dataclass(frozen=True)
class RewardWeights:
    """What an answer is paid for, and who compares it with the reference."""

    accuracy: float = 0.9
    """Weight of the right answer."""
    format: float = 0.1
    """Weight of the asked-for form; 0 logs it only."""
    grader: GraderName = "ours"
    """Who compares answers: our own rules, or math-verify or mathruler alone, as the papers that used them."""
    own: tuple[str, ...] = ()
    """Rewards of your own in place of accuracy and format: --reward my.py:func=0.5, as often as there are rewards; or
    accuracy, format, choice, number, math, iou, … (all names: any wrong one lists them)."""
    correct: str = added("")
    """Part that says whether an answer is right, for methods that ask; empty: accuracy, if there is one."""
    correct_above: float = added(RIGHT_ABOVE)
    """An answer is right where that part exceeds this."""

    def __post_init__(self) -> None:
        for text in self.own:
            read(text)
        require(
            self,
            accuracy=(self.accuracy >= 0, "0 (logged only) or positive"),
            format=(self.format >= 0, "0 (logged only) or positive"),
            correct_above=(-1 <= self.correct_above <= 100, "in [-1, 100]"),
        )

    def rewards(self, style: Style, **others: Any) -> Rewards:
        """The rewards of a run; `others` are further parts and the settings of `Rewards`."""
        parts = self.parts(style)
        if double := sorted(set(parts) & set(others)):
            raise ValueError(
                f"--reward has a part called {double[0]!r}, and so has the recipe itself; give the function another "
                "name."
            )
        return Rewards(**parts, **others, correct=self.correct_by({**parts, **others}))

    def correct_by(self, parts: Mapping[str, Any]) -> tuple[str, float] | None:
        """What says whether an answer is right; None if nothing does. Raises ValueError for an unknown part."""
        if self.correct and self.correct not in parts:
            raise ValueError(
                f"--reward.correct is {self.correct!r}, but the parts of the reward are {sorted(parts)}; name one."
            )
        part = self.correct or ("accuracy" if "accuracy" in parts else "")
        return (part, self.correct_above) if part else None

    def parts(self, style: Style) -> dict[str, tuple[float, Callable[..., Any]]]:
        """Name -> (weight, function): accuracy and format of the style, or what `own` names. Raises ValueError."""
        accuracy = self.accuracy_of(style)
        if self.own:
            return own_parts(self.own, {"accuracy": accuracy, "format": style.format})
        return {"accuracy": (self.accuracy, accuracy), "format": (self.format, style.format)}

    def accuracy_of(self, style: Style) -> Callable[..., float]:
        """The style's own accuracy, or its answer under another grader. Raises ValueError where none applies."""
        if self.grader == "ours":
            return style.accuracy
        if style.read is tagged:
            raise ValueError(
                f"--reward.grader is {self.grader}, but boxes and points are no mathematics; use --reward.grader ours."
            )
        if self.grader == "mathruler" and style.accuracy is pay.boxed_accuracy:
            # Exactly EasyR1's, with its oddities about a missing box.
            return math_accuracy
        return Graded(style.read, self.grader)


OURS = {"accuracy": 0.9, "format": 0.1, "grader": "ours"}
"""How the tiny model of the embedded presets is paid, unless the method says otherwise."""
EITHER_ORDER = {"own": ("words",), "correct": "words", "grader": "ours"}
"""The same where right answers shall be able to differ: "red circle" and "circle red" are both right."""
