"""What an answer to "when does this happen?" is paid: our default, and each paper's reward in its own form. No torch.

Ours, `span_iou`: IoU of the first span with the best true span. Whatever is no span earns 0 and is counted by
`span_fault`: nothing readable, reversed (not swapped: swapping pays sloppy answers), of zero length. Nothing is clipped
to the clip. `set_reward` does the same for answers of any number of spans.

    TimeLens       timelens_iou                  first span, reversed or empty 0
    TimeZero       time_zero_iou                 last span of the last answer block, IoU over the hull
    VideoChat-R1   videochat_r1_iou              the same; two equal points are worth 1
    Time-R1        time_zero_iou, time_r1_iou    the second: IoU · (1 - |Δs|/D) · (1 - |Δe|/D)
    VideoChat-R1   glue_iou, glue_answer, glue_format
    TimeLens2      timelens2_reward              W1 reward + set IoU + parse penalty
    TempSamp-R1    tempsamp_reward               shaped IoU and a format

Departures of the compatible forms, each a crash or an accident of the code (vtg_related, section 1):
1. Equal points in TimeZero and Time-R1 use a variable before it is set, or that of the sample before: 0 here.
2. `time_r1_iou` clamps both factors to [0, 1]; with `clamp=False` two predictions outside the clip can multiply to a
   positive value, as in the code.

docs/grounding.md shows each by a line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmrl.data.grounding.span_math import (
    hull_iou,
    length_ratio_penalty,
    matched_giou,
    set_iou,
    timelens2_giou,
    timelens2_iou,
    wasserstein_reward,
)
from mmrl.data.grounding.spans import (
    NUMBER,
    THINK_ANSWER,
    Span,
    Spans,
    answer_span,
    as_spans,
    first_two_numbers,
    glue_spans,
    json_spans,
    last_span,
    lenient_spans,
    strict_spans,
    timelens_spans,
)

if TYPE_CHECKING:
    from mmrl.types import Rollout

Score = Callable[[str, Spans, float | None], float]
"""(answer, true spans in seconds, duration of the clip in seconds or None) -> reward."""

KEYWORDS = (
    "analyze", "compare", "deduce", "however", "therefore", "because",
    "step", "observe", "notice", "identify", "wait",
)  # fmt: skip
"""Words of reasoning that Time-R1 counts in its log."""
PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    # One text, as in the original, where a comma is missing.
    "Best answer:Best option:",
)
"""Stock phrases that VideoChat-R1 removes before it looks for a letter, in its order."""


@dataclass(frozen=True)
class SpanReward:
    """A score as a reward of rollouts: reads `prompt.answer` (a span or a list of them) and `extra["duration"]`."""

    score: Score

    def __call__(self, rollout: Rollout) -> float:
        try:
            truth = as_spans(rollout.prompt.answer)
        except ValueError as error:
            raise ValueError(
                f"Prompt {rollout.prompt.id!r} has no true span: {error}"
            ) from error
        return self.score(rollout.text, truth, rollout.prompt.extra.get("duration"))


def span_iou(text: str, truth: Spans, duration: float | None = None) -> float:
    """Ours: IoU of the first span with the true span it fits best, in [0, 1]; 0 for what is no span."""
    spans = lenient_spans(text)
    if not spans:
        return 0.0
    start, end = spans[0]
    if start >= end:
        return 0.0
    return max(hull_iou((start, end), span) for span in truth)


def set_reward(text: str, truth: Spans, duration: float | None = None) -> float:
    """Ours, for any number of spans: IoU of the merged sets, in [0, 1]; 0 if one of the spans is none."""
    spans = json_spans(text) or lenient_spans(text)
    if not spans or any(start >= end for start, end in spans):
        return 0.0
    return set_iou(spans, truth, empty=0.0)


def span_fault(text: str, duration: float | None = None) -> str:
    """Why an answer earns nothing, for counting: "unreadable", "reversed", "empty", "outside" (paid) or ""."""
    spans = lenient_spans(text)
    if not spans:
        return "unreadable"
    start, end = spans[0]
    if start >= end:
        return "reversed" if start > end else "empty"
    return "outside" if duration is not None and end > duration else ""


def template_format(
    text: str, truth: Spans | None = None, duration: float | None = None
) -> float:
    """1 if the answer is the template and nothing else, a thinking block aside; else 0."""
    return float(strict_spans(text) is not None)


def timelens_iou(text: str, truth: Spans, duration: float | None = None) -> float:
    """TimeLens: the first span read against the first true span; 0 if it does not start before it ends."""
    spans = timelens_spans(text)
    if not spans or spans[0][0] >= spans[0][1]:
        return 0.0
    return hull_iou(truth[0], spans[0])


def time_zero_format(
    text: str, truth: Spans | None = None, duration: float | None = None
) -> float:
    """1 if the stripped text is a thinking and an answer block; further blocks may hide inside of them."""
    # THINK_ANSWER is the same pattern with a group; the codes differ in stripping only.
    return float(THINK_ANSWER.fullmatch(text.strip()) is not None)


def timelens_format(
    text: str, truth: Spans | None = None, duration: float | None = None
) -> float:
    """1 if the whole text, not stripped, is a thinking and an answer block; TimeLens pays it when it thinks."""
    return float(THINK_ANSWER.fullmatch(text) is not None)


def time_zero_iou(text: str, truth: Spans, duration: float | None = None) -> float:
    """TimeZero, and the plain reward of Time-R1: reversed spans are read and are worth 0."""
    span = answer_span(text)
    return hull_iou(span, truth[0]) if span else 0.0


def videochat_r1_iou(text: str, truth: Spans, duration: float | None = None) -> float:
    """VideoChat-R1: a reversed span is not read; 1 where both spans are the same point."""
    span = answer_span(text, ordered=True)
    if span is None:
        return 0.0
    if _same_point(span, truth[0]):
        return 1.0
    return hull_iou(span, truth[0])


def time_r1_iou(
    text: str, truth: Spans, duration: float | None, *, clamp: bool = True
) -> float:
    """Time-R1's default: IoU times how near each end is, in shares of the duration. Raises ValueError without one."""
    if not duration or duration <= 0:
        raise ValueError(
            f"The clip's duration is {duration}; this reward needs it, positive, in extra['duration']."
        )
    span = answer_span(text)
    if span is None:
        return 0.0
    start, end = truth[0]
    near_start = 1 - abs(start - span[0]) / duration
    near_end = 1 - abs(end - span[1]) / duration
    if clamp:
        # Ends further away than the clip is long make both factors negative, and their product would be paid.
        near_start, near_end = _unit(near_start), _unit(near_end)
    return hull_iou(span, truth[0]) * near_start * near_end


