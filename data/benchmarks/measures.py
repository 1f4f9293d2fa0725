"""What is said of a set of answers: pure functions on numbers, shares in [0, 1] unless said otherwise.

    mean@k             mean score of k sampled answers (PAPO: k = 8 at temperature 1)
    majority           score of the answer that was given most often (self-consistency, arXiv 2203.11171)
    chance-normalised  (accuracy - chance) / (1 - chance): 0 is guessing, 1 is perfect
    all right          share of groups whose questions are all answered right (MMVP pairs, HallusionBench, DynaMath)
    relative accuracy  VSI-Bench (arXiv 2412.14171): share of the thresholds that a number's relative error stays below
    We-Math            arXiv 2407.01284: composite questions beside their own steps
    blind gap          accuracy with the picture minus accuracy without it, with a paired bootstrap
    RAC                share of judged answers that their own reasoning supports (PuzzleCraft, arXiv 2512.14944)

pass@k is `mmrl.training.evaluate.pass_at_k`, McNemar's test and the paired bootstrap of two runs are
`mmrl.report.evaluation.change`, spans are in `mmrl.data.grounding.metrics`, boxes and points in
`mmrl.perception.measures`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmrl.report.evaluation import RIGHT, Change, change

RELATIVE_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""VSI-Bench: 0.5, 0.55, … 0.95."""
Same = Callable[[str, str], bool]


def accuracy(scores: Sequence[float]) -> float:
    """Mean of the scores [N]; nan for none."""
    return float(np.mean(scores)) if len(scores) else math.nan


def mean_at_k(scores: Sequence[Sequence[float]], k: int) -> float:
    """Mean over questions of the mean score of their first k answers. Raises ValueError for fewer answers than k."""
    if k < 1:
        raise ValueError(f"mean@{k} averages no answer; k is at least 1.")
    fewest = min((len(answers) for answers in scores), default=k)
    if fewest < k:
        raise ValueError(
            f"mean@{k} needs {k} answers to every question, one has {fewest}; sample more or ask for a smaller k."
        )
    return accuracy([accuracy(answers[:k]) for answers in scores])


def majority(answers: Sequence[str | None], same: Same) -> int | None:
    """The place of the first answer that was given most often; None if none could be read.

    An answer joins the first earlier one it equals under `same`. Of two given equally often the earlier one wins.
    """
    # Place of the first of its kind -> votes; a dict keeps the order in which kinds appeared.
    votes: dict[int, int] = {}
    for place, answer in enumerate(answers):
        if answer is None:
            continue
        kind = next((first for first in votes if same(answer, str(answers[first]))), place)
        votes[kind] = votes.get(kind, 0) + 1
    return max(votes, key=votes.__getitem__) if votes else None


def majority_score(answers: Sequence[str | None], scores: Sequence[float], same: Same) -> float:
    """Score of the answer that most of the sampled answers to one question give; 0 if none could be read."""
    if len(answers) != len(scores):
        raise ValueError(f"{len(answers)} answers have {len(scores)} scores; each needs one.")
    chosen = majority(answers, same)
    return 0.0 if chosen is None else float(scores[chosen])


def chance_normalised(share: float, chance: float) -> float:
    """The share of the way from guessing to perfect; negative below chance. `chance` lies in [0, 1)."""
    if not 0 <= chance < 1:
        raise ValueError(f"chance is {chance}; guessing is right with a probability in [0, 1).")
    return (share - chance) / (1 - chance)


def all_right(groups: Sequence[object], scores: Sequence[float]) -> float:
    """Share of groups (one name per question) in which every score is above 0.5; nan for none."""
    kept: dict[object, bool] = {}
    for group, score in zip(groups, scores, strict=True):
        kept[group] = kept.get(group, True) and score > RIGHT
    return accuracy([float(right) for right in kept.values()])


def counting(counts: Sequence[float | None], truths: Sequence[float]) -> dict[str, float]:
    """How counts differ from the truth; None is an answer that holds no number.

    `exact` and `within_1` are shares of all questions, `mae`, `rmse` and `bias` (positive: too many) are over those
    with a number, `unread` is the share of the others. nan where nothing was read.
    """
    pairs = list(zip(counts, truths, strict=True))
    errors = np.array(
        [count - truth for count, truth in pairs if count is not None], dtype=float
    )
    total, read = len(pairs), len(errors)
    if not total:
        return dict.fromkeys(("exact", "within_1", "mae", "rmse", "bias", "unread"), math.nan)
    # An answer without a number is wrong, and has no distance.
    return {
        "exact": float(np.sum(errors == 0)) / total,
        "within_1": float(np.sum(np.abs(errors) <= 1)) / total,
        "mae": float(np.mean(np.abs(errors))) if read else math.nan,
        "rmse": float(np.sqrt(np.mean(errors**2))) if read else math.nan,
        "bias": float(np.mean(errors)) if read else math.nan,
        "unread": (total - read) / total,
    }


