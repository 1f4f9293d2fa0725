r"""Rewards of VLM-R1 as in the official code (om-ai-lab/VLM-R1): choices, yes/no, detection, referring, format.

Detection answers are a fenced ```json list of {"bbox_2d": [x0, y0, x1, y1], "label": name}; every prediction has
score 1. `mean_ap` is COCO's mAP (or AP at 0.5) of the picture, with `length_reward` times min(1, truths / predictions).
`weighted_sum` pairs boxes greedily by IoU >= 0.5 and pays (0.7 position + 0.3 completeness) / 1, position the mean IoU
of pairs with the right label, completeness 1 - (miss rate + false alarm rate) / 2.

Oddities kept on purpose (closed in `mmrl.perception.rewards`):
1. The choice extractor upper-cases everything, misses "(A)", and scores ambiguous letters by surrounding words.
2. Yes/no pays 1 when neither text has yes or no, and finds "no" inside "know".
3. Both lists empty pays 1, and so does "none" for "none".
4. Surplus predictions after the right one cost nothing in `mean_ap` without `length_reward`.
5. Referring IoU is half-open, but an intersection at most one pixel wide counts as none.
6. The default accuracy pays similar words in part, by the Levenshtein ratio.
7. The format of a referring answer is searched anywhere, so text before it does not matter.

Departures: broken JSON is not repaired for the repetition penalty (the official code uses the json_repair package), it
is treated as text; a prediction without label has the empty label in `weighted_sum` (there: an error, or the label of
the one before); math-verify runs without its signal time-outs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrl.perception.boxes import (
    COCO_THRESHOLDS,
    Canvas,
    Detections,
    convert,
    mean_average_precision,
)
from mmrl.perception.compat import math_verified

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ONE_LINE_ANSWER = re.compile(r"<answer>(.*?)</answer>")
_FENCED = re.compile(r"```json(.*?)```", re.DOTALL)
_FENCED_ANY = re.compile(r"```(.*?)```", re.DOTALL)
_BOX_LIST = re.compile(r'\[\s*{.*?"bbox_2d".*?"label".*?}\s*\]', re.DOTALL)
_LAYOUT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_REFERRING_QWEN = re.compile(
    r"<think>.*?</think>\s*<answer>.*?\{.*\[\d+,\s*\d+,\s*\d+,\s*\d+\].*\}.*?</answer>",
    re.DOTALL,
)
_REFERRING_INTERNVL = re.compile(
    r"<think>.*?</think>\s*<answer>.*?\[\d+,\s*\d+,\s*\d+,\s*\d+\].*?</answer>", re.DOTALL
)
_FOUR = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)]")
_LETTER = re.compile(r"(?<![A-Z])([A-Z])(?=[.,?!:;]|$)")
_HINTS = (
    *("答案", "选择", "正确", "是", "对", "认为", "应该", "觉得"),
    *("ANSWER", "CORRECT", "CHOOSE", "SELECT", "RIGHT", "THINK", "BELIEVE", "SHOULD"),
)


def extract_choice(text: str) -> str | None:
    """The letter that the text seems to choose, or None."""
    text = re.sub(r"\s+", " ", text.upper())
    letters = _LETTER.findall(text)
    if len(letters) <= 1:
        return letters[0] if letters else None
    scores = dict.fromkeys(letters, 0)
    for letter in letters:
        at = text.find(letter)  # the first place, also for a letter that comes again
        around = text[max(0, at - 20) : at + 20]
        scores[letter] += sum(hint in around for hint in _HINTS)
        scores[letter] += 2 * (at > len(text) * 0.7)
        followed = at < len(text) - 1 and text[at + 1] in "。.!！,，"
        scores[letter] += followed
    return max(scores, key=lambda letter: scores[letter])


def multiple_choice(content: str, solution: str) -> float:
    """1 if the first `<answer>` (or the text) chooses the solution's letter, else 0."""
    letter = extract_choice(_stated(solution))
    right = letter if letter is not None else solution.strip()
    found = _ANSWER.search(content)
    answer = found.group(1) if found else content
    return float(extract_choice(answer.strip()) == right)


