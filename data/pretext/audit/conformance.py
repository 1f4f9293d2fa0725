"""What every task must keep. A third-party task runs the same checks: `for check in CHECKS: check(task, cases)`.

A case is a sample with the media it was made of. Each check raises AssertionError with the task and the sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from mmrl.data.pretext.contract import (
    INVALID,
    Kind,
    Knobs,
    Medium,
    Reject,
    Sample,
    Score,
    Task,
    Visual,
)
from mmrl.data.pretext.stream.samples import corrupt, equivalent, make, replay
from mmrl.data.pretext.stream.sources import DrawnSource
from mmrl.data.pretext.surface import Surface, Tags, Thinking
from mmrl.ground.seeds import philox

JUNK = (
    "",
    " ",
    "answer",
    "I do not know.",
    "<answer>",
    "<answer></answer>",
    "</answer>",
    "<answer>1<answer>1</answer>",
    "\\boxed{",
    "\\boxed{}",
    "\\boxed{\\boxed{1}}",
    "<answer>nan</answer>",
    "<answer>inf, -inf</answer>",
    "<answer>" + "9" * 5000 + "</answer>",
    "<answer>" + "1," * 900 + "</answer>",
    "<answer>" + "(" * 500 + "</answer>",
    "<answer>\x00\ud800</answer>",
    "<answer>1e999</answer>",
    "<answer>the answer is clear</answer>",
    "٣" * 10,
)
TAGS: tuple[Tags, ...] = ("answer", "boxed", "plain")
THINKING: tuple[Thinking, ...] = ("none", "think")
SURFACES = tuple(Surface(tags, thinking) for tags, thinking in product(TAGS, THINKING))


@dataclass(frozen=True)
class Case:
    """A sample and what it was made of."""

    sample: Sample
    media: tuple[Medium, ...]


Check = Callable[[Task, Sequence[Case]], None]


def drawn_media(task: Task, count: int, seed: int, index: int) -> tuple[Medium, ...]:
    """`count` drawn media of the first kind the task accepts."""
    kind = task.kinds[0]
    if kind == "none":
        return ()
    # Out of 24: drawing takes longer than the checks, and so most media are drawn once.
    places = [(7 * index + place) % 24 for place in range(count)]
    return tuple(_drawn(kind, task.avoid, seed, place) for place in places)


def drawn_cases(
    task: Task, levels: Sequence[float | None] = (None, 0.0, 1.0), each: int = 2
) -> list[Case]:
    """Samples on drawn media: default knobs (None) and some difficulty levels. Fails if under 20 % are accepted."""
    cases = []
    for place, level in enumerate(levels):
        knobs = task.defaults() if level is None else task.at_level(level)
        found = 0
        for index in range(5 * each):
            if found == each:
                break
            media = drawn_media(task, task.media_count(knobs), place, index)
            sample = make(task, media, knobs, seed=place, index=index)
            if isinstance(sample, Sample):
                cases.append(Case(sample, media))
                found += 1
        assert found == each, (
            f"{task.name} at level {level}: {found} of {5 * each} media accepted; last: {sample}"
        )
    return cases


def declares_itself(task: Task, cases: Sequence[Case]) -> None:
    assert task.name and task.version >= 1 and task.kinds and len(task.wordings) >= 2, (
        f"{task.name}: incomplete"
    )
    assert task.complete(task.defaults()) == task.defaults()
    for level in np.linspace(0, 1, 11):
        task.complete(task.at_level(float(level)))
    for name, knob in task.knobs.items():
        assert knob.help, f"{task.name}.{name} has no help text"


def pays_the_truth(task: Task, cases: Sequence[Case]) -> None:
    for case in cases:
        sample = case.sample
        answer = task.format(sample.truth)
        for surface in SURFACES:
            score = task.score(surface.wrap(answer), sample.truth, surface)
            assert score.correct and score.reward == 1.0, f"{task.name}: {answer} earns {score}"
            assert score.key == sample.key, f"{task.name}: key {score.key} is not {sample.key}"


def survives_junk(task: Task, cases: Sequence[Case]) -> None:
    for case, surface in product(cases[::2], SURFACES):
        truth = case.sample.truth
        for text in JUNK:
            score = task.score(text, truth, surface)
            assert 0.0 <= score.reward <= 1.0 and np.isfinite(score.reward)
            assert not score.correct or score.reward == 1.0
            # Without tags any text is an answer, and junk may be one that earns a little.
            if surface.tags != "plain":
                assert score.reward == 0.0, f"{task.name} pays {score} for {text[:40]!r}"
        assert task.score("", truth, surface).key == INVALID


def agrees_with_chance(
    task: Task, cases: Sequence[Case], guesses: int = 120, more: int = 24
) -> None:
    """Simulated guesses against the declared chance levels.

    Allowed: four standard errors over guesses, or six over samples. Few truths may be alike by luck: a disagreement is
    looked at again with `more` drawn samples before it counts."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(json.dumps(case.sample.knobs, sort_keys=True), []).append(case)
    for members in groups.values():
        knobs = members[0].sample.knobs
        if _disagreement(task, [case.sample for case in members], knobs, guesses):
            again = _disagreement(task, _samples(task, knobs, more), knobs, guesses)
            assert not again, f"{task.name} at {dict(knobs)} {again}"


