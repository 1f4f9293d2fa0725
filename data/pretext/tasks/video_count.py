"""Object counting in video: how many circles, squares and triangles were painted?

Three ways (knob `motion`): "still", VideoSSR's (arXiv 2511.06281, task B): each shape is painted on up to three
frames, up to three times on each, every painted shape counts; "moving": objects glide through the picture for some
time and each counts once; "reenter": they also leave and come back elsewhere. Moving objects of one shape differ in
colour, so that identity is certain. Answer: one count per asked shape. Reward: mean over shapes of max(0, 1 − |guess
− count|/count).

Departures: counts are drawn first, uniformly from 1 to `most` (the sums of the code: knob `law`); painted shapes do
not overlap on a frame and contrast with their ground; an exact zero where the code leaves about 5e-10; other shapes
are painted as distractors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.answer_forms import listed
from mmrl.data.pretext.craft.draws import one_of, some_of
from mmrl.data.pretext.craft.overlays import boxes_of, paint, place
from mmrl.data.pretext.craft.procedural import COLOURS, ShapeName
from mmrl.data.pretext.craft.sprites import Sprite, readable, spot, sprite, stamp
from mmrl.data.pretext.tasks.overlay_count import OverlayCountTask
from mmrl.ground.seeds import Streams

ASKED: tuple[ShapeName, ...] = ("circle", "square", "triangle")
OTHERS: tuple[ShapeName, ...] = ("star", "ring", "cross")
PER_FRAME = 3
"""Most shapes on one frame ("still")."""
Painted = Mapping[ShapeName, int]
Found = dict[ShapeName, list[Evidence]]
At = tuple[int, float, float, int]
"""Frame, x, y and size of a painted object."""
Step = tuple[int, float, float]
"""Frame, x and y."""
TRIES = 24


class VideoCountTask(OverlayCountTask):
    name = "video-count"
    version = 2
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
        "law": Knob(
            "uniform",
            help="Counts: uniform from 1 to most, or one to three on each of one to three frames (VideoSSR).",
            allowed=("uniform", "frames"),
        ),
        "distractors": Knob(2, (0, 2, 4), help="Largest number of objects of other shapes."),
        "frames": Knob(24, (12, 16, 24), help="Shown frames."),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "Shapes were painted on frames of this video. {how} Over the whole video, how many {names} are there?",
        "Count the {names} that were painted over the video, whatever their colour, size and rotation. {how}",
        "Over the entire clip, count the painted {names}; ignore other painted shapes. {how}",
    )

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        frames, most, motion = int(knobs["frames"]), int(knobs["most"]), str(knobs["motion"])
        by_frames = str(knobs["law"]) == "frames"
        if by_frames and (motion != "still" or most != PER_FRAME**2):
            raise ValueError(
                f"video-count.law is 'frames' with motion {motion!r} and most {most}; it paints still shapes, at most "
                f"{PER_FRAME**2} of each: set motion='still', most={PER_FRAME**2}."
            )
        if most > len(COLOURS) and not by_frames:
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
        draw = rng.selection
        asked: list[ShapeName] = some_of(ASKED, int(knobs["asked"]), draw)
        count = _sum_over_frames if by_frames else _uniform
        counts: dict[ShapeName, int] = {name: count(draw, most) for name in asked}
        distractors = int(draw.integers(int(knobs["distractors"]) + 1))
        extra = draw.multinomial(distractors, [1 / 3] * 3)
        others: dict[ShapeName, int] = {
            name: int(number) for name, number in zip(OTHERS, extra, strict=True)
        }
        painted = counts | others
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


def _uniform(rng: np.random.Generator, most: int) -> int:
    """A count from 1 to `most`, each as likely."""
    return int(rng.integers(1, most + 1))


def _sum_over_frames(rng: np.random.Generator, most: int) -> int:
    """One to three shapes on each of one to three frames, as VideoSSR's code draws them: 1 to 9, the middle oftener."""
    frames = int(rng.integers(1, PER_FRAME + 1))
    return int(rng.integers(1, PER_FRAME + 1, frames).sum())


def _paint_still(shown: Array, painted: Painted, rng: Streams, reenter: bool) -> Found | Reject:
    frames, height, width = shown.shape[:3]
    free, found = list(range(frames)), Found()
    for name, count in painted.items():
        on = _frames_for(count, free, frames, rng.selection)
        if on is None:
            return Reject("too-few-frames")
        found[name] = []
        for frame, number in on.items():
            # One kind of shape per frame: kinds never overlap.
            free.remove(frame)
            spots = place(number, height, width, (0.2, 0.36), rng.geometry)
            for at in spots:
                paint(shown[frame], name, at, rng.appearance)
            found[name].append(Evidence(0, boxes_of(spots), (frame,)))
    return found


