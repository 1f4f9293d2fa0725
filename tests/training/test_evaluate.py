"""Accuracy, pass@k in closed form, held-out prompts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.faults import BadRow
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import HFEngine
from mmrl.training.evaluate import (
    answers_to,
    evaluate,
    heldout_prompts,
    pass_at_k,
    pass_rates,
    summary,
)
from mmrl.types import Now, Prompt, Prompts, Rollout, Sampling

NOW = Now(step=0, progress=0.0, seed=0)


def answer(group, reward, parts=None, length=3, stop="eos"):
    kinds = torch.zeros(length, dtype=torch.uint8)
    tokens = torch.arange(length)
    return Rollout(
        Prompt(str(group), []),
        group,
        tokens,
        tokens,
        kinds,
        "",
        stop,
        reward=reward,
        parts=parts or {},
    )


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples):
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        right = [i < correct for i in range(samples)]
        subsets = list(itertools.combinations(right, k))
        assert pass_at_k(correct, samples, k) == pytest.approx(
            sum(map(any, subsets)) / len(subsets), abs=1e-12
        )


def test_pass_at_k_needs_enough_answers():
    for k in (0, 5):
        with pytest.raises(
            ValueError, match=f"pass@{k} needs at least {k} answers per prompt, there are 4"
        ):
            pass_at_k(1, 4, k)


def test_pass_rates_are_means_over_prompts():
    rollouts = [answer(0, r) for r in (1.0, 0.0, 0.0, 0.0)] + [answer(1, r) for r in (0.0,) * 4]
    assert pass_rates(rollouts, [1, 2, 4]) == {"pass@1": 0.125, "pass@2": 0.25, "pass@4": 0.5}
    by_part = [answer(0, 1.0, {"accuracy": 0.0}), answer(0, 0.0, {"accuracy": 1.0})]
    assert pass_rates(by_part, [1, 2]) == {"pass@1": 0.5, "pass@2": 1.0}, (
        "the part counts, not the total"
    )


def test_summary_by_hand():
    rollouts = [
        answer(0, 1.1, {"accuracy": 1.0}, length=2),
        answer(1, 0.1, {"accuracy": 0.0}, length=4, stop="length"),
        answer(2, 0.5, {"accuracy": None}, length=6),
        answer(3, 0.1, {"accuracy": 0.0}, length=4),
    ]
    found = summary(rollouts)
    assert found["accuracy"] == pytest.approx(1.5 / 4), (
        "an answer without the part counts by its total"
    )
    assert found["accuracy_error"] == pytest.approx(math.sqrt(0.375 * 0.625 / 4))
    assert (
        found["reward"] == pytest.approx(0.45)
        and found["length"] == 4.0
        and found["truncated"] == 0.25
    )
    assert summary([]) == {}


def test_evaluation_is_greedy_and_one_answer_each(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    engine, prompts = HFEngine(policy), heldout_prompts(Drawn("lookup", split="heldout"), 3)
    sampling = Sampling(4, 1.0, max_tokens=5)
    with Rewards(accuracy=(2.0, lambda r: float(len(r.text) > 0)), isolate=False) as rewards:
        first = evaluate(engine, prompts, rewards, sampling, NOW)
        again = evaluate(engine, prompts, rewards, sampling, replace(NOW, step=7, seed=3))
        sampled = answers_to(engine, prompts, rewards, sampling, NOW)
    assert first == again, "greedy answers know no seed"
    assert (
        first["accuracy"] == 1.0
        and first["reward"] == 2.0
        and first["truncated"] == 1.0
        and first["length"] == 5
    )
    assert [r.group for r in sampled] == [0] * 4 + [1] * 4 + [2] * 4


def test_heldout_prompts_skip_what_cannot_be_used():
    class Rows(Prompts):
        size = 6

        def __getitem__(self, index):
            if index == 1:
                raise BadRow("broken")
            return Prompt(str(index), [])

    def check(prompt):
        if prompt.id == "2":
            raise BadRow("too long")

    assert [p.id for p in heldout_prompts(Rows(), 3)] == ["0", "2", "3"]
    assert [p.id for p in heldout_prompts(Rows(), 3, check)] == ["0", "3", "4"]
    assert [p.id for p in heldout_prompts(Rows(), 99, check)] == ["0", "3", "4", "5"]
    assert heldout_prompts(Rows(), 0) == []