def yes_no(content: str, solution: str) -> float:
    """1 if the first "yes" or "no" in answer and solution agree, or neither has any, else 0."""
    content, solution = content.lower(), solution.lower()
    found = _ANSWER.search(content)
    answer = found.group(1) if found else content
    return float(_yes_or_no(answer) == _yes_or_no(_stated(solution)))


def _yes_or_no(text: str) -> str:
    """The first "yes" or "no", also inside a word; empty if there is none."""
    found = re.search("yes|no", text)
    return found.group() if found else ""


def mean_ap(
    content: str, solution: str, *, length_reward: bool = False, score_type: int = 0
) -> float:
    """COCO's mAP over 0.50:0.95 (`score_type` 0) or AP at 0.50 (1) of the last fenced list against the truth's."""
    truth = _fenced_list(solution, strict=True)
    predicted = _fenced_list(content)
    if not predicted or not truth:
        value = float(not predicted and not truth)
    else:
        boxes = np.array([_corners(entry) for entry in truth])
        labels = tuple(entry["label"] for entry in truth)
        value = _official_map(predicted, Detections(boxes, labels), score_type)
    if length_reward and predicted:
        # Also those predictions count that the official mAP leaves out.
        value *= min(1.0, len(truth) / len(predicted))
    return value


def detection(
    content: str, solution: str, *, score_type: int = 0, length_reward: bool = False
) -> float:
    """`mean_ap` of the last `<answer>`; 1 if answer and truth both read "None", 0 without the tag.

    The official names are od_ap (defaults), od_ap50 (score_type 1) and odLength (length_reward).
    """
    truth, answers = _ANSWER.search(solution), _ANSWER.findall(content)
    if not answers:
        return 0.0
    if truth is None:
        raise ValueError(
            f"the solution {solution[:80]!r} has no <answer> tag, which VLM-R1's detection rewards need."
        )
    # The last answer, but the first truth: a solution is expected to hold only one.
    answer = answers[-1].strip()
    expected = truth.group(1).strip()
    if answer == expected == "None":
        return 1.0
    return mean_ap(answer, expected, score_type=score_type, length_reward=length_reward)


def weighted_sum(content: str, solution: str) -> float:
    """Greedy pairing by IoU: 0.7 position + 0.3 completeness; "none" for "none" pays 1."""
    given, expected = clean_text(content), clean_text(solution)
    if expected == "none":
        return float(given == "none")
    truth, predicted = _first_fenced(expected, strict=True), _first_fenced(given)
    if not truth or not predicted:
        return float(not truth and not predicted)
    pairs = _greedy_pairs(predicted, truth)
    # A pair with the wrong label earns no position but counts as found.
    overlap = 0.0
    for row, column, value in pairs:
        if _lower_label(predicted[row]) == _lower_label(truth[column]):
            overlap += value
    position = overlap / len(truth)
    missed = 1 - len(pairs) / len(truth)
    surplus = 1 - len(pairs) / len(predicted)
    return 0.7 * position + 0.3 * (1 - (missed + surplus) / 2)


def all_match(content: str, solution: str) -> float:
    """1 if both texts are equal after `clean_text`, else 0."""
    return float(clean_text(content) == clean_text(solution))


def default_accuracy(content: str, solution: str) -> float:
    """math-verify, else equal numbers, else equal choice letters, else the similarity of the texts; 0 to 1."""
    expected, answers = _stated(solution), _ANSWER.findall(content)
    answer = answers[-1].strip() if answers else content.strip()
    if math_verified(answer, expected):
        return 1.0
    given, wanted = clean_text(answer), clean_text(expected)
    if re.search(r"\d", expected):
        # A digit anywhere makes the reference a number; where it is none, texts are compared.
        try:
            return float(float(given) == float(wanted))
        except ValueError:
            return similarity(given, wanted)
    if letter := extract_choice(expected):
        return float(extract_choice(answer) == letter)
    return similarity(given, wanted)


