"""Crops: golden boxes, what is cut from the picture as it was before the resize, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.calls import Action
from mmrl.tools.boxes import cut_box, window
from mmrl.tools.crop import Crop, PointCrop
from mmrl.tools.frames import SelectFrames
from mmrl.tools.reading import Form, first_tag, json_call
from mmrl.tools.tool import BadAction, Trajectory
from mmrl.types import Media, Prompt

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rewards"
CASES = json.loads((GOLDEN / "verl_tool.json").read_text())["functions"]["verltool_crop_box"]
TAGGED = Form("bbox_2d", "bbox", rivals=("search", "answer"))


class Halved:
    """Shows every picture at half its size."""

    def plans(self, prompt):
        shapes = [medium.frames.shape[-2:] for medium in prompt.media]
        return [SimpleNamespace(size=(height // 2, width // 2)) for height, width in shapes]


def picture(height=40, width=60, count=1):
    pixels = torch.arange(count * 3 * height * width).view(count, 3, height, width)
    return Media((pixels % 251).to(torch.uint8))


def trajectory(*media):
    return Trajectory(Prompt("p", (), media), media=list(media))


def call(text_or_box, **more):
    return Action("crop_image", {"bbox_2d": text_or_box, **more})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_boxes_are_those_of_the_official_code(case):
    width, height = case["input"]["image_size_wh"]
    box = cut_box(case["input"]["bbox_2d"], (height, width), (height, width), "either", 0.1)
    assert list(box) == case["output"]


def test_there_are_golden_boxes():
    assert len(CASES) == 3


sides = st.integers(1, 3000)
shares = st.tuples(*[st.floats(0, 1)] * 4)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, shares, st.floats(0, 0.5), st.integers(0, 700))
def test_every_crop_lies_within_the_picture(height, width, h, w, four, padding, most):
    a, b, c, d = four
    corners = [min(a, b) * w, min(c, d) * h, max(a, b) * w, max(c, d) * h]
    try:
        x0, y0, x1, y1 = cut_box(corners, (height, width), (h, w), "shown", padding, most)
    except BadAction:
        return
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.floats(0, 0.5))
def test_the_box_of_the_whole_picture_is_the_whole_picture(height, width, h, w, padding):
    whole = (0, 0, width, height)
    assert cut_box([0, 0, w, h], (height, width), (h, w), "shown", padding) == whole
    for coordinates, end in (("normalised", 1), ("either", 1), ("thousandths", 1000)):
        assert cut_box([0, 0, end, end], (height, width), (h, w), coordinates, padding) == whole


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 9))
def test_a_box_scales_with_the_resolution_of_the_picture(x, y, times):
    small = cut_box([x, y, x + 5, y + 7], (80, 90), (80, 90))
    large = cut_box([x, y, x + 5, y + 7], (80 * times, 90 * times), (80, 90))
    assert large == tuple(times * number for number in small)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.floats(0, 1), st.floats(0, 1), st.integers(1, 700))
def test_the_window_round_a_point_keeps_its_size_inside_the_picture(height, width, x, y, side):
    point = [x * width / 2, y * height / 2]
    x0, y0, x1, y1 = window(point, (height, width), (height / 2, width / 2), side, "shown")
    assert x0 >= 0 and x1 <= width and y0 >= 0 and y1 <= height
    assert (x1 - x0, y1 - y0) == (min(side, width), min(side, height))
    # The point is in it, or at its very end.
    assert x0 <= x * width <= x1 + 1 and y0 <= y * height <= y1 + 1


@pytest.mark.parametrize(
    ("corners", "why"),
    [
        ([5, 5, 5, 9], "empty"),
        ([9, 5, 5, 9], "empty"),
        ([-1, 5, 5, 9], "negative"),
        ([70, 0, 90, 9], "no pixel"),
        ([1, 2, 3], "give 4 numbers"),
        ("one", "give 4 numbers"),
        ([1, 2, 3, float("nan")], "give 4 numbers"),
        ([1, 2, 3, True], "give 4 numbers"),
        (None, "give 4 numbers"),
    ],
)
def test_what_is_no_box_of_the_picture_is_refused_with_the_reason(corners, why):
    with pytest.raises(BadAction, match=why):
        Crop(padding=0).act(call(corners), trajectory(picture()))


def test_a_crop_holds_the_pixels_before_the_resize():
    shown = picture()
    seen = Crop(padding=0, plans=Halved()).act(call([5, 2, 10, 8]), trajectory(shown))
    assert torch.equal(seen.media[0].frames, shown.frames[..., 4:16, 10:20])
    assert seen.found == {"picture": 2, "of": 1, "box": [10, 4, 20, 16], "area": 0.05}
    assert seen.marked().count("<image>") == 1 and "Picture 2, a part of picture 1" in seen.text


def test_a_crop_of_a_crop_is_cut_from_the_crop():
    way = trajectory(picture())
    tool = Crop(padding=0, plans=Halved(), default="last")
    for _ in range(2):
        way.add(tool.act(call([2, 2, 12, 12]), way).media[0])
    assert way.media[1].frames.shape[-2:] == (20, 20)
    assert torch.equal(way.media[2].frames, way.media[1].frames[..., 4:20, 4:20])


def test_pictures_are_counted_from_one_and_chosen_by_number():
    way = trajectory(picture(), picture(20, 20))
    assert Crop().act(call([0, 0, 9, 9], target_image=2), way).found["of"] == 2
    for wrong, why in ((0, "1 to 2"), (3, "1 to 2"), (True, "whole"), ("2", "whole")):
        with pytest.raises(BadAction, match=why):
            Crop().act(call([0, 0, 9, 9], target_image=wrong), way)
    with pytest.raises(BadAction, match="no picture yet"):
        Crop().act(call([0, 0, 9, 9]), trajectory())
    clip = Media(picture(count=2).frames, torch.tensor([0.0, 0.5]), 1.0)
    with pytest.raises(BadAction, match="is a clip"):
        Crop().act(call([0, 0, 9, 9]), trajectory(clip))


def test_small_crops_are_refused_or_enlarged_as_asked():
    strict = Crop(padding=0, least_side=30)
    with pytest.raises(BadAction, match=r"30 by 31 pixels.*more than 30"):
        strict.act(call([0, 0, 30, 31]), trajectory(picture(60, 60)))
    assert strict.act(call([0, 0, 31, 31]), trajectory(picture(60, 60))).media
    large = Crop(padding=0, least_area=3136).act(call([0, 0, 10, 20]), trajectory(picture()))
    height, width = large.media[0].frames.shape[-2:]
    assert height * width >= 3136 and height == pytest.approx(2 * width, abs=2)


def test_evaluation_may_grow_the_box_in_the_units_of_the_call():
    tool = Crop(padding=0, grow=2, plans=Halved())
    assert tool.act(call([5, 5, 10, 10]), trajectory(picture())).found["box"] == [6, 6, 24, 24]


def test_a_point_shows_the_square_round_it():
    action = Action("look_at", {"point_2d": [15, 10]})
    seen = PointCrop(side=10, plans=Halved()).act(action, trajectory(picture()))
    assert seen.found["box"] == [25, 15, 35, 25]
    with pytest.raises(BadAction, match="outside"):
        PointCrop().act(Action("look_at", {"point_2d": [61, 1]}), trajectory(picture()))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('a <tool_call>{"name": "crop_image", "arguments": {"bbox_2d": [1]}}</tool_call>', {"bbox_2d": [1]}),
        ('<tool_call>{"name": "crop_image"}</tool_call>', {}),
        ('<tool_call>{"name": "crop_image", "arguments": "{\\"a\\": 1}"}</tool_call>', {"a": 1}),
        ('<tool_call>x<tool_call>{"name": "crop_image"}</tool_call>', {}),
        ('<tool_call>{"name": "other"}</tool_call>', None),
        ('{"name": "crop_image"}', None),
        ('{"name": "crop_image"}</tool_call>', None),
    ],
)  # fmt: skip
def test_calls_are_read_from_the_words_of_a_turn(text, found):
    action = Crop().parse(text)
    assert found == (None if action is None else action.arguments)


@pytest.mark.parametrize(
    "inside", ["", "{", "[]", '{"name": 1}', '{"name": "a", "arguments": 3}']
)
def test_calls_that_cannot_be_read_say_why(inside):
    with pytest.raises(BadAction, match="JSON object"):
        json_call(f"<tool_call>{inside}</tool_call>")


def test_of_several_tags_the_first_that_is_closed_counts():
    assert first_tag("<search>a <bbox>[1]</bbox>", ("search", "bbox")) == ("bbox", "[1]")
    assert first_tag("<search>a</search><bbox>b</bbox>", ("bbox", "search")) == ("search", "a")
    assert first_tag("<search>a</bbox>", ("bbox", "search")) is None
    tool = Crop(form=TAGGED, padding=0)
    assert tool.parse("<search>a</search><bbox>[1]</bbox>") is None
    action = tool.parse("I look. <bbox>[1, 2, 9, 8]</bbox>")
    assert action is not None and tool.act(action, trajectory(picture())).found["box"] == [
        1,
        2,
        9,
        8,
    ]


@pytest.mark.parametrize("tool", [Crop(), Crop(form=TAGGED), PointCrop(), SelectFrames()])
def test_usage_shows_a_call_that_the_tool_reads(tool):
    assert tool.parse(tool.usage) is not None and tool.stop[0] in tool.usage


@pytest.mark.parametrize(
    "changed", [{"padding": -1}, {"least_side": -1}, {"grow": -1}, {"least_area": -1}]
)
def test_settings_that_mean_nothing_are_refused(changed):
    (name,) = changed
    with pytest.raises(ValueError, match=rf"Crop\.{name} is -1"):
        Crop(**changed)


def test_frames_of_a_clip_come_as_pictures():
    clip = Media(picture(count=6).frames, torch.arange(6) / 2, 3.0)
    way = trajectory(picture(), clip)
    select = SelectFrames(most=2)
    seen = select.act(Action("select_frames", {"target_frames": [5, 2]}), way)
    assert [one.is_video for one in seen.media] == [False, False]
    assert torch.equal(seen.media[1].frames[0], clip.frames[4])
    assert "Frame 2 at 0.5 s" in seen.text and seen.found == {"of": 2, "frames": [2, 5]}
    wrong = {
        "7": [7],
        "0": [0],
        "at most 2": [1, 2, 3],
        "give numbers": [1.5],
        "[]": [],
        "'1'": "1",
    }
    for why, frames in wrong.items():
        with pytest.raises(BadAction, match=re.escape(why)):
            select.act(Action("select_frames", {"target_frames": frames}), way)
    with pytest.raises(BadAction, match="no clip"):
        select.act(Action("select_frames", {"target_frames": [1], "target_image": 1}), way)
    with pytest.raises(BadAction, match="There is no clip"):
        select.act(Action("select_frames", {"target_frames": [1]}), trajectory(picture()))
