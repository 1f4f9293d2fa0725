"""Default perception rewards: the listed holes are closed, no text raises, pay lies in [0, 1]."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground import answers
from mmrl.perception.compat import Official, vision_reasoner, vlm_r1
from mmrl.perception.rewards import (
    DetectionReward,
    GroundingReward,
    PointReward,
    ReferringReward,
    grounding_format,
    yes_no_accuracy,
)

CAT = {"bbox_2d": [10, 10, 50, 50], "point_2d": [30, 30], "label": "cat"}
DOG = {"bbox_2d": [100, 100, 150, 150], "point_2d": [120, 120], "label": "dog"}
CHAIN = "<think>t</think>\n<answer>{}</answer>"


@dataclass
class Asked:
    answer: Any
    extra: dict = field(default_factory=dict)
    id: str = "row 7"


@dataclass
class Said:
    text: str
    prompt: Asked


def said(given: Any, answer: Any, **extra: Any) -> Any:
    text = given if isinstance(given, str) else CHAIN.format(json.dumps(given))
    return Said(text, Asked(answer, extra))


def test_grounding_pays_the_matched_share():
    reward = GroundingReward()
    assert reward(said([CAT], [CAT])) == 1.0
    assert reward(said([CAT, DOG], [DOG, CAT])) == 1.0
    assert reward(said([CAT], [CAT, DOG])) == 0.5
    assert reward(said([CAT, CAT, CAT], [CAT])) == pytest.approx(1 / 3)
    assert reward(said([{**CAT, "point_2d": [80, 80]}], [CAT])) == pytest.approx(2 / 3)
    assert reward(said([{"bbox_2d": [10, 10, 50, 50]}], [CAT])) == pytest.approx(2 / 3)
    assert reward(said([{"bbox_2d": [10, 10, 50, 50]}], [{"bbox_2d": [10, 10, 50, 50]}])) == 1.0
    assert reward(said([CAT], json.dumps([CAT]))) == 1.0


@pytest.mark.parametrize(
    ("given", "tests"),
    [
        # Mean difference of the four numbers: (9.75, 10) of 10; overlap and point are right throughout.
        ({"bbox_2d": [100, 100, 339, 300]}, 3),
        ({"bbox_2d": [100, 100, 340, 300]}, 2),
        ({"bbox_2d": [100, 100, 341, 300]}, 2),
        # Distance of the points: (29, 30) of 30, within the own box.
        ({"point_2d": [229, 200]}, 3),
        ({"point_2d": [230, 200]}, 2),
        ({"point_2d": [245, 200]}, 2),
        # Overlap: exactly one half does not exceed it; the box is far off, the point near.
        ({"bbox_2d": [100, 100, 300, 200]}, 1),
        ({"bbox_2d": [100, 100, 300, 202]}, 2),
    ],
)
def test_grounding_tests_at_their_thresholds(given, tests):
    """VisionReasoner's 0.5, 10 and 30: a doubled or halved threshold changes one of these."""
    truth = {"bbox_2d": [100, 100, 300, 300], "point_2d": [200, 200]}
    answer = (
        {**truth, "point_2d": [200, 175], **given} if "bbox_2d" in given else {**truth, **given}
    )
    if "bbox_2d" in given and given["bbox_2d"][3] > 250:
        answer["point_2d"] = truth["point_2d"]
    assert GroundingReward()(said([answer], [truth])) == pytest.approx(tests / 3)


def test_grounding_closes_the_holes_of_the_official_form():
    reward, official = (
        GroundingReward(),
        Official(vision_reasoner.vision_reasoner, part="accuracy"),
    )
    nothing = said([], "[]")
    assert (reward(nothing), official(nothing)) == (1.0, 0.0)
    assert reward(said([], [CAT])) == 0.0 == reward(said([CAT], []))
    broken = said([CAT, {"bbox_2d": "here"}], json.dumps([CAT]))
    assert (reward(broken), official(broken)) == (0.5, 0.0)
    spam = said([CAT, *[DOG] * 200], json.dumps([CAT]))
    assert reward(spam) == pytest.approx(1 / 201) and official(spam) == pytest.approx(3 / 120)
    swapped = {**CAT, "bbox_2d": [50, 50, 10, 10]}
    assert reward(said([swapped], [CAT])) == 0.0
    assert reward(said([CAT], [CAT])) == 1.0
    twice = "<answer>[]</answer>" + CHAIN.format(json.dumps([CAT]))
    assert reward(said(twice, [CAT])) == 1.0
    assert reward(said(f"<answer>\n```json\n{json.dumps([CAT])}\n```\n</answer>", [CAT])) == 1.0
    assert reward(said("<answer>" + json.dumps([CAT]), [CAT])) == 0.0


