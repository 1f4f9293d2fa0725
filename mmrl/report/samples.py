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
BYTES = 12_000_000
"""Most characters of pictures and numbers per token."""
LONGEST = 6000
"""Characters of an answer or question that are shown."""
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
    """reward, parts, text, stop, heat (place of its numbers in the page's data, or None)."""
    strips: Sequence[Mapping[str, Any]]
    """branch, and its media: lists of frames with uri and time."""

    @property
    def best(self) -> float | None:
        """The largest reward."""
        return max((a["reward"] for a in self.answers if a["reward"] is not None), default=None)

    @property
    def mean(self) -> float | None:
        """The mean reward."""
        known = [a["reward"] for a in self.answers if a["reward"] is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Samples:
    """The samples of a page."""

    shown: Sequence[Sample]
    heat: Sequence[Mapping[str, Any]]
    """Per answer with numbers: tokens, and maps name -> numbers."""
    notes: Sequence[str]


def collect(run: RunFiles) -> Samples:
    """The samples of a run."""
    groups = _grouped(run.samples)
    keys = [list(groups)[place] for place in spread(len(groups), GROUPS)]
    close = {(row["step"], text(row.get("prompt"))): row for row in run.closeups}
    near = [key for key in keys if key in close]
    kept = set(_within(near, close))
    heat: list[Mapping[str, Any]] = []
    shown = [_sample(key, groups[key], close[key] if key in kept else {}, heat) for key in keys]
    notes = []
    if len(keys) < len(groups):
        notes.append(f"{len(keys)} of {len(groups)} sampled groups are shown, evenly spread.")
    if len(kept) < len(near):
        notes.append(
            f"Pictures and numbers per token of {len(kept)} of {len(near)} groups are shown, so that the page stays "
            "small; closeups.jsonl has all."
        )
    return Samples(shown, heat, notes)


def _grouped(rows: Sequence[Row]) -> dict[tuple[int, str], list[Row]]:
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["step"], text(row.get("prompt"))), []).append(row)
    return groups


def _within(keys: Sequence[Any], close: Mapping[Any, Row]) -> Sequence[Any]:
    """As many of the keys, evenly spread, as fit into `BYTES`."""
    sizes = {key: len(json.dumps(close[key], ensure_ascii=False)) for key in keys}
    chosen = list(keys)
    while chosen and sum(sizes[key] for key in chosen) > BYTES:
        share = BYTES / sum(sizes[key] for key in chosen)
        fewer = min(len(chosen) - 1, max(1, int(share * len(chosen))))
        chosen = [chosen[place] for place in spread(len(chosen), fewer)]
    return chosen


def _sample(
    key: tuple[int, str], rows: Sequence[Row], close: Row, heat: list[Mapping[str, Any]]
) -> Sample:
    near = listing(close.get("answers"))
    answers = []
    for place, row in enumerate(rows):
        numbers = token_maps(near[place]) if place < len(near) else None
        if numbers is not None:
            heat.append(numbers)
        parts = mapping(row.get("parts"))
        answers.append(
            {
                "reward": number(row.get("reward")),
                "parts": {name: number(value) for name, value in parts.items()},
                "text": cut(text(row.get("answer", ""))),
                "stop": text(row.get("stop", "")),
                "heat": None if numbers is None else len(heat) - 1,
            }
        )
    return Sample(
        step=key[0],
        prompt=key[1],
        question=cut(text(rows[0].get("question", ""))),
        truth=cut(text(rows[0].get("truth"))),
        answers=answers,
        strips=strips(close.get("pictures")),
    )


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
        if name != "tokens" and len(numbers) == len(tokens) and None not in numbers:
            maps[printable(name)] = [value for value in numbers if value is not None]
    return {"tokens": tokens, "maps": maps} if tokens and maps else None


def cut(whole: str) -> str:
    """A text of at most `LONGEST` characters."""
    more = len(whole) - LONGEST
    return f"{whole[:LONGEST]} … ({more} more characters)" if more > 0 else whole