def replays_exactly(task: Task, cases: Sequence[Case]) -> None:
    for case in cases:
        sample = case.sample
        recipe = json.loads(json.dumps(sample.recipe))
        again = replay(task, case.media, recipe, sample.surface)
        assert again.id == sample.id and again.messages == sample.messages
        assert again.truth == sample.truth and again.key == sample.key
        pairs = zip(again.visuals, sample.visuals, strict=True)
        assert all(same_pixels(first, second) for first, second in pairs)


def serialises(task: Task, cases: Sequence[Case]) -> None:
    for case in cases:
        sample = case.sample
        words = list(sample.messages)
        for part in (sample.truth, sample.knobs, sample.recipe, sample.meta, words):
            same = json.loads(json.dumps(part, allow_nan=False)) == _plain(part)
            assert same, f"{task.name}: {part} is not JSON"
        hash(sample.key)
        truth = json.loads(json.dumps(sample.truth))
        score = task.score(Surface().wrap(task.format(truth)), truth)
        same = score.correct and score.key == sample.key
        assert same, f"{task.name}: the truth does not survive JSON"


def shows_sane_pixels(task: Task, cases: Sequence[Case]) -> None:
    for case in cases:
        sample = case.sample
        parts = sample.messages[0]["content"]
        kinds = [part["type"] for part in parts if part["type"] != "text"]
        assert kinds == ["video" if visual.is_video else "image" for visual in sample.visuals]
        for visual in sample.visuals:
            _check_visual(visual)
        for evidence in sample.evidence:
            pixels = sample.visuals[evidence.visual].pixels
            seen = evidence.mask(pixels).any()
            assert seen, f"{task.name}: evidence {evidence} lies outside {pixels.shape}"
            assert all(0 <= frame < len(pixels) for frame in evidence.frames)


def _check_visual(visual: Visual) -> None:
    pixels, times = visual.pixels, visual.times
    assert pixels.dtype == np.uint8 and pixels.shape[-1] == 3
    assert pixels.ndim == (4 if visual.is_video else 3) and min(pixels.shape) > 0
    if times is not None:
        assert times.dtype == np.float64 and len(times) == len(pixels)
        assert times[0] == 0.0 and np.all(np.diff(times) > 0)


def keeps_truth_secret(task: Task, cases: Sequence[Case]) -> None:
    """Neither the words nor the example give the answer, in no wording; the surface does not move the truth."""
    for case in cases[::3]:
        sample = case.sample
        answer = task.format(sample.truth)
        for variant in range(len(task.wordings)):
            surface = replace(sample.surface, variant=variant)
            other = replay(task, case.media, sample.recipe, surface)
            text = other.messages[0]["content"][-1]["text"]
            unfilled = "{" in text.replace("\\boxed{}", "")
            assert not unfilled, f"{task.name}: unfilled placeholder in {text!r}"
            assert other.key == sample.key
            # Short answers ("3", "red") stand in many questions by chance.
            if len(answer) >= 8 and answer in text:
                listed = _another_answer_in(text, task, sample, answer)
                assert listed, (
                    f"{task.name}: the prompt contains the answer {answer!r} and no other"
                )