def test_grounding_converts_the_space_of_the_model():
    sizes = {"original_size": [2000, 500], "resized_size": [1000, 250]}
    label = {"bbox_2d": [400, 100, 800, 400]}
    for space, box in (("thousand", [200, 200, 400, 800]), ("resized", [200, 50, 400, 200])):
        reward = GroundingReward(predicted=space)
        assert reward(said([{"bbox_2d": box}], [label], **sizes)) == 1.0
        assert GroundingReward()(said([{"bbox_2d": box}], [label], **sizes)) < 1.0
    with pytest.raises(ValueError, match="original_size"):
        GroundingReward(predicted="thousand")(said([label], [label]))


def test_grounding_format_counts_readable_objects():
    assert grounding_format(said([CAT, {"bbox_2d": [1, 2, 3]}], [CAT])) == 0.5
    assert grounding_format(said([{"bbox_2d": [1, 2, 3, 4]}], [CAT])) == 0.0
    assert (
        grounding_format(said([{"bbox_2d": [1, 2, 3, 4]}], [{"bbox_2d": [5, 5, 6, 6]}])) == 1.0
    )
    assert grounding_format(said("prose", [CAT])) == 0.0
    assert grounding_format(said([], [CAT])) == 1.0


def test_detection_charges_surplus_and_wants_labels():
    reward = DetectionReward()
    assert reward(said([CAT], [CAT])) == pytest.approx(1.0)
    assert reward(said([{**CAT, "label": " Cat"}], [CAT])) == pytest.approx(1.0)
    assert reward(said([{**CAT, "label": "dog"}], [CAT])) == 0.0
    assert reward(said([CAT, CAT], [CAT])) == pytest.approx(0.5)
    assert reward(said([CAT], [CAT, DOG])) == pytest.approx(0.5)
    assert reward(said([], [])) == 1.0
    loose = {**CAT, "bbox_2d": [10, 10, 50, 36]}
    assert DetectionReward(kind="ap50")(said([loose], [CAT])) == pytest.approx(1.0)
    assert reward(said([loose], [CAT])) == pytest.approx(0.4)
    fenced = "```json\n" + json.dumps([CAT, CAT]) + "\n```"
    assert vlm_r1.mean_ap(fenced, "```json\n" + json.dumps([CAT]) + "\n```") == pytest.approx(
        1.0
    )
    assert reward(said(fenced, [CAT])) == pytest.approx(0.5)


def test_referring_by_overlap_and_by_hull():
    reward, general = ReferringReward(), ReferringReward(kind="giou")
    for given_box in (
        [0, 0, 50, 100],
        {"bbox_2d": [0, 0, 50, 100]},
        [{"bbox_2d": [0, 0, 50, 100]}],
    ):
        assert reward(said(given_box, [0, 0, 100, 100])) == 0.5
    assert reward(said([0, 0, 1, 9], [0, 0, 1, 9])) == 1.0
    near, far = (
        said([110, 0, 120, 10], [0, 0, 100, 100]),
        said([910, 0, 920, 10], [0, 0, 100, 100]),
    )
    assert reward(near) == reward(far) == 0.0 < general(far) < general(near) < 0.5
    assert general(said([5, 5, 5, 5], [0, 0, 100, 100])) == 0.0
    assert general(said([0, 0, 100, 100], {"bbox_2d": [0, 0, 100, 100]})) == 1.0


def test_points_in_boxes_and_near_points():
    reward = PointReward(distance=5)
    assert reward(said([[30, 30], [120, 120]], [CAT, DOG])) == 1.0
    assert reward(said([{"point_2d": [30, 30]}], [CAT, DOG])) == 0.5
    assert reward(said([30, 30], [31, 31])) == 1.0
    assert reward(said([30, 30], [36, 36])) == 0.0
    assert reward(said([[30, 30]] * 4, [[31, 31]])) == 0.25
    assert reward(said([], [])) == 1.0 and reward(said([[1, None]], [[1, 1]])) == 0.0


