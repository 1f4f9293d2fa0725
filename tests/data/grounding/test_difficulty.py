"""Difficulty sampling and curricula."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.grounding.difficulty import (
    about_sound,
    difficulty_weights,
    stratified_sample,
    time_r1_epoch,
    time_r1_first_set,
    timelens2_weights,
)

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "vtg"


def test_golden_vtg_timelens_difficulty_sampling() -> None:
    cases = json.loads((GOLDEN / "timelens_data.json").read_text())["difficulty_sampling"]
    assert cases
    for case in cases:
        gauss = {"mean": case["mean"], "std": case["std"], "bins": case["num_bins"]}
        found = stratified_sample(
            case["ious"], case["durations"], case["target_size"], seed=case["seed"], **gauss
        )
        assert found == case["selected"]
        bucket = [i for i, d in enumerate(case["durations"]) if d <= 30]
        assert bucket == case["bucket0_indices"]
        weights = difficulty_weights([case["ious"][i] for i in bucket], **gauss)
        np.testing.assert_allclose(weights, case["bucket0_weights"], rtol=1e-6)
        # Weighting 1 - IoU, as the paper's text has it, gives other questions.
        easy = stratified_sample(
            [1 - x for x in case["ious"]], case["durations"], case["target_size"], **gauss
        )
        assert easy != case["selected"]


def test_golden_vtg_timelens_audio_filter() -> None:
    cases = json.loads((GOLDEN / "timelens_data.json").read_text())["queries"]
    assert cases
    for case in cases:
        assert about_sound(case["clean"]) == case["audio_related"], case


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 400)), min_size=1, max_size=120),
    st.integers(9, 90),
)
def test_each_bucket_gives_its_share(rows: list[tuple[float, float]], target: int) -> None:
    ious, durations = zip(*rows, strict=True)
    chosen = stratified_sample(ious, durations, target)
    assert chosen == sorted(set(chosen)) == stratified_sample(ious, durations, target)
    edges = np.append(np.arange(0, 241, 30), np.inf)
    for low, high in itertools.pairwise(edges):
        inside = [i for i, d in enumerate(durations) if (low < d <= high) or (low == 0 == d)]
        assert len(set(inside) & set(chosen)) == min(int(target / 9), len(inside))


def test_hard_questions_are_drawn() -> None:
    rng = np.random.default_rng(0)
    ious = rng.uniform(0, 1, 2000)
    chosen = stratified_sample(ious.tolist(), [10.0] * 2000, 900)
    assert (
        len(chosen) == 100 and (ious[chosen] > 0.7).sum() <= 2 and np.mean(ious[chosen]) < 0.3
    )


def test_a_drawn_set_follows_the_gaussian_whatever_there_is() -> None:
    rng = np.random.default_rng(0)
    ious = np.concatenate([rng.uniform(0, 0.1, 5000), rng.uniform(0.1, 1, 500)])
    weights = difficulty_weights(ious.tolist(), mean=0.5, std=0.1)
    assert weights.sum() == pytest.approx(1)
    assert np.average(ious, weights=weights) == pytest.approx(0.5, abs=0.03)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 9"):
        stratified_sample([0.1], [1.0], 5)
    with pytest.raises(ValueError, match="2 IoUs, 1 durations"):
        stratified_sample([0.1, 0.2], [1.0], 9)


def test_time_r1_sets() -> None:
    ious = [0.0, 0.9, 0.5, 0.1, 0.7, 0.3]
    assert time_r1_epoch(ious, 2) == [4, 3] and time_r1_epoch(ious, 99) == [4, 2, 5, 3]
    assert time_r1_epoch([0.0, 0.8], 3) == []
    assert time_r1_first_set(ious, 99) == [1, 2, 3, 4, 5] and time_r1_first_set([0.0], 3) == []
    assert len(time_r1_first_set(ious, 2)) == 2


def test_timelens2_prefers_what_is_not_solved() -> None:
    np.testing.assert_allclose(timelens2_weights([[1, 1], [0.5, 0.5], [0, 0]]), [0, 0.2, 0.8])
    np.testing.assert_allclose(timelens2_weights([[1], [1]]), [0.5, 0.5])