def time_r1_difficulty(text: str, truth: Spans) -> float:
    """Time-R1's difficulty field, 0 to 100: the IoU of its evaluation parser, so that higher is *easier*.

    nan, as there, where both spans are the same point: drop such rows.
    """
    span = last_span(text)
    if span is None:
        return 0.0
    if _same_point(span, truth[0]):
        return math.nan
    return 100 * hull_iou(span, truth[0])


def time_r1_filter_span(text: str) -> Span | None:
    """What Time-R1 takes for the answer while it filters: its evaluation parser, else the first two numbers."""
    return last_span(text) or first_two_numbers(text)


def time_r1_thought(text: str) -> dict[str, float]:
    """What Time-R1 logs about the last thinking block: timestep_pair, think_length, keyword_usage, paragraphs."""
    blocks = re.findall(r"<think>(.*?)</think>", text, re.DOTALL)
    thought = blocks[-1].strip() if blocks else ""
    timestep = rf"<timestep>\s*{NUMBER}\s+to\s+{NUMBER}\s*</timestep>"
    pair = re.search(timestep, thought, re.IGNORECASE)
    # Each keyword counts once, also inside of other words: "wait" in "await".
    words = sum(word in thought.lower() for word in KEYWORDS)
    lines = sum(bool(line.strip()) for line in thought.split("\n"))
    return {
        "timestep_pair": 0.2 * (pair is not None),
        "think_length": 0.001 * min(len(thought), 500),
        "keyword_usage": 0.1 * min(words, 2),
        "paragraphs": 0.05 * min(lines, 2),
    }


def glue_iou(text: str, truth: Spans, duration: float | None = None) -> float:
    """VideoChat-R1 grounded answers: IoU of the merged sets; 1 where neither has length; 0 for an invalid list."""
    spans = glue_spans(text)
    return 0.0 if spans is None else set_iou(spans, truth)


