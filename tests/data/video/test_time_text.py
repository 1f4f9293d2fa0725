"""Time encodings: what is written, what is drawn, and the guard against lost metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.video.frame_choice import choose_frames
from mmrl.data.video.time_text import (
    check_stamps,
    draw_labels,
    drawn_index,
    drawn_times,
    frame_times,
    interleaved_index,
    interleaved_times,
    native,
    pair_stamps,
    prefix_times,
)
from mmrl.types import Media

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "vtg"


def clip(
    times: list[float], duration: float | None = None, size: tuple[int, int] = (56, 84)
) -> Media:
    frames = (
        torch.arange(len(times), dtype=torch.uint8)
        .view(-1, 1, 1, 1)
        .expand(-1, 3, *size)
        .contiguous()
    )
    return Media(frames, torch.tensor(times, dtype=torch.float64), duration)


HALF = [0.0, 0.5, 1.0, 1.5, 2.0]


def test_native_shows_the_clip_itself() -> None:
    medium = clip(HALF, 2.5)
    shown = native(medium)
    assert shown.parts == ({"type": "video"},) and shown.media[0] is medium


def test_interleaved_pairs_carry_the_time_of_their_first_frame() -> None:
    shown = interleaved_times(clip(HALF, 2.5))
    assert [p.get("text", p["type"]) for p in shown.parts] == [
        "0.0s ",
        "video",
        "1.0s ",
        "video",
        "2.0s ",
        "video",
    ]
    assert [len(m.frames) for m in shown.media] == [2, 2, 1]
    assert [int(m.frames[0, 0, 0, 0]) for m in shown.media] == [0, 2, 4]
    assert [m.duration for m in shown.media] == [1.0, 1.0, 0.5]
    assert all(m.times is not None and float(m.times[0]) == 0 for m in shown.media)
    assert pair_stamps(clip(HALF, 2.5)) == [0.0, 1.0, 2.0]


def test_the_two_conventions_differ_by_half_a_step() -> None:
    first, mean = pair_stamps(clip(HALF)), pair_stamps(clip(HALF), "mean")
    assert mean == [0.25, 1.25, 2.0] and [m - f for f, m in zip(first, mean, strict=True)] == [
        0.25,
        0.25,
        0.0,
    ]


def test_single_frames_become_images() -> None:
    shown = interleaved_times(clip(HALF, 2.5), unit="frame")
    assert [p["type"] for p in shown.parts] == ["text", "image"] * 5
    assert all(not m.is_video and m.frames.shape[0] == 1 for m in shown.media)
    with pytest.raises(ValueError, match="'pair' and 'frame'"):
        interleaved_times(clip(HALF), unit="clip")  # type: ignore[arg-type]


def test_index_and_prefix() -> None:
    texts = [p["text"] for p in interleaved_index(clip(HALF)).parts if p["type"] == "text"]
    assert texts == ["Frame 1: ", "Frame 3: ", "Frame 5: "]
    shown = prefix_times(clip(HALF))
    assert "0.0, 0.5, 1.0, 1.5, 2.0" in shown.parts[0]["text"] and shown.parts[1] == {
        "type": "video"
    }


@pytest.mark.parametrize("encoding", [drawn_times, drawn_index])
def test_labels_are_red_at_the_bottom_left_and_change_nothing_else(encoding: Any) -> None:
    medium = clip([0.0, 12.5, 25.0], 30.0)
    drawn = encoding(medium).media[0]
    assert drawn.frames.shape == medium.frames.shape and drawn.frames.dtype == torch.uint8
    changed = (drawn.frames != medium.frames).any(1)  # [F, H, W]
    assert changed.flatten(1).any(1).all()
    assert not changed[:, :28].any() and not changed[:, :, 70:].any(), (
        "upper half and right edge stay"
    )
    red = drawn.frames[0][:, changed[0]].float().mean(1)
    assert red[0] > 3 * max(float(red[1]), float(red[2]), 1.0)
    assert not torch.equal(drawn.frames[1], drawn.frames[2]) and torch.equal(
        drawn.times, medium.times
    )
    assert int(medium.frames[1].max()) == 1, "the given clip is not changed"


def test_label_height_can_be_set() -> None:
    medium = clip([0.0], 1.0, (200, 200))
    small, large = (
        draw_labels(medium, ["7"], h).frames.ne(medium.frames).sum() for h in (12, 48)
    )
    assert 0 < small < large


def test_golden_vtg_qwen3_stamps_are_the_means_of_pairs() -> None:
    cases = json.loads((GOLDEN / "transformers_video.json").read_text())["qwen3_timestamps"]
    assert cases
    for case in cases:
        times = [index / case["fps"] for index in case["frames_indices"]]
        stamps = pair_stamps(clip(times, size=(2, 2)), "mean")
        assert stamps == pytest.approx(case["timestamps"], abs=1e-12)
        assert [f"<{stamp:.1f} seconds>" for stamp in stamps] == case["text"]


@settings(deadline=None, max_examples=60)
@given(
    st.floats(1, 300), st.floats(5, 60), st.floats(0.2, 4), st.sampled_from(["first", "mean"])
)
def test_true_times_pass_the_guard(length: float, rate: float, fps: float, of: Any) -> None:
    times = np.arange(max(4, int(length * rate))) / rate
    shown = times[choose_frames(times, rate, fps=fps)]
    check_stamps(clip(shown.tolist(), len(times) / rate, (2, 2)), of)


def test_stamps_of_a_wrong_frame_rate_are_caught() -> None:
    wrong = [i / 24 for i in range(20)]
    with pytest.raises(ValueError, match="wrong frame rate"):
        check_stamps(clip(wrong, 10.0))
    with pytest.raises(ValueError, match="wrong frame rate"):
        check_stamps(clip([10.0 * i for i in range(20)], 10.0))
    with pytest.raises(ValueError, match="decrease"):
        check_stamps(clip([3.0, 2.0, 1.0, 0.0], 4.0))
    check_stamps(clip(wrong))  # unknown duration


def test_an_image_has_no_times() -> None:
    with pytest.raises(ValueError, match="has no times"):
        frame_times(Media(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))
