"""Anomaly grounding and its relatives: what is changed, where, and what an answer earns."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from mmrl.data.pretext.contract import ArrayClip, Medium, Reject, Sample
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.perturbations import (
    DESCRIPTIONS,
    ORDER_KINDS,
    PIXEL_KINDS,
    SPEEDS,
    rotate90,
    rotate270,
    shuffle,
)
from mmrl.data.pretext.craft.procedural import clip
from mmrl.data.pretext.craft.time_forms import APART, draw_spans, span_lengths
from mmrl.data.pretext.stream.samples import make
from mmrl.data.pretext.surface import Surface
from mmrl.data.pretext.tasks.anomaly import PAPER_KINDS, AnomalyGroundingTask, _units
from mmrl.ground.seeds import Streams

TASK = AnomalyGroundingTask()


@cache
def media(count: int = 1) -> tuple[Medium, ...]:
    return tuple(clip(3, index, height=96, width=128) for index in range(count))


def drawn(kind: str, seed: int = 0, **knobs) -> Sample:
    full = {"kind": kind, "frames": 24, "decoys": 0, **knobs}
    sample = make(TASK, media(2 if kind == "swap" else 1), full, seed=seed)
    assert isinstance(sample, Sample), (kind, sample)
    return sample


def test_there_are_fourteen_paper_kinds():
    assert len(PAPER_KINDS) == 14
    assert set(DESCRIPTIONS) == set(PIXEL_KINDS) | set(ORDER_KINDS) | set(SPEEDS) | {"swap"}


@pytest.mark.parametrize("kind", sorted(DESCRIPTIONS))
def test_every_kind_changes_its_stretch_only(kind):
    sample = drawn(kind)
    shown, step = sample.visuals[0].pixels, sample.truth["step"]
    ((a, b),) = ([round(t / step) for t in span] for span in sample.truth["answer"])
    assert sample.key == ((a, b),) and 0 <= a < b <= 24 and 4 <= b - a <= 8
    assert sample.evidence[0].frames == tuple(range(a, b))
    if kind in SPEEDS or kind.startswith("zoom"):
        return
    video = media()[0].video()
    indices = clips.spread_indices(video, np.arange(24.0))
    assert indices is not None
    clean = clips.read_frames(video, indices, 256)
    if kind.startswith("rotate") and kind != "rotate180":
        clean = clean[:, :, 16:112]
    outside = [i for i in range(24) if not a <= i < b]
    assert np.array_equal(shown[outside], clean[outside])
    assert not np.array_equal(shown[a:b], clean[a:b])
    if kind in ORDER_KINDS:
        assert {frame.tobytes() for frame in shown[a:b]} <= {
            frame.tobytes() for frame in clean[a:b]
        }


@pytest.mark.parametrize("kind", ["rotate90", "mirror", "channel-swap", "invert", "rotate180"])
def test_involutions_and_turns_restore(kind):
    segment = media()[0].video().read(range(4))[:, :96, :96]
    rng = np.random.default_rng(0)
    if kind == "rotate90":
        back = rotate270(rotate90(segment, rng), rng)
    else:
        back = PIXEL_KINDS[kind](PIXEL_KINDS[kind](segment, rng), rng)
    assert np.array_equal(back, segment)


def test_shuffle_moves_most_frames():
    segment = np.arange(9, dtype=np.uint8)[:, None, None, None]
    for seed in range(20):
        order = shuffle(segment, np.random.default_rng(seed)).ravel()
        assert sorted(order) == list(range(9)) and (order == np.arange(9)).sum() <= 3


def test_static_clips_are_refused():
    still = Medium(
        "still",
        "video",
        clip=ArrayClip(np.full((64, 96, 128, 3), 90, np.uint8), np.arange(64) / 4),
    )
    for kind in ("mirror", "shuffle", "slow", "grayscale"):
        assert isinstance(make(TASK, [still], {"kind": kind}), Reject)
    short = Medium(
        "short",
        "video",
        clip=ArrayClip(np.zeros((10, 96, 128, 3), np.uint8), np.arange(10) / 4),
    )
    assert make(TASK, [short]) == Reject("too-few-frames")


def test_answers_are_read_to_the_nearest_frame():
    truth = {"answer": [[3.0, 6.0]], "frames": 24, "step": 0.5, "lengths": [4, 8]}
    for text in ("3.0-6.0", "3.2 s to 5.9 s", "[3, 6]", "3–6"):
        assert TASK.score(Surface().wrap(text), truth).reward == 1.0
    assert TASK.score(Surface().wrap("3.0-4.5"), truth).reward == pytest.approx(0.5)
    for text in ("6-3", "from 3.0 to 6.0 seconds or so", "00:03-00:06", "3.0", "7-9"):
        assert TASK.score(Surface().wrap(text), truth).reward == 0.0


def test_several_stretches_are_matched():
    truth = {"answer": [[1.0, 2.0], [4.0, 6.0]], "frames": 24, "step": 0.5, "lengths": [2, 4]}
    assert TASK.score(Surface().wrap("4-6; 1-2"), truth).correct
    assert TASK.score(Surface().wrap("4-6"), truth).reward == pytest.approx(0.5)
    assert TASK.score(Surface().wrap("4-6; 1-2; 8-9"), truth).reward == pytest.approx(2 / 3)
    assert TASK.score(Surface().wrap("4-6; 4-6"), truth).reward == pytest.approx(0.5)


def test_spans_are_separate_and_uniform():
    rng, starts = np.random.default_rng(1), []
    for _ in range(300):
        spans = draw_spans(32, 3, rng)
        low, high = span_lengths(32, 3)
        assert all(low <= b - a <= high for a, b in spans)
        assert spans[0][0] >= 0 and spans[-1][1] <= 32
        assert all(right[0] - left[1] >= APART for left, right in pairwise(spans))
        starts.append(draw_spans(24, 1, rng)[0][0])
    assert 6.0 < np.mean(starts) < 12.0


def test_speed_kinds_change_the_stride_inside():
    spans = ((5, 10),)
    for speed in (0.5, 2.0):
        advance = np.diff(_units(16, spans, speed, 0, Streams("speed")))
        assert (advance[5:10] == speed).all() and (
            np.delete(advance, range(5, 10)) == 1.0
        ).all()
    jumps = np.diff(_units(24, spans, 1.0, 2, Streams("decoys")))
    assert (jumps > 1).sum() == 2 and (jumps[4:11] == 1).all()
