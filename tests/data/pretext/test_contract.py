"""Knobs, levels, surfaces, evidence: what the base class promises."""

import numpy as np
import pytest

from mmrl.data.pretext.catalogue import TASKS, find
from mmrl.data.pretext.contract import Evidence, Knob
from mmrl.data.pretext.craft.procedural import scene
from mmrl.data.pretext.stream.samples import make, replay
from mmrl.data.pretext.surface import EXAMPLE_CHANCE, Surface


def test_knobs_step_or_interpolate_with_the_level() -> None:
    steps, line, fixed = Knob(2, (1, 2, 4)), Knob(0.1, (0.0, 1.0), smooth=True), Knob(7)
    assert [steps.at(level) for level in (0.0, 0.33, 0.34, 0.67, 1.0)] == [1, 1, 2, 4, 4]
    assert line.at(0.25) == 0.25 and fixed.at(1.0) == 7


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_harder_levels_do_not_raise_chance(task) -> None:
    chances = [task.chance(task.at_level(level)) for level in np.linspace(0, 1, 6)]
    assert chances[-1] <= chances[0] + 1e-12


def test_unknown_or_wrong_knobs_are_refused_by_name() -> None:
    task = find("jigsaw")
    with pytest.raises(ValueError, match="no knob 'rowz'"):
        task.complete({"rowz": 3})
    with pytest.raises(ValueError, match="type int"):
        task.complete({"rows": 2.5})
    with pytest.raises(ValueError, match="one of"):
        find("rotation").complete({"step": 7})
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        task.at_level(1.5)
    assert task.complete({"gap": 0})["gap"] == 0.0


def test_examples_are_shown_only_where_they_cannot_help() -> None:
    media = [scene(0, 1)]
    for name in ("jigsaw", "rotation", "patchfit", "camera-motion"):
        task = find(name)
        sample = make(task, media)
        text = sample.messages[0]["content"][-1]["text"]
        assert ("For example" in text) == (task.chance(sample.knobs) <= EXAMPLE_CHANCE)


def test_wordings_rotate_by_sample_and_can_be_fixed() -> None:
    task, media = find("rotation"), [scene(0, 1)]
    texts = {
        make(task, media, index=index).messages[0]["content"][-1]["text"].split("(")[0]
        for index in range(12)
    }
    assert len(texts) > 1
    fixed = [make(task, media, surface=Surface(variant=0), index=index) for index in range(4)]
    assert all(
        "The picture was turned" in sample.messages[0]["content"][-1]["text"]
        for sample in fixed
    )


def test_the_canvas_layout_keeps_the_truth_and_shows_one_picture() -> None:
    task, media = find("jigsaw"), [scene(0, 2)]
    pieces = make(task, media)
    canvas = replay(task, media, pieces.recipe, Surface(layout="canvas"))
    assert (
        canvas.truth == pieces.truth and len(canvas.visuals) == 1 and len(pieces.visuals) == 9
    )
    assert canvas.visuals[0].pixels.size > 9 * pieces.visuals[0].pixels.size


def test_replay_refuses_another_medium_or_version() -> None:
    task, media = find("rotation"), [scene(0, 1)]
    sample = make(task, media)
    with pytest.raises(ValueError, match="the recipe is for"):
        replay(task, [scene(0, 2)], sample.recipe)
    with pytest.raises(ValueError, match="the recipe is for"):
        replay(task, media, dict(sample.recipe) | {"version": 99})


def test_evidence_masks_boxes_and_frames() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    mask = Evidence(0, ((2, 1, 5, 4),)).mask(image)
    assert mask.shape == (10, 20) and mask.sum() == 9 and mask[1:4, 2:5].all()
    clip = np.zeros((4, 10, 20, 3), np.uint8)
    mask = Evidence(0, frames=(1, 3)).mask(clip)
    assert mask.shape == (4, 10, 20) and mask[[1, 3]].all() and not mask[[0, 2]].any()


def test_a_medium_of_another_kind_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="without a clip"):
        scene(0, 0).video()
