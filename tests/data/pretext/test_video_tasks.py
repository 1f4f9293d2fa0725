"""The video tasks: their truth follows from the frames that are shown."""

from functools import cache
from itertools import pairwise, permutations, product

import numpy as np
import pytest

from mmrl.data.pretext.catalogue import TASKS
from mmrl.data.pretext.contract import ArrayClip, Medium, Reject, Sample, Task
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.answer_forms import shuffled_order
from mmrl.data.pretext.craft.procedural import clip
from mmrl.data.pretext.stream.samples import make
from mmrl.data.pretext.surface import Surface
from mmrl.data.pretext.tasks.arrow_of_time import ArrowOfTimeTask
from mmrl.data.pretext.tasks.clip_insertion import ClipInsertionTask
from mmrl.data.pretext.tasks.frame_time import FrameTimeTask
from mmrl.data.pretext.tasks.interleaved import InterleavedClipsTask
from mmrl.data.pretext.tasks.needle_clip import NeedleClipTask
from mmrl.data.pretext.tasks.sprite_path import SpriteMovesTask, SpritePathTask
from mmrl.data.pretext.tasks.sprite_times import SpriteTimesTask
from mmrl.data.pretext.tasks.temporal_jigsaw import TemporalJigsawTask, _sampled
from mmrl.data.pretext.tasks.video_count import VideoCountTask, _sum_over_frames


@cache
def media(count: int) -> tuple[Medium, ...]:
    return tuple(clip(5, index, height=96, width=128) for index in range(count))


def drawn(task: Task, count: int = 1, seed: int = 0, **knobs) -> Sample:
    sample = make(task, media(count), knobs, seed=seed)
    assert isinstance(sample, Sample), sample
    return sample


def brightness(frames: np.ndarray) -> list[float]:
    return [float(frame.mean()) for frame in frames]


def ramp() -> Medium:
    """A clip whose frame i has brightness 2 + 3·i, with a moving texture."""
    rows = np.arange(80)[:, None, None, None]
    texture = (np.arange(64)[None, None, :, None] * 7 + rows * 11) % 23
    frames = (
        np.broadcast_to(2 + 3 * rows + texture, (80, 64, 64, 3)).clip(0, 255).astype(np.uint8)
    )
    return Medium("ramp", "video", clip=ArrayClip(frames, np.arange(80) / 4))


@pytest.mark.parametrize("count", [3, 6])
def test_temporal_jigsaw_answer_restores_the_order(count):
    sample = make(TemporalJigsawTask(), [ramp()], {"clips": count, "per_clip": 4, "trim": 0.1})
    assert isinstance(sample, Sample) and len(sample.visuals) == count
    played = [sample.visuals[place - 1].pixels for place in sample.truth["answer"]]
    means = [mean for frames in played for mean in brightness(frames)]
    assert means == sorted(means)
    assert count < 4 or sample.truth["answer"] != list(range(1, count + 1))
    gaps = [brightness(b)[0] - brightness(a)[-1] for a, b in pairwise(played)]
    assert min(gaps) > 6.0
    assert all(visual.times is not None and visual.times[0] == 0 for visual in sample.visuals)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.5, 2), (2.9, 4), (3.0, 6), (5.9, 10), (60.0, 12)]
)
def test_clips_may_show_an_even_number_of_frames_at_a_rate(seconds, shown):
    """Visual Jigsaw: two a second, at least two, at most twelve, rounded down to pairs."""
    frames = round(seconds * 30)
    times = np.arange(frames + 5) / 30
    assert _sampled(times, (0, frames), 2.0, 12) == shown
    sample = make(
        TemporalJigsawTask(), [ramp()], {"clips": 6, "per_clip": 12, "fps": 2.0, "trim": 0.1}
    )
    # 72 frames at 4 a second are six clips of twelve, of which ten are left: 2.5 seconds.
    assert {len(visual.pixels) for visual in sample.visuals} == {4}


@pytest.mark.parametrize("count", [2, 3])
def test_few_pieces_come_in_every_order_equally_often(count):
    rng, orders = np.random.default_rng(0), list(permutations(range(count)))
    drawn = [tuple(shuffled_order(count, rng)) for _ in range(600)]
    shares = [drawn.count(order) / 600 for order in orders]
    assert max(abs(share - 1 / len(orders)) for share in shares) < 0.07


def test_more_pieces_never_come_in_order():
    rng = np.random.default_rng(0)
    assert [0, 1, 2, 3] not in [shuffled_order(4, rng) for _ in range(300)]


