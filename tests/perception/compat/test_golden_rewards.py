"""The compatible rewards equal the recorded outputs of the official code, oddities included.

All functions and cases that a file names are run; functions of other families are reported as skipped.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmrl.perception.boxes import Canvas
from mmrl.perception.compat import perception_r1, vision_reasoner, vlm_r1
from mmrl.perception.diagnosis import mcnemar

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "rewards"


def judge_parse(judge_text: str) -> dict[str, Any]:
    scores, reward = perception_r1.judge_scores(judge_text)
    return {"scores": scores, "reward": reward}


def referring_qwen(
    content: str, solution: str, image_size_wh: list[int], image_grid_thw: list[int]
) -> float:
    resized = image_grid_thw[2] * 14, image_grid_thw[1] * 14
    return vlm_r1.referring_iou(
        content, solution, Canvas((image_size_wh[0], image_size_wh[1]), resized)
    )


KNOWN: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "perception_r1": {
        "perception_r1_score": perception_r1.perception_r1,
        "perception_r1_score_perception_tag": lambda **case: perception_r1.perception_r1(
            **case, perception_tag=True
        ),
        "perception_r1_judge_parse": judge_parse,
        "perception_r1_ngram_penalty": perception_r1.ngram_penalty,
    },
    "vision_reasoner": {
        "visionreasoner": vision_reasoner.vision_reasoner,
        "segzero": vision_reasoner.seg_zero,
        "segzero_strict": lambda **case: vision_reasoner.seg_zero(**case, strict=True),
    },
    "vlm_r1": {
        "vlmr1_extract_choice": vlm_r1.extract_choice,
        "vlmr1_mcq": vlm_r1.multiple_choice,
        "vlmr1_yes_no": vlm_r1.yes_no,
        "vlmr1_map": vlm_r1.mean_ap,
        "vlmr1_od_ap": vlm_r1.detection,
        "vlmr1_od_ap50": lambda **case: vlm_r1.detection(**case, score_type=1),
        "vlmr1_odLength": lambda **case: vlm_r1.detection(**case, length_reward=True),
        "vlmr1_weighted_sum": vlm_r1.weighted_sum,
        "vlmr1_all_match": vlm_r1.all_match,
        "vlmr1_default": vlm_r1.default_accuracy,
        "vlmr1_repetition": vlm_r1.repetition,
        "vlmr1_format": vlm_r1.think_answer_format,
        "vlmr1_rec_format_qwen": vlm_r1.referring_format,
        "vlmr1_rec_format_internvl": lambda **case: vlm_r1.referring_format(
            **case, family="internvl"
        ),
        "vlmr1_rec_iou_qwen": referring_qwen,
        "vlmr1_rec_iou_internvl": vlm_r1.referring_iou,
    },
    "formula_examples": {"mcnemar_test": mcnemar},
}

ELSEWHERE = {"pearl_gate_and_advantages", "visurf_smoothing_and_advantages"}
"""Formulas of objectives, tested in tests/objectives."""


def assert_equal(computed: Any, stored: Any, case: str) -> None:
    """Numbers within rel 1e-6 and abs 1e-9, everything else exactly; a stored mapping may name fewer keys."""
    if isinstance(stored, Mapping):
        for key, value in stored.items():
            assert_equal(computed[key], value, f"{case}.{key}")
    elif isinstance(stored, list):
        assert len(computed) == len(stored), (case, computed, stored)
        for index, value in enumerate(stored):
            assert_equal(computed[index], value, f"{case}[{index}]")
    elif isinstance(stored, int | float) and not isinstance(stored, bool):
        assert math.isclose(computed, stored, rel_tol=1e-6, abs_tol=1e-9), (
            case,
            computed,
            stored,
        )
    else:
        assert computed == stored, (case, computed, stored)


@pytest.mark.parametrize("suite", sorted(KNOWN))
def test_golden_rewards(suite: str) -> None:
    if not (GOLDEN / f"{suite}.json").exists() and any(
        (GOLDEN / f"{other}.json").exists() for other in KNOWN
    ):
        pytest.skip(f"{GOLDEN} has no {suite}.json")
    functions = json.loads((GOLDEN / f"{suite}.json").read_text())["functions"]
    known = KNOWN[suite]
    run = 0
    for name in functions.keys() & known.keys():
        for case in functions[name]:
            assert_equal(known[name](**case["input"]), case["output"], case["id"])
            run += 1
    assert run, f"{suite}.json holds none of {sorted(known)}; it has {sorted(functions)}"
    if unknown := sorted(functions.keys() - known.keys() - ELSEWHERE):
        warnings.warn(f"skipped in {suite}.json: {', '.join(unknown)}", stacklevel=1)


def test_golden_rewards_official_oddities_are_kept():
    assert perception_r1.judge_scores("<info1>1</info1>")[1] != 1.0
    assert vision_reasoner.object_accuracy("<answer>[]</answer>", "[]") == 0.0
    assert vlm_r1.yes_no("I do not know", "no") == 1.0 == vlm_r1.yes_no("maybe", "perhaps")
    assert vlm_r1.multiple_choice("(A)", "A") == 0.0
    box = "[[0, 0, 1, 9]]"
    assert (
        vlm_r1.referring_iou(f"<answer>{box}</answer>", "<answer>[0, 0, 1, 9]</answer>") == 0.0
    )