def _another_answer_in(text: str, task: Task, sample: Sample, answer: str) -> bool:
    """Are other answers in the text too, as where all options are listed?"""
    guesses = {task.guess(sample.truth, philox("secret", turn)) for turn in range(100)}
    return any(guess in text for guess in guesses - {answer})


def has_twins(task: Task, cases: Sequence[Case]) -> None:
    """`equivalent` keeps the key; `corrupt` changes it, for most samples."""
    changed = 0
    for case in cases:
        sample = case.sample
        assert equivalent(task, case.media, sample).key == sample.key
        other = corrupt(task, case.media, sample)
        if isinstance(other, Reject):
            continue
        changed += 1
        assert other.key != sample.key
        score = task.score(Surface().wrap(task.format(sample.truth)), other.truth)
        assert not score.correct, (
            f"{task.name}: the old truth {sample.truth} still solves {other.truth}"
        )
    # Not all: a picture may allow one question only.
    assert changed >= len(cases) / 2, (
        f"{task.name}: only {changed} of {len(cases)} samples have a twin of other truth"
    )


def same_pixels(first: Visual, second: Visual) -> bool:
    """Equal bytes, times and label."""
    if first.times is None or second.times is None:
        same_times = first.times is second.times
    else:
        same_times = np.array_equal(first.times, second.times)
    same_label = first.label == second.label
    return same_times and same_label and np.array_equal(first.pixels, second.pixels)


CHECKS: tuple[Check, ...] = (
    declares_itself,
    pays_the_truth,
    survives_junk,
    agrees_with_chance,
    replays_exactly,
    serialises,
    shows_sane_pixels,
    keeps_truth_secret,
    has_twins,
)


@lru_cache(maxsize=128)
def _drawn(kind: Kind, avoid: tuple[str, ...], seed: int, index: int) -> Medium:
    kind = "image" if kind == "document" else kind
    return DrawnSource(seed).open(kind, index, avoid).decode()


def _disagreement(task: Task, samples: Sequence[Sample], knobs: Knobs, guesses: int) -> str:
    """What the declared chance levels and simulated guesses say, if they differ; else ""."""
    scores = [_guesses(task, sample, guesses) for sample in samples]
    right = np.array([[float(score.correct) for score in row] for row in scores])
    reward = np.array([[score.reward for score in row] for row in scores])
    levels = (
        ("correct", right, task.chance(knobs)),
        ("reward", reward, task.chance_reward(knobs)),
    )
    for field, seen, declared in levels:
        error = _allowed_error(seen, declared)
        if abs(seen.mean() - declared) > error:
            return (
                f"declares {field} {declared:.4f}, guesses give {seen.mean():.4f} ± {error:.4f}"
            )
    return ""


def _allowed_error(seen: np.ndarray, declared: float) -> float:
    """Four standard errors over guesses, or six over samples, of scores [samples, guesses]."""
    between = 0.0
    if len(seen) > 1:
        between = float(seen.mean(axis=1).std(ddof=1)) / np.sqrt(len(seen))
    # Not below that of the declared level: of a rare event none may have been seen, without any spread.
    floor = np.sqrt(max(declared * (1.0 - declared), 1e-6) / seen.size)
    within = max(float(seen.std() / np.sqrt(seen.size)), float(floor))
    return max(4.0 * within, 6.0 * between) + 1e-9


def _samples(task: Task, knobs: Knobs, count: int) -> list[Sample]:
    """`count` samples on other drawn media, fewer if many are refused."""
    found: list[Sample] = []
    for index in range(4 * count):
        media = drawn_media(task, task.media_count(knobs), 9, index)
        sample = make(task, media, knobs, seed=9, index=index)
        if isinstance(sample, Sample):
            found.append(sample)
        if len(found) == count:
            break
    return found


def _guesses(task: Task, sample: Sample, count: int) -> list[Score]:
    rng, surface = philox("guess", sample.id), Surface()
    replies = [surface.wrap(task.guess(sample.truth, rng)) for _ in range(count)]
    return [task.score(reply, sample.truth) for reply in replies]


def _plain(part: Any) -> Any:
    """Tuples as lists and mappings as dictionaries, as JSON gives them back."""
    if isinstance(part, (list, tuple)):
        return [_plain(value) for value in part]
    if isinstance(part, Mapping):
        return {key: _plain(value) for key, value in part.items()}
    return part