def test_temporal_jigsaw_rewards():
    task, truth = (
        TemporalJigsawTask(),
        {"answer": [3, 1, 2, 4], "gamma": 0.2, "reward": "positional"},
    )
    assert task.score(Surface().wrap("3 1 4 2"), truth).reward == pytest.approx(0.1)
    assert task.score(
        Surface().wrap("3142"), truth | {"reward": "footrule"}
    ).reward == pytest.approx(1 - 2 / 8)
    assert task.score(
        Surface().wrap("3142"), truth | {"reward": "kendall"}
    ).reward == pytest.approx(0.2 * 5 / 6)
    assert task.score(Surface().wrap("3,1,2,5"), truth).reward == 0.0
    for kind in ("positional", "footrule", "kendall"):
        knobs = task.complete({"clips": 4, "reward": kind})
        pay = [
            task.verify(order, truth | {"reward": kind}).reward
            for order in permutations(range(1, 5))
        ]
        assert np.mean(pay) == pytest.approx(task.chance_reward(knobs))


def test_frozen_and_short_clips_are_refused():
    still = Medium(
        "still",
        "video",
        clip=ArrayClip(np.full((80, 64, 64, 3), 90, np.uint8), np.arange(80) / 4),
    )
    short = Medium(
        "short", "video", clip=ArrayClip(np.zeros((3, 64, 64, 3), np.uint8), np.arange(3) / 4)
    )
    for task in (
        TemporalJigsawTask(),
        ArrowOfTimeTask(),
        ClipInsertionTask(),
        FrameTimeTask(),
        InterleavedClipsTask(),
    ):
        assert isinstance(make(task, [still, still]), Reject), task.name
        assert make(task, [short, short]) == Reject("too-few-frames"), task.name


def test_arrow_of_time_plays_what_it_says():
    for seed in range(6):
        sample = make(ArrowOfTimeTask(), [ramp()], {"reference": True}, seed=seed)
        assert isinstance(sample, Sample)
        before, asked = (visual.pixels for visual in sample.visuals)
        rising = brightness(asked)[-1] > brightness(asked)[0]
        assert rising == (sample.truth["answer"] == "forward")
        assert brightness(before)[-1] > brightness(before)[0] and brightness(before)[-1] < min(
            brightness(asked)
        )


def test_missing_clip_fits_its_join():
    sample = make(ClipInsertionTask(), [ramp()], {"joins": 4})
    assert isinstance(sample, Sample)
    video, extra = (visual.pixels for visual in sample.visuals)
    join = int(sample.truth["answer"]) * 4
    assert (
        max(brightness(video[:join]))
        < min(brightness(extra))
        < max(brightness(extra))
        < min(brightness(video[join:]))
    )
    jumps = np.diff(brightness(video))
    assert (jumps > 10).sum() == 4


def test_frame_time_points_at_the_nearest_frame():
    for seed in range(4):
        sample = drawn(FrameTimeTask(), seed=seed)
        video, still = (visual.pixels for visual in sample.visuals)
        apart = np.abs(clips.thumbnails(video) - clips.thumbnails(still[None])).mean(
            axis=(1, 2, 3)
        )
        assert abs(int(apart.argmin()) - sample.key) <= 1
        near = f"{sample.truth['answer'] + sample.truth['step']:.1f}"
        assert FrameTimeTask().score(Surface().wrap(near), sample.truth).reward < 1.0
    truth = {"answer": 3.0, "frames": 16, "step": 0.5, "tau": 0.05}
    assert FrameTimeTask().score(Surface().wrap("3.2 s"), truth).correct
    assert FrameTimeTask().score(Surface().wrap("3.8"), truth).reward == pytest.approx(
        np.exp(-0.8 / 0.4)
    )
    assert FrameTimeTask().score(Surface().wrap("-1"), truth).reward == 0.0
    assert FrameTimeTask().score(Surface().wrap("8.0"), truth).reward == 0.0


def test_needle_frames_come_from_the_other_clip():
    sample = drawn(NeedleClipTask(), 2, decoys=0)
    ((a, b),) = sample.key  # type: ignore[misc]
    shown = sample.visuals[0].pixels
    source = media(2)[0].video()
    indices = clips.spread_indices(source, np.arange(24.0))
    assert indices is not None
    host = source.read(indices.tolist())
    same = [i for i in range(24) if np.array_equal(shown[i], host[i])]
    assert same == [i for i in range(24) if not a <= i < b]


def test_interleaved_clips_are_sorted_by_video_and_time():
    sample = drawn(InterleavedClipsTask(), 2, clips=3, seed=1)
    answer, task = sample.truth["answer"], InterleavedClipsTask()
    assert sorted(answer) == [1, 2, 3, 4, 5, 6] and 1 in answer[:3]
    turned = " | ".join(", ".join(map(str, half)) for half in (answer[3:], answer[:3]))
    assert task.score(Surface().wrap(turned), sample.truth).correct
    assert task.score(Surface().wrap(turned.replace("|", ",")), sample.truth).reward == 0.0
    assert task.score(Surface().wrap("1,2,3 | 4,5,5"), sample.truth).reward == 0.0