def _frames_for(
    count: int, free: list[int], frames: int, rng: Generator
) -> dict[int, int] | None:
    """Frame -> shapes on it, taken from the free frames. Up to three frames, more if the count needs them."""
    fewest = -(-count // PER_FRAME)  # rounded up
    number = 0
    if count:
        number = int(rng.integers(fewest, max(fewest, min(count, 3)) + 1))
    chosen = _apart(some_of(free, len(free), rng), number, frames // 6)
    if chosen is None:
        return None
    # One shape on each, the others spread over what is not full.
    load = np.ones(number, dtype=int)
    for _ in range(count - number):
        with_room = np.flatnonzero(load < PER_FRAME).tolist()
        load[one_of(with_room, rng)] += 1
    return {frame: int(shapes) for frame, shapes in zip(chosen, load, strict=True)}


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
    # Contrast is judged on the clean frames: an object painted before is no ground.
    clean, found = shown.copy(), Found()
    taken: list[At] = []
    for name, count in painted.items():
        found[name] = []
        left = some_of(list(COLOURS), len(COLOURS), rng.appearance)
        for _ in range(count):
            placed = _placed(clean, name, left, taken, rng, reenter)
            if placed is None:
                return Reject("object-not-readable")
            what, path = placed
            # No second object of this shape in this colour: who comes back can be known.
            left.remove(what.colour)
            for frame, x, y in path:
                box = stamp(shown[frame], what, x, y)
                found[name].append(Evidence(0, (box,), (frame,)))
                taken.append((frame, x, y, what.size))
    return found


def _placed(
    clean: Array,
    name: ShapeName,
    left: Sequence[str],
    taken: Sequence[At],
    rng: Streams,
    reenter: bool,
) -> tuple[Sprite, list[Step]] | None:
    """An object in one of the colours that are left, and a path on which it can be read in two frames or more. Many
    tries, so that large counts are not refused more often than small ones."""
    short = min(clean.shape[1:3])
    for turn in range(TRIES):
        shrink = 1 - turn / (2 * TRIES)
        size = int(rng.geometry.uniform(0.14, 0.22) * shrink * short)
        opacity = float(rng.appearance.uniform(0.85, 1.0))
        what = sprite(name, left[turn % len(left)], size, rng.appearance, opacity)
        path = _path(clean, size, reenter, rng.geometry)
        # Where an earlier object stands this one is not painted, as if it passed behind.
        path = [at for at in path if _free(at, size, taken)]
        if sum(readable(clean[frame], what, x, y) for frame, x, y in path) >= 2:
            return what, path
    return None


def _path(shown: Array, size: int, reenter: bool, rng: Generator) -> list[Step]:
    """(frame, x, y) of an object that glides along a straight line, and, if it re-enters, along another one."""
    frames, height, width = shown.shape[:3]
    path: list[Step] = []
    for start, end in _visits(frames, reenter, rng):
        first, last = (spot(height, width, size, rng) for _ in range(2))
        line = np.linspace(first, last, end - start)
        for frame, (x, y) in zip(range(start, end), line, strict=True):
            path.append((frame, float(x), float(y)))
    return path


def _free(at: Step, size: int, taken: Sequence[At]) -> bool:
    """Is the place not covered by an earlier object in this frame?"""
    frame, x, y = at
    for other_frame, a, b, other_size in taken:
        near = abs(x - a) + abs(y - b) <= 0.9 * (size + other_size)
        if other_frame == frame and near:
            return False
    return True


def _visits(frames: int, reenter: bool, rng: Generator) -> list[tuple[int, int]]:
    """Frame ranges in which an object is there: one, or two with at least two frames between them."""
    length = int(rng.integers(max(3, frames // 6), max(4, frames // 3) + 1))
    # Also with `reenter` some stay for one visit: a second one must not be certain.
    if not reenter or rng.random() < 0.3:
        start = int(rng.integers(frames - length + 1))
        return [(start, start + length)]
    part = max(2, length // 2)
    gap = int(rng.integers(2, max(3, frames // 3)))
    start = int(rng.integers(max(1, frames - 2 * part - gap + 1)))
    again = start + part + gap
    return [(start, start + part), (again, min(frames, again + part))]


HOW = {
    "still": "A shape may stand on one frame or several shapes on one; every painted shape counts.",
    "moving": "Objects move through the picture; count each object once.",
    "reenter": "Objects move, may leave and come back. The same shape in the same colour is the same object; count each"
    " object once.",
}


def _words(asked: Sequence[str], motion: str) -> dict[str, str]:
    names = [f"{name}s" for name in asked]
    if len(names) == 1:
        return {"names": names[0], "form": "one whole number", "how": HOW[motion]}
    in_order = f"{listed(names[:-1])} and {names[-1]}"
    form = f"{len(names)} whole numbers in the order {in_order}, separated by commas"
    return {"names": in_order, "form": form, "how": HOW[motion]}
