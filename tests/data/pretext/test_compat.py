"""The published scorers against reference values, and where our own rewards are meant to differ from them."""

import builtins
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.pretext.marking import compat, compat_np, rewards

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "pretext"


def _np(case):
    invalid, value = compat_np.np_engine(case["task"], case["instance"], case["answer"])
    return {"invalid": invalid, "value": value}


def _jigsaw_r1(case):
    grid = (case["rows"], case["cols"])
    names = ("answer_type", "think", "use_connections", "forward")
    return compat.jigsaw_r1(
        case["response"], case["solution"], *grid, **{name: case[name] for name in names}
    )


SCORERS = {
    "videossr_grounding": lambda c: compat.videossr_grounding(
        c["prediction"], c["ground_truth"]
    ),
    "videossr_counting": lambda c: compat.videossr_counting(c["prediction"], c["ground_truth"]),
    "videossr_jigsaw": lambda c: compat.videossr_jigsaw(c["prediction"], c["ground_truth"]),
    "visual_jigsaw_reward": lambda c: compat.visual_jigsaw(
        c["response"], c["ground_truth"], c["nothink"]
    ),
    "jigsaw_r1": _jigsaw_r1,
    "agile": lambda c: compat.agile(c["response"], c["ground_truth"]),
    "ssl4rl_jigsaw": lambda c: compat.ssl4rl_jigsaw(c["response"], c["ground_truth"]),
    "ssl4rl_exact": lambda c: compat.ssl4rl_exact(c["response"], c["ground_truth"]),
    "vicrit_eval": lambda c: compat.vicrit_eval(
        c["response"], c["original_phrase"], c["changed_phrase"]
    ),
    "np_engine": _np,
    "np_engine_fuzz": _np,
}
GEOMETRY = {
    "tile_sizes": (
        "tile_sizes_raster",
        lambda c: compat.visual_jigsaw_tile_sizes(
            c["width"], c["height"], c["rows"], c["cols"]
        ),
    ),
    "clip_ranges": (
        "output",
        lambda c: compat.visual_jigsaw_clip_ranges(
            c["num_frames"], c["clips"], c["trim_ratio"]
        ),
    ),
}