def relative_accuracy(given: float | None, truth: float) -> float:
    """Share of the thresholds t for which |given - truth| / |truth| ≤ 1 - t; 0 for None.

    A truth of 0 has no relative error: it is hit exactly or not at all.
    """
    if given is None or not math.isfinite(given):
        return 0.0
    if truth == 0:
        return float(given == 0)
    error = abs(given - truth) / abs(truth)
    # 1 - 0.9 is a little less than 0.1, which would fail an error of exactly a tenth.
    return accuracy([float(error <= 1 - t + 1e-9) for t in RELATIVE_THRESHOLDS])


@dataclass(frozen=True)
class Mastery:
    """We-Math's four kinds of composite questions, as shares of all of them."""

    insufficient: float
    """IK: composite wrong, a step wrong."""
    inadequate: float
    """IG: composite wrong, every step right."""
    complete: float
    """CM: composite right, every step right (loose: at least one step)."""
    rote: float
    """RM: composite right, a step wrong (loose: every step)."""

    @property
    def score(self) -> float:
        """Half of IG and all of CM."""
        return 0.5 * self.inadequate + self.complete


def mastery(composites: Sequence[tuple[bool, Sequence[bool]]], loose: bool = False) -> Mastery:
    """Mastery of (is the composite right, is each of its steps right); every composite has at least one step."""
    counts = dict.fromkeys(("insufficient", "inadequate", "complete", "rote"), 0)
    for right, steps in composites:
        if not steps:
            raise ValueError("A composite question has no steps; We-Math names two or three.")
        if right:
            knows = any(steps) if loose else all(steps)
            counts["complete" if knows else "rote"] += 1
        else:
            counts["inadequate" if all(steps) else "insufficient"] += 1
    total = len(composites)
    return Mastery(**{name: n / total if total else math.nan for name, n in counts.items()})


def error_split(right: Sequence[bool], seen: Sequence[bool | None]) -> dict[str, float]:
    """Why answers are wrong: `seen` says whether the answer's account of the picture holds what the question needs
    (the visual key information of the row), None where it could not be judged.

    `perception` (wrong, not seen), `reasoning` (wrong although seen), `unjudged` (wrong, not known) and `lucky` (right,
    not seen) are shares of all answers; the first three add up to the error rate.
    """
    total = len(right)
    counts = dict.fromkeys(("perception", "reasoning", "unjudged", "lucky"), 0)
    for is_right, was_seen in zip(right, seen, strict=True):
        if is_right:
            counts["lucky"] += was_seen is False
        elif was_seen is None:
            counts["unjudged"] += 1
        else:
            counts["reasoning" if was_seen else "perception"] += 1
    return {name: n / total if total else math.nan for name, n in counts.items()}


def blind_split(right: Sequence[bool], blind: Sequence[bool]) -> dict[str, float]:
    """Where the picture helps: the same questions asked with it and without it, as shares of all questions.

    `needs_picture` (right only with it), `guessable` (right both ways), `misled` (right only without it) and `lost`
    (wrong both ways) add up to 1.
    """
    names = {
        (True, False): "needs_picture",
        (True, True): "guessable",
        (False, True): "misled",
        (False, False): "lost",
    }
    counts = dict.fromkeys(names.values(), 0)
    for pair in zip(right, blind, strict=True):
        counts[names[bool(pair[0]), bool(pair[1])]] += 1
    total = len(right)
    return {name: n / total if total else math.nan for name, n in counts.items()}


def blind_gap(
    scores: Mapping[str, float], blind: Mapping[str, float], seed: int = 0
) -> Change | None:
    """Blind against sighted scores by question: `difference` is the gap, `low` and `high` its 95 % interval.

    Over the questions of both; None without any.
    """
    return compare(blind, scores, seed)


def compare(
    first: Mapping[str, float], second: Mapping[str, float], seed: int = 0
) -> Change | None:
    """Two runs by question: McNemar's exact test and a paired bootstrap of the difference; None without a pair."""
    before = {name: {"score": score} for name, score in first.items()}
    after = {name: {"score": score} for name, score in second.items()}
    return change(before, after, seed)


def rac(supported: Sequence[bool | None]) -> dict[str, float]:
    """`rac`, the share of the judged answers that their reasoning supports, and `judged`, the share that was judged."""
    judged = [verdict for verdict in supported if verdict is not None]
    share = len(judged) / len(supported) if supported else math.nan
    return {"rac": accuracy([float(verdict) for verdict in judged]), "judged": share}


def by_name(names: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Mean score of every name (category, data set), in the order of their first question."""
    kept: defaultdict[str, list[float]] = defaultdict(list)
    for name, score in zip(names, scores, strict=True):
        kept[name].append(score)
    return {name: accuracy(values) for name, values in kept.items()}