def test_yes_no_wants_one_word():
    assert yes_no_accuracy(said("<answer>No, it is not</answer>", "no")) == 1.0
    assert yes_no_accuracy(said("I do not know", "no")) == 0.0
    assert yes_no_accuracy(said("<answer>yes and no</answer>", "no")) == 0.0
    assert yes_no_accuracy(said("", "yes")) == 0.0
    with pytest.raises(ValueError, match="needs yes or no"):
        yes_no_accuracy(said("maybe", "perhaps"))


@pytest.mark.parametrize(
    "reward, answer",
    [
        (GroundingReward(), "no list"),
        (GroundingReward(), [{"bbox_2d": [5, 5, 1, 1]}]),
        (DetectionReward(), [{"bbox_2d": [1, 1, 5, 5]}]),
        (ReferringReward(), [1, 2, 3]),
        (PointReward(), [[1, 2, 3]]),
    ],
)
def test_an_unreadable_row_is_the_rows_fault(reward, answer):
    with pytest.raises(ValueError, match=r"prompt 'row 7'.*correct the row"):
        reward(said([CAT], answer))


@pytest.mark.parametrize(
    "build",
    [
        lambda: GroundingReward(predicted="pixels"),  # type: ignore[arg-type]
        lambda: GroundingReward(iou=1.0),
        lambda: GroundingReward(box_distance=0),
        lambda: PointReward(distance=-1),
    ],
)
def test_bad_settings_name_the_field(build):
    with pytest.raises(ValueError, match=r"Reward\.\w+ is"):
        build()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["bbox_2d", "point_2d", "label", "x"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)
REWARDS = [
    (GroundingReward(), [CAT, DOG]),
    (DetectionReward(), [CAT, DOG]),
    (ReferringReward(), [0, 0, 9, 9]),
    (ReferringReward(kind="giou"), [0, 0, 9, 9]),
    (PointReward(), [CAT, [3, 3]]),
    (yes_no_accuracy, "yes"),
    (grounding_format, [CAT]),
]


@pytest.mark.parametrize("reward, answer", REWARDS)
@settings(max_examples=40, deadline=None)
@given(value=json_values, text=st.text(max_size=30))
def test_no_text_raises_and_pay_lies_in_the_unit_interval(reward, answer, value, text):
    dumped = json.dumps(value)
    for response in (
        text,
        dumped,
        CHAIN.format(dumped),
        f"<answer>[{dumped}]</answer>",
        CHAIN.format(text),
    ):
        assert 0.0 <= reward(said(response, answer)) <= 1.0


@settings(max_examples=40, deadline=None)
@given(value=json_values, text=st.text(max_size=30))
def test_official_forms_raise_for_no_text_either(value, text):
    truth = json.dumps([CAT])
    for response in (
        text,
        CHAIN.format(json.dumps(value)),
        CHAIN.format(f"```json\n[{json.dumps(value)}]\n```"),
    ):
        assert 0.0 <= vision_reasoner.vision_reasoner(response, truth)["total"] <= 7.0
        vision_reasoner.seg_zero(response, "<box>(1,1),(5,5)</box><points>(2,2),(3,3)</points>")
        assert 0.0 <= vlm_r1.mean_ap(response, f"```json\n{truth}\n```") <= 1.0
        assert 0.0 <= vlm_r1.weighted_sum(response, f"```json\n{truth}\n```") <= 1.0
        assert -1.0 <= vlm_r1.repetition(response) <= 0.0
        vlm_r1.referring_iou(response, "<answer>[0,0,9,9]</answer>")


def test_strict_json():
    assert answers.json_answer("<answer>{}</answer>") == {}
    for text in (
        "NaN",
        "[Infinity]",
        '{"a": 1, "a": 2}',
        "1" * 5000,
        "[" * 100_000,
        "[" * 3000,
        "",
    ):
        assert answers.json_answer(f"<answer>{text}</answer>") is None
    assert answers.finite_numbers([1, 2.5], 2) == [1.0, 2.5]
    for value in ([1, True], ["1", "2"], [1, float("nan")], [1], "12", None, [10**400, 1]):
        assert answers.finite_numbers(value, 2) is None


def test_reward_modules_import_without_torch():
    modules = "rewards consistency checklist boxes diagnosis compat.vlm_r1 compat.vision_reasoner compat.perception_r1"
    imports = "; ".join(f"import mmrl.perception.{name}" for name in modules.split())
    code = f"{imports}; import sys; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(ran.stdout.split())
    assert "mmrl.perception.compat.vlm_r1" in loaded
    assert not loaded & {"torch", "torchvision", "transformers", "scipy", "math_verify"}
