"""Object counting in video: how many circles, squares and triangles were painted?

Three ways (knob `motion`): "still", VideoSSR's (arXiv 2511.06281, task B): each shape is painted on up to three
frames, up to three times on each, every painted shape counts; "moving": objects glide through the picture for some
time and each counts once; "reenter": they also leave and come back elsewhere. Moving objects of one shape differ in
colour, so that identity is certain. Answer: one count per asked shape. Reward: mean over shapes of max(0, 1 − |guess
− count|/count).

Departures: counts are drawn first, uniformly from 1 to `most` (the code's sums favour the middle); painted shapes do
not overlap on a frame and contrast with their ground; an exact zero where the code leaves about 5e-10; other shapes
are painted as distractors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import Array, Draft, Evidence, Knob, Knobs, Medium, Reject
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.draws import one_of, some_of
from mmrl.data.pretext.craft.overlays import boxes_of, paint, place
from mmrl.data.pretext.craft.procedural import COLOURS, ShapeName
from mmrl.data.pretext.craft.rng import Streams
from mmrl.data.pretext.craft.sprites import Sprite, readable, spot, sprite, stamp
from mmrl.data.pretext.tasks.overlay_count import OverlayCountTask

ASKED: tuple[ShapeName, ...] = ("circle", "square", "triangle")
OTHERS: tuple[ShapeName, ...] = ("star", "ring", "cross")
PER_FRAME = 3
"""Most shapes on one frame ("still")."""
Painted = Mapping[ShapeName, int]
Found = dict[ShapeName, list[Evidence]]
At = tuple[int, float, float, int]
"""Frame, x, y and size of a painted object."""
TRIES = 24


class VideoCountTask(OverlayCountTask):
    name = "video-count"
    kinds = ("video",)
    intended = ("cut",)
    knobs: ClassVar = {
        "motion": Knob(
            "still",
            ("still", "moving", "reenter"),
            help="How shapes appear.",
            allowed=("still", "moving", "reenter"),
        ),
        "asked": Knob(3, (1, 2, 3), help="Number of shapes to count.", allowed=(1, 2, 3)),
        "most": Knob(5, (3, 5, 8), help="Largest count of each shape; at most 8."),
        "distractors": Knob(2, (0, 2, 4), help="Largest number of objects of other shapes."),
        "frames": Knob(24, (12, 16, 24), help="Shown frames."),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "Shapes were painted on frames of this video. {how} Over the whole video, how many {names} are there?",
        "Count the {names} that were painted over the video, whatever their colour, size and rotation. {how}",
        "Over the entire clip, count the painted {names}; ignore other painted shapes. {how}",
    )

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        frames, most, motion = int(knobs["frames"]), int(knobs["most"]), str(knobs["motion"])
        if most > len(COLOURS):
            raise ValueError(
                f"video-count.most is {most}; it must be at most {len(COLOURS)}, the number of colours."
            )
        clip, units = media[0].video(), np.arange(frames, dtype=np.float64)
        indices = clips.spread_indices(clip, units)
        if indices is None:
            return Reject("too-few-frames")
        shown = clips.read_frames(clip, indices, int(knobs["side"])).copy()
        if clips.too_small(shown, clips.PAINTABLE):
            return Reject("too-small")
        asked: list[ShapeName] = [
            ASKED[int(i)] for i in rng.selection.permutation(3)[: int(knobs["asked"])]
        ]
        counts: dict[ShapeName, int] = {
            name: int(rng.selection.integers(1, most + 1)) for name in asked
        }
        extra = rng.selection.multinomial(
            int(rng.selection.integers(int(knobs["distractors"]) + 1)), [1 / 3] * 3
        )
        painted: dict[ShapeName, int] = {
            name: int(n) for name, n in zip(OTHERS, extra, strict=True)
        }
        painted = counts | painted
        paint_all = _paint_still if motion == "still" else _paint_moving
        evidence = paint_all(shown, painted, rng, motion == "reenter")
        if isinstance(evidence, Reject):
            return evidence
        answer = list(counts.values())
        return Draft(
            visuals=(clips.timed(shown, clips.shown_step(clip, indices, units)),),
            truth={"answer": answer, "most": most},
            key=tuple(answer),
            fields=_words(asked, motion),
            evidence=tuple(part for name in asked for part in evidence[name]),
            meta={"painted": painted, "motion": motion},
        )


def _paint_still(shown: Array, painted: Painted, rng: Streams, reenter: bool) -> Found | Reject:
    free, found = list(range(len(shown))), Found()
    for name, count in painted.items():
        on = _frames_for(count, free, len(shown), rng.selection)
        if on is None:
            return Reject("too-few-frames")
        found[name] = []
        for frame, number in on.items():
            free.remove(frame)
            spots = place(number, shown.shape[1], shown.shape[2], (0.2, 0.36), rng.geometry)
            for at in spots:
                paint(shown[frame], name, at, rng.appearance)
            found[name].append(Evidence(0, boxes_of(spots), (frame,)))
    return found


def _frames_for(
    count: int, free: list[int], frames: int, rng: Generator
) -> dict[int, int] | None:
    """Frame -> shapes on it, taken from the free frames. Up to three frames, more if the count needs them."""
    fewest = -(-count // PER_FRAME)
    number = int(rng.integers(fewest, max(fewest, min(count, 3)) + 1)) if count else 0
    chosen = _apart(some_of(free, len(free), rng), number, frames // 6)
    if chosen is None:
        return None
    load = np.ones(number, dtype=int)
    for _ in range(count - number):
        open_ = np.flatnonzero(load < PER_FRAME)
        load[one_of(open_, rng)] += 1
    return {frame: int(n) for frame, n in zip(chosen, load, strict=True)}


def _apart(candidates: list[int], number: int, gap: int) -> list[int] | None:
    """The first `number` candidates that lie more than `gap` apart (halved until there are enough)."""
    chosen: list[int] = []
    for frame in candidates:
        if len(chosen) < number and all(abs(frame - other) > gap for other in chosen):
            chosen.append(frame)
    if len(chosen) == number:
        return chosen
    return _apart(candidates, number, gap // 2) if gap else None


def _paint_moving(
    shown: Array, painted: Painted, rng: Streams, reenter: bool
) -> Found | Reject:
    """Objects one after the other, each visible for 1/6 to 1/3 of the clip, at once or in two parts."""
    clean, found = shown.copy(), Found()
    taken: list[At] = []
    for name, count in painted.items():
        found[name] = []
        left = [list(COLOURS)[int(i)] for i in rng.appearance.permutation(len(COLOURS))]
        for _ in range(count):
            placed = _placed(clean, name, left, taken, rng, reenter)
            if placed is None:
                return Reject("object-not-readable")
            what, path = placed
            left.remove(what.colour)
            for frame, x, y in path:
                found[name].append(Evidence(0, (stamp(shown[frame], what, x, y),), (frame,)))
                taken.append((frame, x, y, what.size))
    return found


def _placed(
    clean: Array,
    name: ShapeName,
    left: Sequence[str],
    taken: Sequence[At],
    rng: Streams,
    reenter: bool,
) -> tuple[Sprite, list[tuple[int, float, float]]] | None:
    """An object in one of the colours that are left, and a path on which it can be read in two frames or more. Many
    tries, so that large counts are not refused more often than small ones."""
    for turn in range(TRIES):
        size = int(
            rng.geometry.uniform(0.14, 0.22) * (1 - turn / (2 * TRIES)) * min(clean.shape[1:3])
        )
        opacity = float(rng.appearance.uniform(0.85, 1.0))
        what = sprite(name, left[turn % len(left)], size, rng.appearance, opacity)
        path = [
            at for at in _path(clean, size, reenter, rng.geometry) if _free(at, size, taken)
        ]
        if sum(readable(clean[frame], what, x, y) for frame, x, y in path) >= 2:
            return what, path
    return None


def _path(
    shown: Array, size: int, reenter: bool, rng: Generator
) -> list[tuple[int, float, float]]:
    """(frame, x, y) of an object that glides along a straight line, and, if it re-enters, along another one."""
    frames, height, width = shown.shape[:3]
    path: list[tuple[int, float, float]] = []
    for start, end in _visits(frames, reenter, rng):
        line = np.linspace(
            spot(height, width, size, rng), spot(height, width, size, rng), end - start
        )
        path += [
            (frame, float(x), float(y))
            for frame, (x, y) in zip(range(start, end), line, strict=True)
        ]
    return path


def _free(at: tuple[int, float, float], size: int, taken: Sequence[At]) -> bool:
    """Is the place not covered by an earlier object in this frame?"""
    frame, x, y = at
    return all(f != frame or abs(x - a) + abs(y - b) > 0.9 * (size + d) for f, a, b, d in taken)


def _visits(frames: int, reenter: bool, rng: Generator) -> list[tuple[int, int]]:
    """Frame ranges in which an object is there: one, or two with at least two frames between them."""
    length = int(rng.integers(max(3, frames // 6), max(4, frames // 3) + 1))
    if not reenter or rng.random() < 0.3:
        start = int(rng.integers(frames - length + 1))
        return [(start, start + length)]
    first, gap = max(2, length // 2), int(rng.integers(2, max(3, frames // 3)))
    start = int(rng.integers(max(1, frames - 2 * first - gap + 1)))
    again = start + first + gap
    return [(start, start + first), (again, min(frames, again + first))]


HOW = {
    "still": "A shape may stand on one frame or several shapes on one; every painted shape counts.",
    "moving": "Objects move through the picture; count each object once.",
    "reenter": "Objects move, may leave and come back. The same shape in the same colour is the same object; count each"
    " object once.",
}


def _words(asked: Sequence[str], motion: str) -> dict[str, str]:
    names = [f"{name}s" for name in asked]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    form = (
        "one whole number"
        if len(names) == 1
        else (f"{len(names)} whole numbers in the order {listed}, separated by commas")
    )
    return {"names": listed, "form": form, "how": HOW[motion]}
