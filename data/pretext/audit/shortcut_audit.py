"""Eight cheap ways to answer without understanding. If one of them works, a model will find it.

majority   the most frequent answer of other samples
blind      words of the prompt only: the answer that went with the most telling word, or the worked example
boundary   continuity of borders: tiles (least squared differences along touching edges, greedy with exchanges), a patch
           against the rim of its hole, clips by last and first frames
histogram  colour statistics: most alike neighbours, the option nearest to the surround or the crop, the outlier
sharpness  the sharpest or the blurriest piece, or the one whose 8×8 JPEG grid shows most; orders by these
cut        jumps between frames (stretches of time, one moment); changed regions between two pictures (boxes)
position   the first option, the last one, the listed order, its reverse, the middle
meta       sizes, counts, durations, lengths of text: nearest neighbours among other samples

`fit` sees labelled samples, `answer` an unlabelled one; an auditor that does not apply answers None. Strategies that
come in several directions (sharpest or blurriest) take the one that was best on the labelled samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from mmrl.data.pretext.audit import shortcut_answers
from mmrl.data.pretext.contract import Sample, Task
from mmrl.data.pretext.surface import Surface

Strategy = Callable[[Task, Sample], str | None]


class Auditor(ABC):
    """One way to cheat."""

    name: str

    def fit(self, task: Task, samples: Sequence[Sample]) -> None:  # noqa: B027
        """Learn from labelled samples; most auditors need nothing."""

    @abstractmethod
    def answer(self, task: Task, sample: Sample) -> str | None:
        """An answer body, or None if this way does not apply. Must not look at truth, key, evidence or meta."""


class BestAuditor(Auditor):
    """The best of several fixed strategies on the labelled samples."""

    def __init__(self, name: str, strategies: Sequence[Strategy]) -> None:
        self.name, self._strategies, self._chosen = name, strategies, strategies[0]

    def fit(self, task: Task, samples: Sequence[Sample]) -> None:
        earned = [_earned(task, samples, strategy) for strategy in self._strategies]
        self._chosen = self._strategies[int(np.argmax(earned))]

    def answer(self, task: Task, sample: Sample) -> str | None:
        return self._chosen(task, sample)


class MajorityAuditor(Auditor):
    """The most frequent answer, or the one that would have earned most."""

    name = "majority"

    def fit(self, task: Task, samples: Sequence[Sample]) -> None:
        bodies = Counter(task.format(sample.truth) for sample in samples)
        # Where near misses are paid, the most frequent answer need not be the one that earns most.
        common = [body for body, _ in bodies.most_common(8)]
        earned = [sum(reward(task, sample, body) for sample in samples) for body in common]
        self._body = common[int(np.argmax(earned))] if common else None

    def answer(self, task: Task, sample: Sample) -> str | None:
        return self._body


class BlindAuditor(Auditor):
    """The answer that went with the most telling word of the prompt, or the echoed example; whichever earned more."""

    name = "blind"

    def fit(self, task: Task, samples: Sequence[Sample]) -> None:
        half = len(samples) // 2
        # Chosen on samples that the words were not learned from, then learned again from all.
        self._learn(task, samples[:half])
        ways = (self._telling_word, shortcut_answers.echo)
        earned = [_earned(task, samples[half:], way) for way in ways]
        self._way = ways[int(np.argmax(earned))]
        self._learn(task, samples)

    def answer(self, task: Task, sample: Sample) -> str | None:
        return self._way(task, sample)

    def _learn(self, task: Task, samples: Sequence[Sample]) -> None:
        self._followed: dict[str, Counter[str]] = {}
        for sample in samples:
            for word in set(shortcut_answers.prompt_words(sample)):
                self._followed.setdefault(word, Counter())[task.format(sample.truth)] += 1

    def _telling_word(self, task: Task, sample: Sample) -> str | None:
        found, best = None, -1.0
        for word in sorted(set(shortcut_answers.prompt_words(sample)) & self._followed.keys()):
            seen = self._followed[word]
            body, count = seen.most_common(1)[0]
            purity = count / (seen.total() + 2.0)  # a word seen once tells little
            if purity > best:
                found, best = body, purity
        return found


class MetaAuditor(Auditor):
    """Five nearest neighbours over sizes, counts and lengths."""

    name = "meta"

    def fit(self, task: Task, samples: Sequence[Sample]) -> None:
        self._bodies = [task.format(sample.truth) for sample in samples]
        table = np.array([shortcut_answers.metadata(sample) for sample in samples])
        self._centre, self._spread = table.mean(axis=0), table.std(axis=0) + 1e-9
        self._table = (table - self._centre) / self._spread

    def answer(self, task: Task, sample: Sample) -> str | None:
        row = (np.array(shortcut_answers.metadata(sample)) - self._centre) / self._spread
        distances = np.abs(self._table - row).sum(axis=1)
        nearest = np.argsort(distances, kind="stable")[:5]
        return Counter(self._bodies[i] for i in nearest).most_common(1)[0][0]


def reward(task: Task, sample: Sample, body: str | None) -> float:
    """What a body earns; 0 for None."""
    if body is None:
        return 0.0
    return task.score(Surface().wrap(body), sample.truth).reward


def _earned(task: Task, samples: Sequence[Sample], strategy: Strategy) -> float:
    return sum(reward(task, sample, strategy(task, sample)) for sample in samples)


def auditors() -> tuple[Auditor, ...]:
    """The eight, fresh."""
    answers = shortcut_answers
    histograms = (
        answers.histogram_near,
        answers.histogram_outlier,
        answers.histogram_middle,
    )
    sharpness = (answers.sharpest, answers.blurriest, answers.blockiest)
    cuts = (answers.cut_span, answers.cut_moment, answers.changed_boxes)
    return (
        MajorityAuditor(),
        BlindAuditor(),
        BestAuditor("boundary", (answers.boundary, answers.boundary_relative)),
        BestAuditor("histogram", histograms),
        BestAuditor("sharpness", sharpness),
        BestAuditor("cut", cuts),
        BestAuditor("position", (answers.first, answers.last, answers.middle)),
        MetaAuditor(),
    )