@pytest.mark.parametrize("motion", ["still", "moving", "reenter"])
def test_counts_equal_what_was_painted(motion):
    for seed in range(3):
        sample = drawn(VideoCountTask(), motion=motion, seed=seed, most=6, frames=16)
        painted = sample.meta["painted"]
        assert sample.truth["answer"] == list(painted.values())[:3]
        assert all(1 <= count <= 6 for count in sample.truth["answer"])
        if motion == "still":
            boxes = sum(len(evidence.boxes) for evidence in sample.evidence)
            assert boxes == sum(sample.truth["answer"])
        source = media(1)[0].video()
        indices = clips.spread_indices(source, np.arange(16.0))
        assert indices is not None
        clean = source.read(indices.tolist())
        for evidence in sample.evidence:
            for x0, y0, x1, y1 in evidence.boxes:
                region = np.s_[evidence.frames[0], max(y0, 0) : y1, max(x0, 0) : x1]
                assert not np.array_equal(clean[region], sample.visuals[0].pixels[region])


def test_counts_may_be_sums_over_frames_as_videossr_draws_them():
    """One to three shapes on each of one to three frames, every draw as likely."""
    rng, draws = np.random.default_rng(0), 20_000
    found = np.bincount([_sum_over_frames(rng, 9) for _ in range(draws)], minlength=10) / draws
    wanted = np.zeros(10)
    for frames in (1, 2, 3):
        for each in product((1, 2, 3), repeat=frames):
            wanted[sum(each)] += 1 / 3 / 3**frames
    assert np.abs(found - wanted).max() < 0.012
    sample = drawn(VideoCountTask(), law="frames", most=9, distractors=0, frames=48)
    assert all(1 <= count <= 9 for count in sample.truth["answer"])
    with pytest.raises(
        ValueError, match=r"law is 'frames' with motion 'still' and most 5.*most=9"
    ):
        make(VideoCountTask(), media(1), {"law": "frames"})


def test_counting_refuses_more_objects_than_colours():
    with pytest.raises(ValueError, match="at most 8"):
        make(VideoCountTask(), media(1), {"most": 9})


@pytest.mark.parametrize("which", ["first", "last"])
def test_sprite_times_are_the_edges_of_its_visits(which):
    for seed in range(4):
        sample = drawn(SpriteTimesTask(), ask=which, seed=seed, visits=3)
        seen = np.flatnonzero(sample.meta["visible"])
        assert sample.key == (seen[0] if which == "first" else seen[-1])
        assert [evidence.frames[0] for evidence in sample.evidence] != []
        assert {evidence.frames[0] for evidence in sample.evidence} == set(seen.tolist())


def test_sprite_path_ends_where_the_moves_lead():
    for seed in range(4):
        cell = drawn(SpritePathTask(), seed=seed, objects=3)
        box = cell.evidence[-1].boxes[0]
        height, width = cell.visuals[0].pixels.shape[1:3]
        column = int((box[0] + box[2]) / 2 / width * 3)
        row = int((box[1] + box[3]) / 2 / height * 3)
        assert cell.truth["answer"] == str(row * 3 + column + 1)
        moves = drawn(SpriteMovesTask(), seed=seed, objects=2)
        centres = [
            ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for e in moves.evidence for b in e.boxes
        ]
        dx, dy = centres[-1][0] - centres[0][0], centres[-1][1] - centres[0][1]
        words = moves.truth["answer"]
        assert round(dx / width * 3) == words.count("right") - words.count("left")
        assert round(dy / height * 3) == words.count("down") - words.count("up")


@pytest.mark.parametrize("size", [(1, 1), (9, 17), (20, 700), (64, 48)])
@pytest.mark.parametrize("count", [1, 5, 64])
def test_odd_clips_are_used_or_refused(size, count):
    rng = np.random.default_rng(count)
    frames = rng.integers(0, 256, size=(count, *size, 3), dtype=np.uint8)
    times = np.arange(count, dtype=np.float64) / 3
    pair = [
        Medium(f"odd-{i}", "video", clip=ArrayClip(frames[::sign], times))
        for i, sign in enumerate((1, -1))
    ]
    for task in TASKS:
        if task.kinds == ("video",):
            for knobs in ({}, {"kind": "zoom-out"}) if "kind" in task.knobs else ({},):
                sample = make(task, pair[: task.media_count(task.complete(knobs))], knobs)
                assert isinstance(sample, Sample | Reject)
                assert min(size) >= 32 or isinstance(sample, Reject), task.name
                if isinstance(sample, Sample):
                    assert task.score(
                        Surface().wrap(task.format(sample.truth)), sample.truth
                    ).correct
