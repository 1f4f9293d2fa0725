"""Video-R1: accuracy by type, T-GRPO and length bonuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.data.grounding.rouge import rouge, stem, word_error_rate
from mmrl.data.grounding.video_r1 import (
    TYPES,
    accuracy,
    length_bonus,
    t_grpo_bonus,
    temporal_bonus,
    video_r1_accuracy,
    video_r1_format,
)

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "vtg"


def test_golden_vtg_video_r1_accuracy() -> None:
    cases = json.loads((GOLDEN / "video_r1_accuracy.json").read_text())["cases"]
    assert cases
    for case in cases:
        found = accuracy(case["completion"], case["solution"], case["problem_type"])
        assert found == pytest.approx(case["accuracy"], abs=1e-9), case
        assert video_r1_format(case["completion"]) == case["format"], case


def test_golden_vtg_t_grpo() -> None:
    cases = json.loads((GOLDEN / "tgrpo_and_shaping.json").read_text())["t_grpo"]
    assert cases
    for case in cases:
        accuracies, formats = zip(*case["rewards_acc_format"], strict=True)
        bonus = t_grpo_bonus(accuracies, case["shuffled_acc"], case["completion_lengths"])
        rewards = np.add(np.add(accuracies, formats), bonus)
        np.testing.assert_allclose(rewards, case["expected"]["rewards"], atol=1e-9)
        advantages = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        np.testing.assert_allclose(advantages, case["expected"]["advantages"], atol=1e-5)


scores = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(scores, scores)
def test_temporal_bonus_is_one_number_for_all_good_answers(
    ordered: list[float], shuffled: list[float]
) -> None:
    bonus = temporal_bonus(ordered, shuffled)
    assert {b for b, a in zip(bonus, ordered, strict=True) if a <= 0.1} <= {0.0}
    assert len({b for b, a in zip(bonus, ordered, strict=True) if a > 0.1}) <= 1
    if np.mean(ordered) < 0.8 * np.mean(shuffled):
        assert not any(bonus)


def test_temporal_bonus_needs_a_shuffled_group() -> None:
    assert temporal_bonus([1.0, 1.0], []) == [0.0, 0.0]
    assert temporal_bonus([1.0, 0.05], [1.0, 0.0]) == [0.3, 0.0]


@pytest.mark.parametrize("kind", ["numerical", "regression"])
def test_no_word_for_infinity_wins(kind: str) -> None:
    for word in ("nan", "inf", "-inf", "1e999"):
        assert accuracy(f"<answer>{word}</answer>", "<answer>3</answer>", kind) == 0


def test_length_bonus_needs_two_good_answers() -> None:
    assert length_bonus([1, 0, 0], [400, 400, 400]) == [0, 0, 0]
    assert length_bonus([1, 1, 0, 1], [320, 512, 400, 513]) == [0.2, 0.2, 0, 0]


def test_reward_reads_the_prompt_and_refuses_unknown_types() -> None:
    prompt = SimpleNamespace(id="q", answer="B", extra={"problem_type": "multiple choice"})
    rollout: Any = SimpleNamespace(text="<think>x</think><answer> B </answer>", prompt=prompt)
    assert video_r1_accuracy(rollout) == 1
    prompt.answer = "<answer>C</answer>"
    assert video_r1_accuracy(rollout) == 0
    prompt.extra = {}
    with pytest.raises(ValueError, match="allowed are multiple choice"):
        video_r1_accuracy(rollout)


@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(TYPES))
def test_accuracy_is_a_share_for_any_text(said: str, true: str, kind: str) -> None:
    assert 0 <= accuracy(f"<answer>{said}</answer>", f"<answer>{true}</answer>", kind) <= 1


@pytest.mark.parametrize(
    ("word", "root"),
    [
        ("walking", "walk"), ("relational", "relat"), ("hopping", "hop"), ("falling", "fall"), ("happy", "happi"),
        ("enjoy", "enjoy"), ("flies", "fli"), ("dies", "die"), ("agreed", "agre"), ("generalization", "gener"),
        ("geology", "geolog"), ("controlling", "control"), ("dying", "die"), ("adoption", "adopt"),
    ],
)  # fmt: skip
def test_stems(word: str, root: str) -> None:
    assert stem(word) == root


def test_rouge_and_error_rate_by_hand() -> None:
    found = rouge("a b c d", "a c d e")
    assert found == {"rouge1": 0.75, "rouge2": pytest.approx(1 / 3), "rougeL": 0.75}
    assert rouge("", "a") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert rouge("The dog was walking.", "the DOGS was walks")["rouge1"] == 1
    assert rouge("bus", "bu")["rouge1"] == 0, "three letters are not stemmed"
    assert word_error_rate("a b c", "a x c d") == pytest.approx(2 / 3)
    assert word_error_rate("", "") == 0 and word_error_rate("a", "b c d") == 3
