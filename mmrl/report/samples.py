"""Answers of sampled groups over the run: questions, pictures under each branch, rewards, numbers per token.

At most `GROUPS` groups are shown, evenly spread over the run, and pictures and numbers per token of as many of them as
fit into `BYTES`, again evenly; what is left out is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.ground.printable import printable
from mmrl.report.pictures import is_picture, spread
from mmrl.report.run_files import Row, RunFiles, listing, mapping, number, text

GROUPS = 500
"""Most groups of a page."""
BYTES = 10_000_000
"""Most bytes of pictures and numbers per token."""
CHARACTERS = 4_000_000
"""About how many characters all answers have together."""
LONGEST, SHORTEST = 6000, 300
"""Characters of an answer or question that are shown, where there are few and where there are many."""
SHOWN = "shown by tools"
CALLS = 50
"""Calls of tools within an answer that are shown."""
FRAMES = 12
"""Frames of a clip that are shown."""


@dataclass(frozen=True)
class Sample:
    """One group: a question and its answers."""

    step: int
    prompt: str
    question: str
    truth: str
    answers: Sequence[Mapping[str, Any]]
    """reward, parts, text, stop, heat (place of its numbers in the page's data, or None), calls of tools, and what
    these have shown, as `strips`."""
    strips: Sequence[Mapping[str, Any]]
    """branch, and its media: lists of frames with uri and time."""

    @property
    def mean(self) -> float | None:
        """The mean reward."""
        rewards = [answer["reward"] for answer in self.answers]
        known = [reward for reward in rewards if reward is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Samples:
    """The samples of a page."""

    shown: Sequence[Sample]
    heat: Sequence[Mapping[str, Any]]
    """Per answer with numbers: tokens, and maps name -> numbers."""
    notes: Sequence[str]


def collect(run: RunFiles, share: float = 1.0) -> Samples:
    """The samples of a run; `share`: the part of the page's room that is its own."""
    groups = _by_group(run.samples)
    every = list(groups)
    keys = [every[place] for place in spread(len(every), max(1, int(GROUPS * share)))]
    close = {key: rows[-1] for key, rows in _by_group(run.closeups).items()}
    near = [key for key in keys if key in close]
    kept = set(_within(near, close, BYTES * share))
    answers = sum(len(groups[key]) for key in keys)
    # However many there are, something of each is shown.
    longest = int(CHARACTERS * share) // max(1, answers)
    longest = min(LONGEST, max(SHORTEST, longest))
    heat: list[Mapping[str, Any]] = []
    shown: list[Sample] = []
    for key in keys:
        seen = close[key] if key in kept else {}
        shown.append(_sample(key, groups[key], seen, heat, longest))
    notes: list[str] = []
    if len(keys) < len(every):
        notes.append(f"{len(keys)} of {len(every)} sampled groups are shown, evenly spread.")
    if len(kept) < len(near):
        notes.append(
            f"Pictures and numbers per token of {len(kept)} of {len(near)} groups are shown, so that the page stays "
            "small; closeups.jsonl has all."
        )
    if longest < LONGEST:
        notes.append(f"Texts are cut after {longest} characters; samples.jsonl has the whole.")
    return Samples(shown, heat, notes)


def _by_group(rows: Sequence[Row]) -> dict[tuple[int, str], list[Row]]:
    """Rows by step and prompt."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        key = row["step"], text(row.get("prompt"))
        groups.setdefault(key, []).append(row)
    return groups


def _within(keys: Sequence[Any], close: Mapping[Any, Row], room: float) -> Sequence[Any]:
    """As many of the keys, evenly spread, as fit into the room."""
    sizes: dict[Any, int] = {}
    for key in keys:
        sizes[key] = len(json.dumps(close[key], ensure_ascii=False).encode("utf-8", "replace"))
    chosen = list(keys)
    while chosen:
        total = sum(sizes[key] for key in chosen)
        if total <= room:
            break
        # By the share that would fit if all were alike, and by one at least, so that this ends.
        fewer = min(len(chosen) - 1, int(room / total * len(chosen)))
        chosen = [chosen[place] for place in spread(len(chosen), fewer)]
    return chosen


def _sample(
    key: tuple[int, str],
    rows: Sequence[Row],
    close: Row,
    heat: list[Mapping[str, Any]],
    longest: int,
) -> Sample:
    """One group; its numbers per token are appended to `heat`."""
    near = listing(close.get("answers"))
    answers: list[Mapping[str, Any]] = []
    for place, row in enumerate(rows):
        close_by = near[place] if place < len(near) else None
        numbers = None if close_by is None else token_maps(close_by)
        if numbers is not None:
            heat.append(numbers)
        parts = mapping(row.get("parts"))
        answers.append(
            {
                "reward": number(row.get("reward")),
                "parts": {name: number(parts[name]) for name in parts},
                "text": cut(text(row.get("answer", "")), longest),
                "stop": text(row.get("stop", "")),
                "heat": None if numbers is None else len(heat) - 1,
                "calls": calls(row.get("calls")),
                "shown": strips({SHOWN: mapping(close_by).get("shown")}),
            }
        )
    step, prompt = key
    question = text(rows[0].get("question", ""))
    truth = text(rows[0].get("truth"))
    seen = strips(close.get("pictures"))
    return Sample(step, prompt, cut(question, longest), cut(truth, longest), answers, seen)


def calls(told: object) -> list[dict[str, str]]:
    """Calls of tools within an answer, in their order."""
    names = ("tool", "outcome", "asked", "said", "note")
    rows = [mapping(call) for call in listing(told)][:CALLS]
    return [{name: text(row.get(name) or "") for name in names} for row in rows]


def strips(pictures: object) -> list[dict[str, Any]]:
    """Branches with their media, the true pixels first; anything but pictures is left out."""
    found = []
    for branch, media in mapping(pictures).items():
        shown = [_frames(frames) for frames in listing(media)]
        shown = [frames for frames in shown if frames]
        if shown:
            found.append({"branch": branch, "media": shown})
    return sorted(found, key=lambda entry: entry["branch"] != "raw")


def _frames(frames: object) -> list[dict[str, Any]]:
    shown = []
    for frame in map(mapping, listing(frames)):
        if is_picture(frame.get("uri")):
            shown.append({"uri": frame["uri"], "time": number(frame.get("time"))})
    return shown[:FRAMES]


def token_maps(answer: object) -> dict[str, Any] | None:
    """Tokens and numbers of one answer, or None if they do not fit together."""
    given = mapping(answer)
    tokens = [printable(text(token)) for token in listing(given.get("tokens"))]
    maps: dict[str, list[float]] = {}
    for name, values in given.items():
        numbers = [number(value) for value in listing(values)]
        known = [value for value in numbers if value is not None]
        if name != "tokens" and len(known) == len(numbers) == len(tokens):
            maps[printable(name)] = known
    return {"tokens": tokens, "maps": maps} if tokens and maps else None


def cut(whole: str, longest: int = LONGEST) -> str:
    """A text of at most so many characters, and how many more there are."""
    more = len(whole) - longest
    return f"{whole[:longest]} … ({more} more characters)" if more > 0 else whole
