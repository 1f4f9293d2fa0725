"""Sizes equal to qwen-vl-utils and transformers, and a token budget that is never exceeded."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.video.frame_size import (
    clip_size,
    clip_tokens,
    fit_clip,
    frame_list_size,
    image_size,
    qwen3_resize,
)

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "vtg"
RESIZE = {"library", "smart_resize", "video_shapes", "frame_list_input"}


def cases(file: str, key: str, known: set[str] | None = None) -> list[dict[str, Any]]:
    content = json.loads((GOLDEN / file).read_text())
    unknown = set(content) - known if known else set()
    if unknown:
        warnings.warn(f"{file}: keys without a test: {sorted(unknown)}", stacklevel=2)
    assert content[key], f"{file} has no case under {key}"
    return content[key]


def test_golden_vtg_smart_resize() -> None:
    for case in cases("qwen_vl_utils_resize.json", "smart_resize", RESIZE):
        call = [case[k] for k in ("height", "width", "factor", "min_pixels", "max_pixels")]
        if isinstance(case["result"], dict):
            with pytest.raises(ValueError):
                image_size(*call)
        else:
            assert list(image_size(*call)) == case["result"], case


def test_golden_vtg_fetch_video_shapes() -> None:
    for case in cases("qwen_vl_utils_resize.json", "video_shapes", RESIZE):
        options = dict(case["options"])
        sides = options.pop("resized_height", None), options.pop("resized_width", None)
        options["resized"] = sides if None not in sides else None
        call = (case["nframes"], case["height"], case["width"], 2 * case["image_patch_size"])
        expected = case["shape_tchw"]
        if isinstance(expected, dict):
            with pytest.raises(ValueError):
                clip_size(*call, context=case["model_seq_len"], **options)
            continue
        assert [
            case["nframes"],
            3,
            *clip_size(*call, context=case["model_seq_len"], **options),
        ] == expected, case


def test_golden_vtg_frame_lists() -> None:
    for case in cases("qwen_vl_utils_resize.json", "frame_list_input", RESIZE):
        limits = {
            k: v for k, v in case["options"].items() if k not in ("sample_fps", "raw_fps")
        }
        frames, height, width = frame_list_size(
            case["n_images"],
            case["height"],
            case["width"],
            2 * case["image_patch_size"],
            **limits,
        )
        assert [frames, 3, height, width] == case["result"]["shape_tchw"], case
        sample = case["options"].get("sample_fps", 2.0)
        raw = case["options"].get("raw_fps", sample)
        meta = case["result"]["metadata"]
        assert meta["total_num_frames"] == frames / sample * raw
        assert case["result"]["sample_fps"] == sample
        # With raw_fps ≠ sample_fps the reference's indices are not scaled: its times are wrong by the ratio.
        claimed = [i / meta["fps"] for i in meta["frames_indices"]]
        true = [i / sample for i in range(frames)]
        assert (claimed == true) == (raw == sample)


def test_golden_vtg_qwen3_smart_resize() -> None:
    for case in cases("transformers_video.json", "qwen3_smart_resize"):
        names = ("num_frames", "height", "width", "factor", "min_pixels", "max_pixels")
        call = [case[k] for k in names]
        if isinstance(case["result"], dict):
            with pytest.raises(ValueError):
                qwen3_resize(*call)
        else:
            assert list(qwen3_resize(*call)) == case["result"], case


sides = st.integers(1, 3000)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(2, 500), st.integers(8, 2000), st.integers(8, 2000), st.integers(100, 30_000)
)
def test_qwen3_resize_is_that_of_transformers(frames: int, h: int, w: int, budget: int) -> None:
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as reference

    call = {
        "num_frames": frames,
        "height": h,
        "width": w,
        "factor": 32,
        "min_pixels": 4096,
        "max_pixels": budget * 1024,
    }
    try:
        expected = reference(**call)
    except ValueError:
        with pytest.raises(ValueError, match="at most 200"):
            qwen3_resize(frames, h, w, 32, 4096, budget * 1024)
        return
    assert qwen3_resize(frames, h, w, 32, 4096, budget * 1024) == expected


@settings(deadline=None, max_examples=300)
@given(
    frames=st.integers(1, 900),
    h=sides,
    w=sides,
    factor=st.sampled_from([28, 32]),
    tokens=st.integers(1, 20_000),
    stamps=st.integers(0, 12),
    low=st.none() | st.integers(1, 200),
    high=st.none() | st.integers(1, 1000),
)
def test_clip_budget_is_never_exceeded(
    frames: int,
    h: int,
    w: int,
    factor: int,
    tokens: int,
    stamps: int,
    low: int | None,
    high: int | None,
) -> None:
    area = factor**2
    limits = {"min_pixels": low and low * area, "max_pixels": high and high * area}
    if tokens < 1 + stamps:
        with pytest.raises(ValueError, match="at least"):
            fit_clip(frames, h, w, factor, max_tokens=tokens, stamp_tokens=stamps, **limits)
        return
    size = fit_clip(frames, h, w, factor, max_tokens=tokens, stamp_tokens=stamps, **limits)
    assert 1 <= size.frames <= frames
    assert (
        size.height % factor == size.width % factor == 0
        and min(size.height, size.width) >= factor
    )
    assert (
        size.tokens
        == clip_tokens(size.frames, size.height, size.width, factor, stamps)
        <= tokens
    )
    if high is not None:
        assert size.height * size.width <= max(high, 1) * area


def test_reference_exceeds_its_budget_and_ours_does_not() -> None:
    budget, factor = 1000, 28
    low = 64 * factor**2
    height, width = clip_size(
        448, 360, 640, factor, min_pixels=low, total_pixels=budget * factor**2
    )
    assert clip_tokens(448, height, width, factor) > 10 * budget
    ours = fit_clip(448, 360, 640, factor, max_tokens=budget, min_pixels=low)
    assert ours.tokens <= budget and ours.height * ours.width >= 0.8 * low and ours.frames < 448


def test_clip_budget_uses_what_it_is_given() -> None:
    size = fit_clip(32, 360, 640, 28, max_tokens=4096)
    assert size.tokens > 0.7 * 4096 and size.frames == 32
    assert size.width / size.height == pytest.approx(640 / 360, rel=0.15)


@given(st.integers(1, 100), st.integers(28, 500), st.integers(28, 500))
def test_clip_tokens_count_pairs(frames: int, h: int, w: int) -> None:
    assert clip_tokens(frames, h, w, 28, 3) == math.ceil(frames / 2) * (h // 28 * (w // 28) + 3)