def repetition(content: str) -> float:
    """-(1 - distinct / all) over the labelled boxes of a JSON list, else over the 6-grams of words; -1 to 0."""
    entries = _any_list(content)
    grams: list[Any] = []
    if entries is not None:
        for entry in entries:
            if isinstance(entry, Mapping) and "bbox_2d" in entry and "label" in entry:
                grams.append(f"{entry['bbox_2d']}_{entry['label']}")
    else:
        words = content.lower().split()
        for start in range(len(words) - 5):
            grams.append(tuple(words[start : start + 6]))
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


def think_answer_format(content: str) -> float:
    """1 if the whole text is `<think>…</think><answer>…</answer>` with only spaces between, else 0."""
    return float(_LAYOUT.fullmatch(content) is not None)


def referring_format(content: str, *, family: str = "qwen") -> float:
    """1 if somewhere an answer with four integers in brackets ("qwen": inside braces; "internvl") follows a thought."""
    pattern = _REFERRING_INTERNVL if family == "internvl" else _REFERRING_QWEN
    return float(pattern.search(content) is not None)


def referring_iou(content: str, solution: str, canvas: Canvas | None = None) -> float:
    """IoU of the first box in the first `<answer>` with the labelled box, 0 to 1.

    Qwen: give the canvas, whose resized pixels the prediction is in; the label is in original pixels. InternVL: none.
    """
    truths = _ANSWER.findall(solution)
    if not truths:
        raise ValueError(
            f"the solution {solution[:80]!r} has no <answer> tag with the box [x0, y0, x1, y1]."
        )
    truth = json.loads(truths[-1].strip())
    found = _ANSWER.search(content)
    box = _FOUR.search(found.group(1)) if found else None
    if box is None:
        return 0.0
    corners = [float(value) for value in box.groups()]
    if canvas is not None:
        corners = convert(corners, "resized", "original", canvas).tolist()
    value = _pixel_iou(corners, truth)
    # Numbers of hundreds of digits are infinite as floats.
    return value if math.isfinite(value) else 0.0


def clean_text(text: str) -> str:
    """The last `<answer>` (or the text) on one line, in lower case, without spaces and full stops at the end."""
    answers = _ANSWER.findall(text)
    text = answers[-1] if answers else text
    # A line end behind a space is dropped, any other becomes a space.
    for end in ("\n", "\r"):
        text = re.sub(rf"(?<=\s){end}", "", text)
        text = text.replace(end, " ")
    return text.strip().rstrip(".").lower()


def similarity(first: str, second: str) -> float:
    """Levenshtein ratio: 2 * longest common subsequence / total length; 1 for two empty texts."""
    if not first and not second:
        return 1.0
    # One row of the table of common subsequences, overwritten from left to right.
    longest = [0] * (len(second) + 1)
    for char in first:
        diagonal = 0  # the row above, one column to the left
        for column, other in enumerate(second, start=1):
            above = longest[column]
            if char == other:
                longest[column] = diagonal + 1
            else:
                longest[column] = max(above, longest[column - 1])
            diagonal = above
    return 2 * longest[-1] / (len(first) + len(second))


def _stated(solution: str) -> str:
    """What stands in the solution's tag, on one line, or the solution itself."""
    found = _ONE_LINE_ANSWER.search(solution)
    return found.group(1).strip() if found else solution.strip()


def _loaded(fenced: str | None, strict: bool) -> list[Any]:
    """The entries of a JSON text; broken or missing text gives none, unless it is the truth's."""
    if fenced is None:
        return []
    try:
        return list(json.loads(fenced.strip()))
    except (ValueError, TypeError, RecursionError) as error:
        if strict:
            raise ValueError(
                f"the solution's list {fenced[:80]!r} is no JSON list; correct the row."
            ) from error
        return []


