"""How questions about clips are put, times are told, and answers are read and paid: the styles of the span papers.

`span_style_of(Asking(style=...))` is what belongs together: wording, reward parts, text of the true answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmrl.data.grounding import rewards as pay
from mmrl.data.grounding.questions import (
    SET_TEMPLATE,
    SPAN_TEMPLATE,
    STAMPED_TEMPLATE,
    THINK_TEMPLATE,
    clean_query,
    plain_query,
    span_answer,
    think_answer,
)
from mmrl.data.grounding.rewards import SpanReward
from mmrl.data.grounding.spans import Spans
from mmrl.data.grounding.time_encodings import EncodingName
from mmrl.data.grounding.video_r1 import video_r1_accuracy, video_r1_format

Asked = Literal[
    "timelens", "timezero", "time-r1", "videochat-r1", "timelens2", "tempsamp-r1", "video-r1"
]
THINK_QUESTION = "{query}\nThink first, inside <think> </think>; then give the answer alone inside <answer> </answer>."
WRITTEN_TIMES = ("interleaved_times", "drawn_times", "prefix_times")
"""Ways of telling that put the times where the model reads them as text."""


@dataclass(frozen=True)
class Asking:
    """How the question is put, times are told, and answers are read and paid."""

    style: Asked = "timelens"
    """Whose wording, parser and reward: timelens (answers at once, IoU), timezero, time-r1, videochat-r1 (think first,
    IoU and format), timelens2 (any number of spans), tempsamp-r1 (shaped IoU), video-r1 (questions about clips)."""
    time: EncodingName = "native"
    """How times are told: by the model's own means, before each pair of frames, in one list, or drawn on the frames."""
    snap: bool = False
    """Put true spans of the training rows on the times that are shown (TimeLens-7B)."""


@dataclass(frozen=True)
class SpanStyle:
    """What belongs together."""

    template: str
    parts: Mapping[str, tuple[float, Callable[..., float]]]
    """Reward part -> weight and function; `accuracy` is the one that is evaluated."""
    target: Callable[[Spans], str] = span_answer
    """Text of the true answer."""
    video_first: bool = True
    clean: Callable[[str], str] = clean_query


def span_style_of(asking: Asking) -> SpanStyle:
    """Wording, reward and target of an asking style."""
    iou = (0.0, SpanReward(pay.span_iou))  # logged, never paid: one scale for all styles
    if asking.style == "timelens":
        template = STAMPED_TEMPLATE if asking.time in WRITTEN_TIMES else SPAN_TEMPLATE
        return SpanStyle(template, {"accuracy": (1.0, SpanReward(pay.timelens_iou))})
    if asking.style == "timelens2":
        return SpanStyle(SET_TEMPLATE, _set_parts(), _set_answer)
    if asking.style == "tempsamp-r1":
        shaped = {"accuracy": (1.0, SpanReward(pay.tempsamp_reward)), "iou": iou}
        return SpanStyle(THINK_TEMPLATE, shaped, _tagged_answer, clean=plain_query)
    if asking.style == "video-r1":
        parts = {
            "accuracy": (1.0, video_r1_accuracy),
            "format": (1.0, OfText(video_r1_format)),
        }
        return SpanStyle(THINK_QUESTION, parts)
    scores = {
        "timezero": pay.time_zero_iou,
        "time-r1": pay.time_r1_iou,
        "videochat-r1": pay.videochat_r1_iou,
    }
    parts = {
        "accuracy": (1.0, SpanReward(scores[asking.style])),
        "format": (1.0, SpanReward(pay.time_zero_format)),
        "iou": iou,
    }
    video_first = asking.style != "videochat-r1"
    return SpanStyle(THINK_TEMPLATE, parts, _thought_answer, video_first, plain_query)


def _set_parts() -> dict[str, tuple[float, Callable[..., float]]]:
    return {
        "accuracy": (1.0, SpanReward(pay.timelens2_set_iou)),
        "wasserstein": (1.0, SpanReward(pay.timelens2_wasserstein)),
        "readable": (1.0, SpanReward(pay.timelens2_penalty)),
    }


def _set_answer(spans: Spans) -> str:
    pairs = [f"[{start:.1f}, {end:.1f}]" for start, end in spans]
    return f"[{', '.join(pairs)}]"


def _tagged_answer(spans: Spans) -> str:
    start, end = spans[0]
    return f"<answer> {start:.2f} to {end:.2f} </answer>"


def _thought_answer(spans: Spans) -> str:
    return think_answer(spans[0])


@dataclass(frozen=True)
class OfText:
    """A function of the text as a reward of rollouts."""

    score: Callable[[str], float]

    def __call__(self, rollout: Any) -> float:
        return self.score(rollout.text)
