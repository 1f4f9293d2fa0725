"""Frame choice: equal to qwen-vl-utils and to both processors of transformers, and our own rules."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.video.frame_choice import (
    choose_frames,
    evenly_spaced,
    frame_count,
    frame_range,
    nearest_frames,
    qwen2_frames,
    qwen3_frames,
    sampled_fps,
    subset,
)

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "vtg"


def cases(file: str, key: str, known: set[str]) -> list[dict[str, Any]]:
    """All cases under a key; unknown top-level keys of the file are reported."""
    content = json.loads((GOLDEN / file).read_text())
    unknown = set(content) - known
    if unknown:
        warnings.warn(f"{file}: keys without a test: {sorted(unknown)}", stacklevel=2)
    assert content[key], f"{file} has no case under {key}"
    return content[key]


def assert_same(found: np.ndarray, expected: Any) -> None:
    """Against a list, or against its head, tail, length and sum."""
    if isinstance(expected, list):
        assert found.tolist() == expected
        return
    assert len(found) == expected["n"] and int(found.sum()) == expected["sum"]
    assert found[: len(expected["head"])].tolist() == expected["head"]
    assert found[-len(expected["tail"]) :].tolist() == expected["tail"]


FRAMES = {"library", "smart_nframes", "frame_range"}


def test_golden_vtg_qwen_vl_utils_frames() -> None:
    for case in cases("qwen_vl_utils_frames.json", "smart_nframes", FRAMES):
        options, total, rate = dict(case["options"]), case["total_frames"], case["video_fps"]
        options["num_frames"] = options.pop("nframes", None)
        if isinstance(case["nframes"], dict):
            with pytest.raises(ValueError):
                frame_count(total, rate, **options)
            continue
        count = frame_count(total, rate, **options)
        assert count == case["nframes"], case
        indices = case["indices"]
        if indices is None:
            long = {"n": count, "head": case["indices_head"], "tail": case["indices_tail"]}
            indices = long | {"sum": case["indices_sum"]}
        assert_same(evenly_spaced(0, total - 1, count), indices)
        assert sampled_fps(count, total, rate) == pytest.approx(case["sample_fps"], rel=1e-9)


def test_golden_vtg_qwen_vl_utils_crops() -> None:
    for case in cases("qwen_vl_utils_frames.json", "frame_range", FRAMES):
        options = {
            "start": case["options"].get("video_start"),
            "end": case["options"].get("video_end"),
        }
        if isinstance(case["result"], dict):
            with pytest.raises(ValueError):
                frame_range(case["total_frames"], case["video_fps"], **options)
            continue
        first, last = frame_range(case["total_frames"], case["video_fps"], **options)
        assert [first, last, last - first + 1] == case["result"], case


VIDEO = {
    "library",
    "sample_frames",
    "qwen3_timestamps",
    "sampled_fps",
    "qwen3_smart_resize",
    "mrope",
}


@pytest.mark.parametrize(
    ("family", "rule"), [("qwen2_5_vl", qwen2_frames), ("qwen3_vl", qwen3_frames)]
)
def test_golden_vtg_transformers_sample_frames(family: str, rule: Any) -> None:
    for case in cases("transformers_video.json", "sample_frames", VIDEO):
        if isinstance(case[family], dict) and "raises" in case[family]:
            with pytest.raises(ValueError):
                rule(case["total_frames"], case["fps"], **case["options"])
            continue
        assert_same(rule(case["total_frames"], case["fps"], **case["options"]), case[family])


def test_golden_vtg_transformers_rates() -> None:
    for case in cases("transformers_video.json", "sampled_fps", VIDEO):
        rate = sampled_fps(case["n_sampled"], case["total_frames"], case["fps"])
        assert rate == pytest.approx(case["sampled_fps"], rel=1e-12)
        assert 2 / rate == pytest.approx(case["second_per_grid"], rel=1e-12)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 5000), st.integers(1, 150_000), st.integers(2, 800))
def test_spread_is_torch_linspace(first: int, length: int, count: int) -> None:
    reference = torch.linspace(first, first + length, count).round().long()
    assert evenly_spaced(first, first + length, count).tolist() == reference.tolist()


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 2000), st.integers(1, 300))
def test_qwen2_frames_are_torch_arange(total: int, half: int) -> None:
    count = min(2 * half, total // 2 * 2)
    reference = torch.arange(0, total, total / count).int()
    assert qwen2_frames(total, 30.0, num_frames=count).tolist() == reference.tolist()


rules = st.sampled_from(["qwen-vl-utils", "qwen2", "qwen3"])


@settings(deadline=None, max_examples=300)
@given(
    total=st.integers(1, 4000),
    rate=st.floats(1, 120),
    fps=st.none() | st.floats(0.05, 60),
    count=st.none() | st.integers(1, 1000),
    rule=rules,
    by_time=st.booleans(),
    crop=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_chosen_frames_are_increasing_and_inside(
    total: int, rate: float, fps: Any, count: Any, rule: Any, by_time: bool, crop: Any
) -> None:
    times = np.arange(total) / rate
    start, end = (
        (None, None) if crop is None else (min(crop) * total / rate, max(crop) * total / rate)
    )
    if fps is not None and count is not None:
        fps = None
    try:
        frames = choose_frames(
            times,
            rate,
            fps=fps,
            num_frames=count,
            start=start,
            end=end,
            rule=rule,
            even_in_time=by_time,
        )
    except ValueError as error:
        assert crop is not None and "No frame lies between" in str(error)
        return
    assert len(frames) >= 1 and (np.diff(frames) > 0).all()
    assert frames[0] >= 0 and frames[-1] < total
    assert len(frames) <= max(
        768, (count or 0) + 1
    )  # the rule of qwen-vl-utils rounds an odd number to an even one
    if crop is not None:
        assert times[frames[0]] >= start - 1e-6 and times[frames[-1]] <= end + 1e-6
    elif rule != "qwen2" and len(frames) > 1:
        assert (frames[0], frames[-1]) == (0, total - 1)
    if rule == "qwen-vl-utils" and len(frames) > 1:
        assert len(frames) % 2 == 0


@pytest.mark.parametrize("rule", ["qwen-vl-utils", "qwen2", "qwen3"])
def test_the_rules_differ(rule: Any) -> None:
    frames = choose_frames(np.arange(300) / 30, 30.0, fps=2.0, rule=rule)
    expected = {"qwen-vl-utils": 299, "qwen2": 285, "qwen3": 299}[rule]
    assert (len(frames), frames[-1]) == (20, expected)


@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_short_clips_are_shown_whole_or_nearly(total: int) -> None:
    frames = choose_frames(np.arange(total) / 25, 25.0, fps=2.0)
    assert len(frames) == {1: 1, 2: 2, 3: 2, 5: 4}[total] and frames[-1] == total - 1


def test_two_amounts_or_none_frames_are_refused() -> None:
    times = np.arange(30) / 30
    with pytest.raises(ValueError, match="only one"):
        choose_frames(times, 30.0, fps=2.0, num_frames=4)
    with pytest.raises(ValueError, match="at least 1"):
        choose_frames(times, 30.0, num_frames=0)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=60), st.data())
def test_nearest_frames_follow_time(steps: list[float], data: Any) -> None:
    times = np.concatenate([[0.0], np.cumsum(steps)])
    count = data.draw(st.integers(2, len(times)))
    frames = nearest_frames(times, count)
    assert (np.diff(frames) > 0).all() and frames[0] == 0 and frames[-1] == len(times) - 1


def test_nearest_frames_on_a_rate_change() -> None:
    times = np.array([*(i / 30 for i in range(150)), *(5 + i / 5 for i in range(25))])
    shown = times[nearest_frames(times, 10)]
    assert np.abs(shown - np.linspace(0, times[-1], 10)).max() <= 0.1 + 1e-9


@pytest.mark.parametrize("length", [1.0, 7.3, 30.0, 123.4])
@pytest.mark.parametrize("fps", [0.5, 2.0, 4.0])
def test_last_stamp_is_within_one_step_of_the_end(length: float, fps: float) -> None:
    times = np.arange(math.floor(length * 30)) / 30
    shown = times[choose_frames(times, 30.0, fps=fps)]
    step = np.diff(shown).max()
    # The last stamp is the mean of a pair of frames, or the only frame of an odd last pair.
    last = shown[-2:].mean() if len(shown) % 2 == 0 else shown[-1]
    assert length - last <= step + 2 / 30


@given(st.integers(1, 300), st.data())
def test_subset_keeps_both_ends(count: int, data: Any) -> None:
    keep = data.draw(st.integers(1, count))
    kept = subset(count, keep)
    assert len(kept) == keep and kept[0] == 0 and (keep == 1 or kept[-1] == count - 1)
    assert (np.diff(kept) > 0).all()