def _fenced_list(text: str, strict: bool = False) -> list[Any]:
    """The entries of the last fenced list."""
    blocks = _FENCED.findall(text)
    return _loaded(blocks[-1] if blocks else None, strict)


def _first_fenced(text: str, strict: bool = False) -> list[Any]:
    """The entries of the first fenced list."""
    found = _FENCED.search(text)
    return _loaded(found.group(1) if found else None, strict)


def _any_list(content: str) -> list[Any] | None:
    """The first JSON list that the text seems to hold: fenced as json, fenced, or bare."""
    found = _FENCED.search(content)
    text = found.group(1).strip() if found else ""
    if not found:
        found = _FENCED_ANY.search(content)
        text = found.group(1).strip() if found else ""
        if not text:
            bare = _BOX_LIST.search(content)
            text = bare.group() if bare else ""
    try:
        entries = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return entries if isinstance(entries, list) and entries else None


def _corners(entry: Mapping[str, Any]) -> list[float]:
    """The four numbers of a labelled box; text is none."""
    # Adding 0.0 refuses text, which float() would read as a number.
    return [value + 0.0 for value in entry["bbox_2d"][:4]]


def _official_map(predicted: Sequence[Any], truth: Detections, score_type: int) -> float:
    """COCO's value over the predictions that have a box and a known label; 0 if there is none."""
    boxes, labels = [], []
    for entry in predicted:
        try:
            corners, label = _corners(entry), entry["label"]
            known = len(corners) == 4 and label in truth.labels
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            continue  # the official code leaves such predictions out as well
        if known:
            boxes.append(corners)
            labels.append(label)
    if not boxes:
        return 0.0
    thresholds = COCO_THRESHOLDS if score_type == 0 else (0.5,)
    found = Detections(np.array(boxes), tuple(labels))
    return mean_average_precision(found, truth, thresholds)


def _lower_label(entry: Any) -> str:
    """The label in lower case; empty if there is none."""
    label = entry.get("label") if isinstance(entry, Mapping) else None
    return label.lower() if isinstance(label, str) else ""


def _greedy_pairs(
    predicted: Sequence[Any], truth: Sequence[Any]
) -> list[tuple[int, int, float]]:
    """Pairs (prediction, truth, IoU), largest IoU first, down to 0.5; of equals the first prediction wins."""
    rows = [[_safe_iou(entry, label) for label in truth] for entry in predicted]
    overlap = np.array(rows)  # [M, N]
    pairs: list[tuple[int, int, float]] = []
    while len(pairs) < min(overlap.shape):
        # argmax gives the first of equals, hence the first prediction.
        row, column = divmod(int(overlap.argmax()), len(truth))
        value = float(overlap[row, column])
        if value < 0.5:
            break
        pairs.append((row, column, value))
        overlap[row, :] = overlap[:, column] = -1.0  # both are taken
    return pairs


def _safe_iou(one: Any, other: Any) -> float:
    """IoU of two entries; 0 if a box cannot be read."""
    try:
        return _pixel_iou(one["bbox_2d"], other["bbox_2d"])
    except (TypeError, KeyError, IndexError, OverflowError):
        return 0.0


def _pixel_iou(box: Sequence[float], other: Sequence[float]) -> float:
    """Half-open IoU in which an intersection at most one pixel wide or high is none."""
    left, right = max(box[0], other[0]), min(box[2], other[2]) - 1
    top, bottom = max(box[1], other[1]), min(box[3], other[3]) - 1
    shared = 0
    # Last pixels are compared, so that one shared column (left equals right) is no overlap: oddity 5.
    if left < right and top < bottom:
        shared = (right - left + 1) * (bottom - top + 1)
    union = _half_open_area(box) + _half_open_area(other) - shared
    return shared / union if union else 0.0


def _half_open_area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