def glue_answer(text: str, letter: str) -> float:
    """1 if the first of the letters A to G in the first answer block, stock phrases removed, is that of the truth."""
    block = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if block is None:
        return 0.0
    return float(_letter(block.group(1)) == _letter(letter))


def glue_format(text: str) -> float:
    """1 for a thinking, an answer and a glue block whose list is valid; else 0."""
    blocks = r"<think>.*?</think>\s*<answer>.*?</answer>\s*<glue>.*?</glue>"
    in_blocks = re.fullmatch(blocks, text.strip(), re.DOTALL) is not None
    return float(in_blocks and glue_spans(text) is not None)


def timelens2_reward(
    text: str, truth: Spans, duration: float | None = None, *, beta: float = 1.0
) -> float:
    """TimeLens2, released 4B run: W1 reward + set IoU, in [0, 2]; -1 if the answer cannot be read."""
    spans = json_spans(text)
    if not spans:
        return -1.0
    return wasserstein_reward(spans, truth, beta) + timelens2_iou(spans, truth)


def timelens2_set_iou(text: str, truth: Spans, duration: float | None = None) -> float:
    """TimeLens2: its set IoU, 0 for an answer that cannot be read."""
    return timelens2_parts(text, truth)["iou"]


def timelens2_wasserstein(text: str, truth: Spans, duration: float | None = None) -> float:
    """TimeLens2: its W1 reward with β = 1, 0 for an answer that cannot be read."""
    return timelens2_parts(text, truth)["wasserstein"]


def timelens2_penalty(text: str, truth: Spans, duration: float | None = None) -> float:
    """TimeLens2: -1 for an answer that cannot be read, else 0."""
    return timelens2_parts(text, truth)["parse_penalty"]


def timelens2_parts(text: str, truth: Spans, beta: float = 1.0) -> dict[str, float]:
    """Every reward that TimeLens2 can combine; all 0 for an answer that cannot be read, but parse_penalty -1."""
    spans = json_spans(text)
    if not spans:
        unpaid = ("iou", "giou", "matched_giou", "length_ratio_penalty", "wasserstein")
        return dict.fromkeys(unpaid, 0.0) | {"parse_penalty": -1.0}
    return {
        "iou": timelens2_iou(spans, truth),
        "giou": timelens2_giou(spans, truth),
        "matched_giou": matched_giou(spans, truth),
        "length_ratio_penalty": length_ratio_penalty(spans, truth),
        "wasserstein": wasserstein_reward(spans, truth, beta),
        "parse_penalty": 0.0,
    }


def soft_shaping(iou: float, threshold: float = 0.8, alpha: float = 1.0) -> float:
    """TempSamp-R1: compresses what is above the threshold and stretches what is below. Increasing, continuous.

    τ + 0.01 ln(r - τ + 1) for r ≥ τ, τ - (e^{α(τ - r)} - 1) / (e^α - 1) below.
    """
    if iou >= threshold:
        return threshold + 0.01 * math.log(iou - threshold + 1)
    # expm1(x) = e^x - 1 without loss near 0, where the shortfall is small.
    return threshold - math.expm1(alpha * (threshold - iou)) / math.expm1(alpha)


def tempsamp_reward(text: str, truth: Spans, duration: float | None = None) -> float:
    """TempSamp-R1: shaped IoU, plus 0.1 if the answer block holds a pair of numbers."""
    span = answer_span(text)
    blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    pair = re.compile(rf"{NUMBER}\s*(?:to|and|-)\s*{NUMBER}", re.IGNORECASE)
    # The format is wider than the parser: "10-20" has it and is not read, so that its IoU is 0.
    paired = any(pair.search(block) for block in blocks)
    iou = hull_iou(span, truth[0]) if span else 0.0
    return soft_shaping(iou) + 0.1 * paired


def _letter(answer: str) -> str:
    for phrase in PHRASES:
        answer = answer.replace(phrase, "")
    found = re.search("[ABCDEFG]", answer)
    # Without a letter the text is "", so that two answers without one are equal, as there.
    return found.group() if found else ""


def _same_point(span: Span, true: Span) -> bool:
    """Both spans are one and the same point of time: their hull has no length."""
    return span == true and span[0] == span[1]


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
