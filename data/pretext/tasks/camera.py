"""Pseudo-camera motion: a clip made of one still by moving a window over it; name the motion of the camera.

Pan, tilt, zoom, roll or still; up to three motions in a row, answered in order. The truth is exact, for any folder of
photographs. Reward: 1, else gamma times the share of right motions.

Defences: every frame, also of a still camera, is resampled by the same warp with a sub-pixel hand shake; speeds are
random; the size of the window is fitted to the whole path after the motions are drawn, so small pictures do not favour
some motions; neighbouring motions differ.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import WordsTask, listed
from mmrl.data.pretext.craft.coordinates import warp
from mmrl.data.pretext.craft.degenerate_checks import harmless_history, textureless
from mmrl.data.pretext.craft.draws import one_of
from mmrl.ground.seeds import Streams

MOTIONS: dict[str, tuple[float, float, float, float]] = {
    "pan left": (-1, 0, 0, 0),
    "pan right": (1, 0, 0, 0),
    "tilt up": (0, -1, 0, 0),
    "tilt down": (0, 1, 0, 0),
    "zoom in": (0, 0, -1, 0),
    "zoom out": (0, 0, 1, 0),
    "roll clockwise": (0, 0, 0, 1),
    "roll counter-clockwise": (0, 0, 0, -1),
    "still": (0, 0, 0, 0),
}
"""Per motion: direction of the window's centre (x, y), of the logarithm of its size, of its angle (clockwise)."""
NAMES = tuple(MOTIONS)
FULL = np.array([0.5, 0.5, 0.32, np.deg2rad(20)])
"""How far a motion goes at speed 1: window sides, logarithm of the size, radians."""


class CameraMotionTask(WordsTask):
    name = "camera-motion"
    kinds = ("image", "rgbd")
    knobs: ClassVar = {
        "motions": Knob(1, (1, 1, 2, 3), help="Motions in a row."),
        "speed": Knob(1.0, (1.4, 0.5), smooth=True, help="Factor on all speeds; slow is hard."),
        "frames": Knob(12, help="Frames of the clip."),
        "gamma": Knob(0.2, help="Pay for partly right lists."),
        "side": Knob(224, help="Side of the square frames in pixels."),
    }
    wordings = (
        "A camera films a flat picture. {ask} Choose from: {names}.",
        "How does the camera move in this clip? {ask} Possible motions: {names}.",
        "Watch how the view changes; name the motion of the camera, not of the content. {ask} Options: {names}.",
    )
    hint = "{form}"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        picture = harmless_history(media[0].picture(), rng, 560)
        if min(picture.shape[:2]) < 160:
            return Reject("too-small")
        if textureless(picture):
            return Reject("textureless")
        count = int(knobs["motions"])
        answer = _motions(count, rng.selection)
        # Two frames per motion at least: one alone shows none.
        frames = max(int(knobs["frames"]), 2 * count)
        path = _path(answer, frames, float(knobs["speed"]), rng)
        windows = _fitted(path, picture.shape[1], picture.shape[0], rng.geometry)
        side = int(knobs["side"])
        # The same warp for every frame, a still camera included: a copied frame would be sharper.
        views = [warp(picture, _window_matrix(window, side), side, side) for window in windows]
        shown = np.stack(views)
        if textureless(shown[0]) or textureless(shown[-1]):
            return Reject("textureless")
        if count == 1:
            ask, form = "It makes one motion.", "one of the named motions"
        else:
            ask = f"It makes {count} different motions, one after another."
            form = f"{count} named motions in order, separated by commas"
        return Draft(
            visuals=(Visual(shown, np.arange(len(shown)) / 4.0),),
            truth={"answer": answer, "names": list(NAMES), "gamma": float(knobs["gamma"])},
            key=tuple(answer),
            fields={"names": listed(NAMES), "ask": ask, "form": form},
            evidence=(Evidence(0),),
        )

    def length(self, knobs: Knobs) -> int:
        return int(knobs["motions"])

    def names(self, knobs: Knobs) -> Sequence[str]:
        return NAMES


def _motions(count: int, rng: Generator) -> list[str]:
    """Names, neighbours different."""
    chosen: list[str] = []
    while len(chosen) < count:
        name = one_of(NAMES, rng)
        if not chosen or name != chosen[-1]:
            chosen.append(name)
    return chosen


def _path(motions: Sequence[str], frames: int, speed: float, rng: Streams) -> Array:
    """[frames, 4]: centre x, y in window sides, log size, angle in radians, from (0, 0, 0, a small angle)."""
    state, rows = np.zeros(4), []
    cuts = np.linspace(0, frames, len(motions) + 1).round().astype(int)
    for motion, start, end in zip(motions, cuts[:-1], cuts[1:], strict=True):
        amount = FULL * speed * float(rng.geometry.uniform(0.8, 1.25))
        step = np.asarray(MOTIONS[motion]) * amount / max(1, end - start - 1)
        for frame in range(start, end):
            # The very first frame shows the start; later motions begin with a step from where the last one ended.
            if frame > 0:
                state = state + step
            rows.append(state)
    # A hand's shake in every frame, also of a still camera, which would otherwise show equal frames.
    shake = rng.appearance.normal(0.0, 0.002, size=(frames, 4))
    shake[:, 3] += np.deg2rad(float(rng.geometry.uniform(-4, 4)))
    return np.stack(rows) + shake


def _fitted(path: Array, width: int, height: int, rng: Generator) -> Array:
    """[frames, 4] with pixels for centre and side: the largest window whose whole path fits, at a random place."""
    centre, size, angle = path[:, :2], np.exp(path[:, 2]), path[:, 3]
    # A turned square reaches further than half its side, at most to its corners.
    half = 0.5 * size * (np.abs(np.cos(angle)) + np.abs(np.sin(angle)))
    low = (centre - half[:, None]).min(axis=0)
    high = (centre + half[:, None]).max(axis=0)
    room = np.array([width, height]) - 4.0
    side = min(float((room / (high - low)).min()), 0.55 * min(width, height))
    origin = 2.0 + rng.random(2) * (room - side * (high - low)) - side * low
    return np.column_stack([origin + side * centre, side * size, angle])


def _window_matrix(window: Array, side: int) -> Array:
    """Output pixel to source pixel for one window."""
    x, y, size, angle = window
    scale, cos, sin = size / side, np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) * scale
    # The middle of the output falls on the centre of the window.
    shift = np.array([x, y]) - turn @ np.full(2, side / 2)
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = shift
    return matrix