def _same(got, wanted) -> bool:
    if isinstance(wanted, dict):
        return set(wanted) <= set(got) and all(_same(got[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return got is not None and len(got) == len(wanted) and all(map(_same, got, wanted))
    if isinstance(wanted, bool) or wanted is None or isinstance(wanted, str):
        return got == wanted
    return math.isclose(got, wanted, rel_tol=0, abs_tol=1e-9)


def _wanted(case):
    return (
        case["output"]
        if "output" in case
        else {key: case[key] for key in OUTPUTS if key in case}
    )


OUTPUTS = ("invalid", "value")


def _check(scorer, case, wanted) -> None:
    if "raises" in case:
        with pytest.raises(getattr(builtins, case["raises"])):
            scorer(case)
        return
    got = scorer(case)
    assert _same(got, wanted), (case, got)


@pytest.mark.parametrize("suite", sorted(SCORERS))
def test_golden_pretext_scorers(suite):
    cases = json.loads((GOLDEN / f"{suite}.json").read_text())["cases"]
    assert cases, f"{suite} has no case"
    for case in cases:
        _check(SCORERS[suite], case, None if "raises" in case else _wanted(case))


def test_golden_pretext_geometry():
    groups = json.loads((GOLDEN / "visual_jigsaw_geometry.json").read_text())["cases"]
    known = [name for name in groups if name in GEOMETRY]
    assert known and all(groups[name] for name in known)
    for name in known:
        output, function = GEOMETRY[name]
        for case in groups[name]:
            _check(function, case, case.get(output))
    if unknown := sorted(set(groups) - set(known)):
        pytest.skip(f"unknown groups in visual_jigsaw_geometry: {unknown}")


def test_golden_pretext_files_are_known():
    found = {path.stem for path in GOLDEN.glob("*.json")}
    # The group weight is the objective's: tests/objectives/test_puzzlecraft.py reads its file.
    known = set(SCORERS) | {"visual_jigsaw_geometry", "puzzlecraft_formula"}
    assert found & known, f"no known suite in {GOLDEN}"
    if unknown := sorted(found - known):
        pytest.skip(f"unknown suites: {unknown}")


def test_golden_pretext_negative_examples_differ():
    truth = [5, 1, 3, 7, 9, 2, 4, 8, 6]
    outside = "<think>look</think> \\boxed{5,1,3,7,9,2,4,8,10}"
    longer = "<think>look</think> \\boxed{5,1,3,7,9,2,4,8,6,6}"
    assert compat.visual_jigsaw(outside, truth)["acc_reward"] == pytest.approx(0.2 * 8 / 9)
    assert compat.visual_jigsaw(longer, truth)["acc_reward"] == pytest.approx(0.2)
    assert rewards.positional([5, 1, 3, 7, 9, 2, 4, 8, 10], truth, 0.2) == 0.0
    assert rewards.positional([*truth, 6], truth, 0.2) == 0.0

    assert compat.ssl4rl_jigsaw("<answer>1,1,1,1</answer>", "1,2,3,4") == 0.25
    assert rewards.positional([1, 1, 1, 1], [1, 2, 3, 4]) == 0.0
    assert (
        compat.jigsaw_r1("<think>t</think><answer>3 3\n3 3</answer>", [3, 1, 4, 2], 2, 2)[
            "score"
        ]
        == 0.25
    )

    assert 0 < compat.videossr_counting("0,0,0", "3,1,4") < 1e-8
    assert rewards.count_rel((0, 0, 0), (3, 1, 4)) == 0.0
    assert compat.videossr_counting("-3,1,4", "3,1,4") == 1.0
    assert rewards.count_rel((-3, 1, 4), (3, 1, 4)) == 0.0
    assert compat.videossr_grounding("7-7", "7.0-7.0") == 0.0
    assert rewards.interval_iou((7, 7), (7, 7)) == 1.0


def test_visual_jigsaw_small_grids_have_no_partial_credit():
    assert (
        compat.visual_jigsaw("<think></think>\\boxed{1,2,4,3}", [1, 2, 3, 4])["acc_reward"] == 0
    )
    assert rewards.positional([1, 2, 4, 3], [1, 2, 3, 4], 0.2) == pytest.approx(0.1)


def test_jigsaw_r1_format_needs_the_whole_reply():
    good = "<think>a</think> <answer>1 2</answer>"
    for bad in (
        f"x{good}",
        f"{good}x",
        "<think>a</think><answer>",
        "<think>a<answer>1 2</answer>",
    ):
        assert compat.jigsaw_r1(bad, [1, 2], 1, 2)["format_reward"] == 0.0
    assert compat.jigsaw_r1(good, [1, 2], 1, 2)["format_reward"] == 1.0
    assert (
        compat.jigsaw_r1("<think>a</think>b</think><answer>1 2</answer>", [1, 2], 1, 2)[
            "format_reward"
        ]
        == 1.0
    )


def test_jigsaw_r1_boxes():
    got = compat.jigsaw_r1(
        "<think>a</think><answer>0, 0, 10, 10</answer>", [5, 0, 15, 10], 2, 2, answer_type="box"
    )
    assert (
        got["score"] == pytest.approx(1 / 3)
        and got["correct"] == 0.0
        and got["format_reward"] == 1.0
    )
    assert compat.jigsaw_r1("none", [5, 0, 15, 10], 2, 2, answer_type="box")["score"] == 0.0


def test_agile_refuses_long_and_odd_answers():
    truth = "[[2, 0], [1, 0], [4, 0], [3, 0]]"
    long = "<answer>[2,1,4,3" + " " * 1000 + "]</answer>"
    assert compat.agile(long, truth)["score"] == pytest.approx(-0.25)
    assert compat.agile("<answer>7</answer>", truth)["format_reward"] == 0.0
    assert compat.agile("<answer>[2,1]</answer>", truth)["format_reward"] == 1.0
    assert compat.agile("<answer>" + "[" * 900 + "</answer>", truth)["score"] == pytest.approx(
        -0.25
    )


def test_np_engine_quality_ratio():
    assert compat_np.quality_ratio("TSP", 100, (False, 125)) == pytest.approx(0.8)
    assert compat_np.quality_ratio("knapsack", 100, (False, 125)) == pytest.approx(1.25)
    assert compat_np.quality_ratio("knapsack", 100, (True, -1)) == 0.0
    with pytest.raises(ValueError, match="no task 'SAT'"):
        compat_np.np_engine("SAT", {}, "")


@settings(max_examples=80, deadline=None)
@given(st.text("<think>/answer\\boxed{} 0123456789,-.[]\n", max_size=60))
def test_scorers_never_raise(text):
    compat.videossr_grounding(text, "1.0-2.0")
    compat.videossr_counting(text, "1,2,3")
    compat.videossr_jigsaw(text, "123456")
    compat.visual_jigsaw(text, [2, 1, 3, 4, 5, 6])
    for kind in ("grid", "letter", "digit"):
        compat.jigsaw_r1(text, [1, 2, 3, 4] if kind == "grid" else "3", 2, 2, answer_type=kind)
    compat.agile(text, "[[2, 0], [1, 0], [4, 0], [3, 0]]")
    compat.ssl4rl_jigsaw(text, "1,2,3,4")
    compat.ssl4rl_exact(text, "90, 90 degrees")
    compat.vicrit_eval(text, "a red car", "a blue car")
