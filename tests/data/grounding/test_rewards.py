"""Rewards of spans: each paper's form against its own code's values, and our policy."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.grounding.rewards import (
    SpanReward,
    glue_answer,
    glue_format,
    glue_iou,
    set_reward,
    soft_shaping,
    span_fault,
    span_iou,
    template_format,
    tempsamp_reward,
    time_r1_difficulty,
    time_r1_filter_span,
    time_r1_iou,
    time_r1_thought,
    time_zero_format,
    time_zero_iou,
    timelens2_parts,
    timelens2_reward,
    timelens_format,
    timelens_iou,
    videochat_r1_iou,
)
from mmrl.data.grounding.span_math import (
    hull_iou,
    merged,
    set_iou,
    timelens2_iou,
    wasserstein,
    wasserstein_reward,
)
from mmrl.data.grounding.spans import as_spans, timelens_eval_spans

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "vtg"


def timelens_eval_iou(text: str, gt: Any, duration: float) -> float:
    spans = timelens_eval_spans(text)
    return hull_iou(spans[0], gt) if spans else 0.0


SINGLE: dict[tuple[str, str], Callable[[str, Any, float], float]] = {
    ("timelens_train", "tiou_reward"): lambda t, gt, d: timelens_iou(t, [gt], d),
    ("timelens_train", "format_reward"): lambda t, gt, d: timelens_format(t),
    ("timelens_eval", "iou_first_span"): timelens_eval_iou,
    ("videochat_r1", "iou_reward"): lambda t, gt, d: videochat_r1_iou(t, [gt], d),
    ("videochat_r1", "format_reward"): lambda t, gt, d: time_zero_format(t),
    ("time_zero", "iou_reward"): lambda t, gt, d: time_zero_iou(t, [gt], d),
    ("time_zero", "format_reward"): lambda t, gt, d: time_zero_format(t),
    ("time_r1", "iou"): lambda t, gt, d: time_zero_iou(t, [gt], d),
    ("time_r1", "iou_v2"): lambda t, gt, d: time_r1_iou(t, [gt], d, clamp=False),
    ("time_r1", "format_reward"): lambda t, gt, d: time_zero_format(t),
    ("time_r1", "difficulty_iou_x100"): lambda t, gt, d: time_r1_difficulty(t, [gt]),
    **{
        ("time_r1", name): lambda t, gt, d, name=name: time_r1_thought(t)[name]
        for name in ("timestep_pair", "think_length", "keyword_usage", "paragraphs")
    },
}


def close(found: float, expected: Any) -> bool:
    if expected == "nan":
        return math.isnan(found)
    # Where the original crashes our value is 0: the span has no length.
    return found == pytest.approx(0.0 if isinstance(expected, dict) else expected, abs=1e-9)


def test_golden_vtg_single_span_rewards() -> None:
    cases = json.loads((GOLDEN / "single_span_rewards.json").read_text())["cases"]
    checked, unknown = 0, set()
    for case in cases:
        gt = as_spans(case["gt"])[0]
        for base, values in case["expected"].items():
            for name, expected in values.items():
                if "parse" in name or "extract" in name:
                    continue
                if (base, name) not in SINGLE:
                    unknown.add(f"{base}/{name}")
                    continue
                found = SINGLE[base, name](case["completion"], gt, case["duration"])
                assert close(found, expected), (base, name, case["completion"], found, expected)
                checked += 1
    if unknown:
        warnings.warn(f"rewards without a test: {sorted(unknown)}", stacklevel=1)
    assert checked >= len(cases) > 0


def test_golden_vtg_interval_set_rewards() -> None:
    cases = json.loads((GOLDEN / "interval_set_rewards.json").read_text())["cases"]
    assert cases
    for case in cases:
        found = {
            "iou": glue_iou(case["completion"], as_spans(case["gt_glue"])),
            "answer": glue_answer(case["completion"], case["gt_answer"]),
            "format": glue_format(case["completion"]),
        }
        assert found == pytest.approx(case["expected"], abs=1e-9), case["completion"]


W1 = {
    "tiou": lambda t, gt: timelens2_parts(t, gt)["iou"],
    "twass1": lambda t, gt: timelens2_parts(t, gt, beta=1)["wasserstein"],
    "twass3": lambda t, gt: timelens2_parts(t, gt, beta=3)["wasserstein"],
    "tgiou": lambda t, gt: timelens2_parts(t, gt)["giou"],
    "ngiou": lambda t, gt: timelens2_parts(t, gt)["matched_giou"],
    "parse_penalty": lambda t, gt: timelens2_parts(t, gt)["parse_penalty"],
    "length_ratio_penalty": lambda t, gt: timelens2_parts(t, gt)["length_ratio_penalty"],
    "twass1,tiou,parse_penalty": timelens2_reward,
}


def test_golden_vtg_interval_set_w1_rewards() -> None:
    cases = json.loads((GOLDEN / "interval_set_w1_rewards.json").read_text())["cases"]
    assert cases
    unknown = {spec for case in cases for spec in case["rewards"]} - set(W1)
    if unknown:
        warnings.warn(f"reward specs without a test: {sorted(unknown)}", stacklevel=1)
    for case in cases:
        for spec, expected in case["rewards"].items():
            if spec in W1:
                found = W1[spec](case["completion"], as_spans(case["gt"]))
                assert found == pytest.approx(expected, abs=1e-9), (spec, case["completion"])


def test_golden_vtg_tempsamp_shaping() -> None:
    cases = json.loads((GOLDEN / "tgrpo_and_shaping.json").read_text())["tempsamp_shaping"]
    assert cases
    for case in cases:
        found = soft_shaping(case["iou"], case["threshold"], case["alpha"])
        assert found == pytest.approx(case["shaped"], abs=1e-12)


@given(st.floats(0, 1), st.floats(0, 1))
def test_shaping_increases_and_meets_itself_at_the_threshold(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    assert soft_shaping(low) <= soft_shaping(high)
    assert soft_shaping(0.8) == 0.8 and soft_shaping(0.8 - 1e-9) == pytest.approx(0.8, abs=1e-8)
    if high < 0.8 and high - low > 1e-6:
        assert (soft_shaping(high) - soft_shaping(low)) / (high - low) >= 1 / (
            math.e - 1
        ) - 1e-9


times = st.floats(0, 300).map(lambda x: round(x, 2))
spans = (
    st.tuples(times, times).map(lambda s: (min(s), max(s))).filter(lambda s: s[1] - s[0] > 0.02)
)
sets = st.lists(spans, min_size=1, max_size=5)


@given(spans, spans, times)
def test_iou_is_symmetric_shift_invariant_and_one_only_for_equals(
    a: Any, b: Any, shift: float
) -> None:
    value = hull_iou(a, b)
    assert 0 <= value <= 1 and value == hull_iou(b, a)
    assert (value == 1) == (a == b)
    moved = hull_iou((a[0] + shift, a[1] + shift), (b[0] + shift, b[1] + shift))
    assert moved == pytest.approx(value, abs=1e-6)


@given(spans, spans)
def test_time_r1_never_pays_more_than_iou_inside_the_clip(a: Any, b: Any) -> None:
    text = f"<answer>{a[0]} to {a[1]}</answer>"
    plain, weighted = time_zero_iou(text, [b]), time_r1_iou(text, [b], 300.0)
    assert weighted <= plain + 1e-12
    assert weighted == pytest.approx(time_r1_iou(text, [b], 300.0, clamp=False))
    if a == b:
        assert weighted == plain == 1


def test_time_r1_clamp_refuses_what_two_negative_factors_would_pay() -> None:
    text, truth = "<answer>0 to 100</answer>", [(40.0, 41.0)]
    assert time_r1_iou(text, truth, 10.0, clamp=False) > 0
    assert time_r1_iou(text, truth, 10.0) == 0
    with pytest.raises(ValueError, match="needs it"):
        time_r1_iou(text, truth, None)


@settings(deadline=None)
@given(sets, sets, st.randoms(use_true_random=False))
def test_sets_do_not_depend_on_order_or_cuts(a: Any, b: Any, rng: Any) -> None:
    middle = (a[0][0] + a[0][1]) / 2
    cut = [(a[0][0], middle), (middle, a[0][1]), *a[1:]]
    rng.shuffle(cut)
    assert set_iou(cut, b) == pytest.approx(set_iou(a, b), abs=1e-9)
    assert wasserstein(cut, b) == pytest.approx(wasserstein(a, b), abs=1e-6)
    assert 0 <= set_iou(a, b) <= 1 and set_iou(a, a) == pytest.approx(1)
    assert 0 <= wasserstein_reward(a, b) <= 1 and wasserstein_reward(a, a) == pytest.approx(1)
    assert wasserstein(a, b) == pytest.approx(wasserstein(b, a), abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(sets, sets)
def test_wasserstein_is_the_mean_distance_of_quantiles(a: Any, b: Any) -> None:
    import numpy as np
    from scipy.stats import wasserstein_distance

    def points(chosen: Any) -> Any:
        joined = merged(chosen)
        lengths = np.array([end - start for start, end in joined])
        where = np.linspace(0, lengths.sum(), 20_001)[:-1] + lengths.sum() / 40_000
        place = np.searchsorted(np.cumsum(lengths), where, side="right")
        return (
            np.array([s for s, _ in joined])[place]
            + where
            - np.concatenate([[0], np.cumsum(lengths)])[place]
        )

    assert wasserstein(a, b) == pytest.approx(
        wasserstein_distance(points(a), points(b)), abs=0.02
    )


def test_wasserstein_orders_answers_that_miss() -> None:
    truth = [(30.0, 40.0)]
    near, far = (
        wasserstein_reward([(50.0, 55.0)], truth),
        wasserstein_reward([(90.0, 95.0)], truth),
    )
    assert near == pytest.approx(0.17377, abs=1e-5) and far == pytest.approx(0.00318, abs=1e-5)
    assert set_iou([(50.0, 55.0)], truth) == set_iou([(90.0, 95.0)], truth) == 0


def test_timelens2_does_not_merge_the_truth() -> None:
    overlapping = [(0.0, 10.0), (5.0, 10.0)]
    assert set_iou([(0.0, 10.0)], overlapping) == 1
    assert timelens2_iou([(0.0, 10.0)], overlapping) == 1  # Σ overlaps 15 of 10 + 15 - 15
    assert timelens2_iou([(0.0, 5.0)], overlapping) != set_iou([(0.0, 5.0)], overlapping)


POLICY = [
    ("The event happens in 10.0 - 20.0 seconds.", 1.0, ""),
    ("The event happens in 20.0 - 10.0 seconds.", 0.0, "reversed"),
    ("The event happens in 10.0 - 10.0 seconds.", 0.0, "empty"),
    ("I do not know.", 0.0, "unreadable"),
    ("", 0.0, "unreadable"),
    ("The event happens in nan - inf seconds.", 0.0, "unreadable"),
    ("The event happens in 10.0 - 120.0 seconds.", 10 / 110, "outside"),
    ("<think>2 to 4</think>The event happens in 10.0 - 20.0 seconds.", 1.0, ""),
    ("10 - 20, or 30 - 40", 1.0, ""),
    ("30 - 40, or 10 - 20", 0.0, ""),
]


@pytest.mark.parametrize(("text", "reward", "fault"), POLICY)
def test_one_policy_for_degenerate_spans(text: str, reward: float, fault: str) -> None:
    assert span_iou(text, [(10.0, 20.0)], 60.0) == pytest.approx(reward)
    assert span_fault(text, 60.0) == fault
    if fault in ("reversed", "empty", "unreadable"):
        assert set_reward(text, [(10.0, 20.0)]) == timelens_iou(text, [(10.0, 20.0)]) == 0


def test_best_true_span_counts_for_us_and_the_first_for_timelens() -> None:
    truth = [(0.0, 5.0), (10.0, 20.0)]
    assert span_iou("10 - 20", truth) == 1 and timelens_iou("10 - 20", truth) == 0


def test_first_span_counts_whatever_follows() -> None:
    assert timelens_iou("10 - 20. Later 11 - 12.", [(10.0, 20.0)]) == 1
    assert set_reward("[[10, 15], [15, 20]]", [(10.0, 20.0)]) == 1


def test_template_format_is_strict() -> None:
    assert template_format("The event happens in 1.0 - 2.0 seconds.") == 1
    assert template_format("It happens in 1.0 - 2.0 seconds.") == 0


def test_tempsamp_pays_shape_and_format() -> None:
    assert tempsamp_reward("<answer>10 to 20</answer>", [(10.0, 20.0)]) == pytest.approx(
        0.1 + soft_shaping(1)
    )
    assert tempsamp_reward("<answer>10-20</answer>", [(10.0, 20.0)]) == pytest.approx(
        0.1 + soft_shaping(0)
    )
    assert tempsamp_reward("nothing", [(10.0, 20.0)]) == pytest.approx(soft_shaping(0))


def test_time_r1_filter_reads_what_it_can() -> None:
    assert time_r1_filter_span("from 3 to 5") == (3, 5)
    assert time_r1_filter_span("10s - 20s") == (10, 20)
    assert time_r1_filter_span("at 10") is None


def test_a_score_becomes_a_reward_of_rollouts() -> None:
    prompt = SimpleNamespace(id="a", answer=[10, 20], extra={"duration": 60.0})
    rollout: Any = SimpleNamespace(text="<answer>10 to 20</answer>", prompt=prompt)
    assert SpanReward(span_iou)(rollout) == SpanReward(time_r1_iou)(rollout) == 1
    prompt.answer = "10-20"
    with pytest.raises(ValueError, match="Prompt 'a' has no true span"):
        SpanReward(span_iou)(rollout)
