"""Answers under noisy views: which are noisy, that only the engine sees noise, and that the draws repeat."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.losses.schedules import Linear, Sigmoid
from mmrl.model.branches import Views, render_branch
from mmrl.model.policy import Policy
from mmrl.perception.noise import DiffusionNoise, GaussianNoise
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import DynamicSampling, by_group
from mmrl.rollouts.noisy import NoisyPrompts, NoisyRollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Sampling, VisualBranch

NOW = Now(step=1, progress=0.0, seed=3)
DATA = Drawn("lookup", cells=2, size_px=32)
NOISE = VisualBranch(GaussianNoise(2.0))
SAMPLING = Sampling(group_size=5, max_tokens=4)


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


def paid(rollouts):
    return [
        replace(r, reward=float(r.tokens[0] % 2), parts={"accuracy": float(r.tokens[0] % 2)})
        for r in rollouts
    ]


def run(rule, policy, now=NOW, per_step=4, sampling=SAMPLING):
    supply = Supply(DATA, per_step, seed=0)
    return rule(HFEngine(policy), paid, supply, sampling, now), supply


def tokens(rollouts):
    return [r.tokens.tolist() for r in rollouts]


def test_part_of_each_group_is_noisy_and_the_rest_is_as_ever(policy):
    rollouts, supply = run(NoisyRollout(policy, NOISE, share=0.5), policy)
    groups = by_group(rollouts)
    assert [[r.branch for r in group] for group in groups] == [["raw"] * 3 + ["noisy"] * 2] * 4
    assert [group[0].prompt.id for group in groups] == [DATA[i].id for i in range(4)]
    assert [r.group for r in rollouts] == [g for g in range(4) for _ in range(5)]
    assert supply.counters["rollout/noisy_answers"] == 8
    plain = HFEngine(policy).generate([DATA[i] for i in range(4)], SAMPLING, NOW)
    expected = [r.tokens.tolist() for group in by_group(plain) for r in group[:3]]
    assert tokens(r for r in rollouts if r.branch == "raw") == expected


def test_noisy_answers_are_those_of_the_rendered_view_and_repeat(policy):
    noisy = [r for r in run(NoisyRollout(policy, NOISE), policy)[0] if r.branch == "noisy"]
    again = [r for r in run(NoisyRollout(policy, NOISE), policy)[0] if r.branch == "noisy"]
    seen = [render_branch(policy, DATA[i], "noisy", NOISE, NOW) for i in range(4)]
    few = replace(SAMPLING, group_size=2)
    ask = [DATA[i] for i in range(4)]
    direct = HFEngine(policy).generate(ask, few, NOW, visual=seen, branch="noisy")
    blind = HFEngine(policy).generate(ask, few, NOW, branch="noisy")
    first = lambda rollouts: torch.stack([r.logp[0] for r in rollouts])  # noqa: E731
    assert tokens(noisy) == tokens(again) == tokens(direct)
    assert (
        torch.equal(first(noisy), first(direct))
        and (first(noisy) - first(blind)).abs().max() > 1e-6
    )


def test_only_the_engine_sees_noise(policy):
    rollouts, _ = run(NoisyRollout(policy, NOISE), policy)
    views = Views(policy, rollouts, {"noisy": NOISE}, NOW)
    for group in views.groups("raw", range(len(rollouts))):
        assert group.visual[0].key == group.encoded.visual[0].key
    assert (
        views.pixels("noisy", 0)[0].key
        == render_branch(policy, DATA[0], "noisy", NOISE, NOW)[0].key
    )


def test_no_noise_is_left_at_the_end_and_filters_see_the_whole_group(policy):
    faded = VisualBranch(DiffusionNoise(500, Sigmoid(1.0, 60.0, 0.5)))
    keys = [
        render_branch(policy, DATA[0], "noisy", faded, Now(1, p))[0].key for p in (0.0, 1.0)
    ]
    assert keys[1] == policy.encode(DATA[0]).visual[0].key != keys[0]
    rollouts, _ = run(NoisyRollout(policy, NOISE, inner=DynamicSampling()), policy)
    assert all(0 < sum(r.reward for r in g) < 5 and len(g) == 5 for g in by_group(rollouts))
    assert all([r.branch for r in g] == ["raw"] * 3 + ["noisy"] * 2 for g in by_group(rollouts))


def test_the_share_must_leave_both_kinds(policy):
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"NoisyRollout\.share is"):
            NoisyRollout(policy, NOISE, share=share)
    with pytest.raises(ValueError, match=r"0\.1 of 5 answers leaves 0 noisy ones"):
        run(NoisyRollout(policy, NOISE, share=0.1), policy)
    halves = run(
        NoisyRollout(policy, NOISE, share=0.5),
        policy,
        sampling=replace(SAMPLING, group_size=12),
    )[0]
    assert Counter(r.branch for r in halves) == {"raw": 24, "noisy": 24}


def test_prompts_are_noisy_with_the_annealed_probability(policy):
    rule = NoisyPrompts(policy, NOISE, probability=Linear(1.0, 0.0))
    kinds = {}
    for progress in (0.0, 0.5, 1.0):
        rollouts, supply = run(
            rule,
            policy,
            replace(NOW, progress=progress),
            per_step=24,
            sampling=Sampling(2, max_tokens=1),
        )
        groups = by_group(rollouts)
        assert [g[0].prompt.id for g in groups] == [DATA[i].id for i in range(24)]
        assert all(len({r.branch for r in g}) == 1 and len(g) == 2 for g in groups)
        kinds[progress] = [g[0].branch == "noisy" for g in groups]
        assert supply.counters["rollout/noisy_answers"] == 2 * sum(kinds[progress])
    assert all(kinds[0.0]) and not any(kinds[1.0]) and 4 <= sum(kinds[0.5]) <= 20
    again = run(
        rule,
        policy,
        replace(NOW, progress=0.5),
        per_step=24,
        sampling=Sampling(2, max_tokens=1),
    )[0]
    assert [g[0].branch == "noisy" for g in by_group(again)] == kinds[0.5]


def test_noisy_graphs_of_the_tower_are_not_kept(policy):
    with policy.vision.step():
        run(NoisyRollout(policy, NOISE), policy)
        shown = [policy.encode(DATA[i]).visual[0] for i in range(4)]
        held = sum(medium.tokens for medium in shown)
        assert policy.vision.rows_in_graphs() == held
        assert policy.vision.rows_in_graphs(besides={medium.key for medium in shown}) == 0
    policy.vision.clear()


def test_an_engine_without_views_is_explained(policy):
    class Speaker:
        def generate(self, prompts, sampling, now):
            return []

    with pytest.raises(
        ValueError, match=r"view 'noisy' needs 'other pixels', which Speaker cannot do"
    ):
        NoisyRollout(policy, NOISE)(Speaker(), paid, Supply(DATA, 2, seed=0), SAMPLING, NOW)
