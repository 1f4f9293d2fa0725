"""RL-PLUS: the released code's numbers, bounds of the ratio, what a group without an expert does, and off."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mmrl.grpo import GRPO, loss
from mmrl.losses.advantages import group_centered, group_normalized
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.losses.teaching import compared_with_own, divided, with_lessons
from mmrl.model.packing import collate
from mmrl.objectives.ampo import AMPO
from mmrl.objectives.base import shaped_in_turn
from mmrl.objectives.nsr import NSR
from mmrl.objectives.rl_plus import RLPLUS, expert_ratio, exploring
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.teachers import WithTeachers
from mmrl.training.compatibility import check_setup
from mmrl.training.score_plan import plan_scores
from mmrl.types import Now, Prompt, Prompts, Role, Rollout, Scores, Shaped
from tests.objectives.test_rover import batch_of

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
FILE = json.loads((GOLDEN / "rl_plus.json").read_text())
NEAR = {"rtol": FILE["rtol"], "atol": FILE["atol"]}
NOW = Now(step=3, progress=0.1)
CASES = {case["name"]: case for case in FILE["cases"]}
PROPOSALS = {
    "RL-PLUS": RLPLUS(proposal="mixture", gamma=0.5),
    "no_reshape": RLPLUS(proposal="certain", gamma=0.0),
}


def with_experts(batch, foreign):
    """The batch whose trained tokens are an expert's where `foreign` [B, T] says so."""
    roles = torch.where(foreign & batch.mask, int(Role.EXPERT), batch.roles)
    return replace(batch, roles=roles.to(torch.uint8))


def released(objective, grpo, given, by_length):
    """(loss, its gradient) of given advantages, as the released code adds it up."""
    mask = torch.tensor(given["response_mask"]).bool()
    old = {"raw": Scores(torch.tensor(given["old_log_prob"]))}
    batch = batch_of(torch.zeros(len(mask)), torch.arange(len(mask)), mask, old)
    batch = with_experts(batch, torch.tensor(given["expert_token_mask"]))
    rest, lesson = divided(torch.tensor(given["advantages"]), batch.roles == Role.EXPERT)
    batch = replace(batch, advantage=rest, shaped=[Shaped(rest, kept={"lesson": lesson})])
    logp = torch.tensor(given["log_prob"]).requires_grad_()
    if by_length:
        grpo = replace(grpo, reduction="constant", length_constant=mask.shape[1])
    totals = Totals.of(mask)
    total, _ = loss(grpo, clipped, batch, {"raw": Scores(logp)}, [objective], totals, NOW)
    # Theirs is a sum over answers, ours their mean.
    total = total * totals.sequences if by_length else total
    total.backward()
    return total.detach(), logp.grad, mask


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "advantages" in c["outputs"]])
def test_golden_advantages(name):
    given = CASES[name]["inputs"]
    reward, group = torch.tensor(given["rewards"]), torch.tensor(given["group"])
    mask = torch.tensor(given["response_mask"]).bool()
    foreign = torch.tensor(given["is_expert"])
    batch = with_experts(batch_of(reward, group, mask), foreign[:, None].expand(mask.shape))
    # Theirs pays an answer that is alone, with or without an expert.
    estimate = partial(group_normalized if given["use_std"] else group_centered, alone="reward")
    plain = estimate(reward, group, mask)[:, None] * mask
    shaped = RLPLUS(scaled=given["use_std"]).shape(plain, batch, NOW)
    theirs = torch.tensor(CASES[name]["outputs"]["advantages"])
    torch.testing.assert_close(shaped.advantage + shaped.kept["lesson"], theirs, **NEAR)
    assert not shaped.advantage[foreign].any() and not shaped.kept["lesson"][~foreign].any()


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "loss" in c["outputs"]])
def test_golden_loss(name):
    given, expected = CASES[name]["inputs"], CASES[name]["outputs"]
    clip = given["cliprange"]
    upper = max(clip, given["clip_upper_bound"] - 1)
    grpo = GRPO(clip_low=clip, clip_high=upper, dual_clip=None)
    if given["remove_clip"]:
        grpo = GRPO(clip_low=1.0, clip_high=1e9, dual_clip=None)
    objective = PROPOSALS[given["strategy"]]
    total, grad, mask = released(objective, grpo, given, given["divide_by_max_len"])
    torch.testing.assert_close(total, torch.tensor(expected["loss"]), **NEAR)
    theirs = torch.tensor(expected["grad_log_prob"]) * mask
    torch.testing.assert_close(grad, theirs, **NEAR)


def test_the_ratio_is_bounded_and_one_where_everybody_is_sure():
    logp = -6 * torch.rand(500, dtype=torch.float64)
    old = -6 * torch.rand(500, dtype=torch.float64)
    ratio = expert_ratio(logp, old, "mixture")
    assert (ratio <= 4 * logp.exp()).all() and (ratio >= logp.exp()).all()
    sure = torch.zeros(1, dtype=torch.float64)
    assert expert_ratio(sure, sure, "mixture") == 1
    # Nothing is known of where the expert's text came from, and nothing of it was likely: still finite.
    assert expert_ratio(sure, sure - torch.inf, "mixture") == 4
    assert torch.equal(expert_ratio(logp, old, "certain"), logp.exp())


def test_the_advantage_fades_as_the_policy_learns_and_is_no_path_for_the_gradient():
    logp = torch.tensor([-3.0, -1.0, -1e-4, 0.0], requires_grad=True)
    factor = exploring(logp, 0.5)
    assert (factor.diff() < 0).all() and factor[-1] == 0 and not factor.requires_grad
    assert exploring(logp, 0.0).tolist() == [1, 1, 1, 1]


def drawn():
    """Two groups of three and four answers, the first with an expert, and the estimator's advantages."""
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [4], [2], [5], [3]])
    reward = torch.tensor([1.0, 0, 0.5, 1, 0, 0, 1], dtype=torch.float64)
    group = torch.tensor([4, 4, 4, 1, 1, 1, 1])
    batch = batch_of(reward, group, mask)
    expert = (torch.arange(7) == 0)[:, None].expand(mask.shape)
    return batch, with_experts(batch, expert)


def test_a_group_without_an_expert_keeps_its_advantage_to_the_bit():
    bare, taught = drawn()
    plain = group_centered(bare.reward, bare.group, bare.mask)[:, None] * bare.mask
    assert torch.equal(RLPLUS().shape(plain, bare, NOW).advantage, plain)
    shaped = RLPLUS().shape(plain, taught, NOW)
    assert torch.equal(shaped.advantage[3:], plain[3:]) and not shaped.kept["lesson"][3:].any()
    # Of the own answers 0 and ½: their mean is ¼, the expert is ¾ above it.
    assert shaped.advantage[1, 0] == -0.25 and shaped.advantage[2, 0] == 0.25
    assert shaped.kept["lesson"][0].tolist() == [0.75] * 5 and shaped.trained is None


@pytest.mark.parametrize("objective", [RLPLUS(weight=0.0), AMPO(weight=0.0)])
def test_off_experts_leave_the_batch_and_the_own_answers_are_dr_grpo(objective):
    bare, taught = drawn()
    plain = group_centered(taught.reward, taught.group, taught.mask)[:, None] * taught.mask
    found = shaped_in_turn([objective], [None], replace(taught, advantage=plain), NOW)
    assert not found.mask[0].any() and torch.equal(found.mask[1:], bare.mask[1:])
    own = group_centered(bare.reward[1:], bare.group[1:], bare.mask[1:])[:, None]
    assert torch.equal(found.advantage[1:], own * bare.mask[1:])
    live = {"raw": Scores(torch.zeros(7, 5, dtype=torch.float64))}
    assert objective.terms(live, found, NOW) == {} and objective.owns() == ()


def test_degenerate_groups_are_finite():
    nan, inf = torch.nan, torch.inf
    reward = torch.tensor(
        [1.0, 0.5, 1, 0.1, 0.1, 0.1, 1, nan, nan, nan, 1], dtype=torch.float64
    )
    group = torch.tensor([0, 0, 1, 2, 2, 2, 2, 3, 3, 4, 4])
    foreign = torch.tensor([1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1]).bool()
    found = compared_with_own(reward, group, foreign, scaled=False)
    # One own answer: as it is; nobody's own: as it is; equal ones: exactly 0; unknown: 0.
    expected = [1.0, 0.5, 1, 0, 0, 0, 0.9, 0, 0, 0, 1]
    assert found.tolist() == pytest.approx(expected) and found[3:6].tolist() == [0, 0, 0]
    scaled = compared_with_own(reward, group, foreign, scaled=True)
    assert scaled.isfinite().all() and scaled[6] == pytest.approx(0.9, rel=1e-5)
    assert inf not in scaled


@pytest.mark.parametrize("objective", [RLPLUS(), AMPO(), AMPO(shaping="root")])
@pytest.mark.parametrize("junk", [torch.nan, 1e30, -torch.inf])
def test_what_stands_elsewhere_reaches_neither_value_nor_gradient(objective, junk):
    _, batch = drawn()
    plain = group_centered(batch.reward, batch.group, batch.mask)[:, None] * batch.mask
    batch = shaped_in_turn([objective], [None], replace(batch, advantage=plain), NOW)
    clean = -torch.rand(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for value in (0.0, junk):
        logp = torch.where(batch.mask, clean, value).requires_grad_()
        stored = {"raw": Scores(torch.where(batch.mask, clean - 0.1, value))}
        totals = Totals.of(batch.mask)
        total, _ = loss(
            GRPO(), clipped, replace(batch, scores=stored), {"raw": Scores(logp)},
            [objective], totals, NOW,
        )  # fmt: skip
        total.backward()
        assert logp.grad[0].all(), "an expert's tokens are learned"
        found.append((total.detach(), torch.where(batch.mask, logp.grad, 0)))
    assert all(map(torch.equal, *found))


def test_experts_have_the_old_probability_that_the_policy_gave_them():
    # One update: its own, without gradient; several: stored before the first, of all tokens.
    assert "raw" not in plan_scores(GRPO(), [RLPLUS()], {}, 1).stored
    assert "raw" in plan_scores(GRPO(), [RLPLUS()], {}, 2).stored
    tokens = torch.tensor([5, 6])
    expert = Rollout(
        Prompt("p", []), 0, tokens, tokens, torch.full((2,), int(Role.EXPERT), dtype=torch.uint8),
        "", "eos", origin="expert", reward=1.0,
    )  # fmt: skip
    assert collate([expert], RLPLUS.trains_roles).mask.all()
    assert not collate([expert]).mask.any()


class One(Prompts):
    size = 1

    def __getitem__(self, index):
        return Prompt("p", [], extra={"solutions": ["x"]})


def part(rollout):
    return 1.0


def check(*objectives, rollout=group_rollout, estimator=group_centered, **rest):
    rewards = Rewards(accuracy=part, correct="accuracy")
    engine = object()
    check_setup(
        objectives, {}, rollout, estimator, rest.get("grpo", GRPO()), engine, One(), clipped, rewards
    )  # fmt: skip


def test_what_excludes_it_is_refused_with_both_names():
    teachers = WithTeachers(lambda text: torch.tensor([1]))
    check(RLPLUS(), rollout=teachers)
    with pytest.raises(ValueError, match="RLPLUS and AMPO cannot be used together"):
        check(RLPLUS(), AMPO(), rollout=teachers)
    with pytest.raises(ValueError, match=r"RLPLUS.*NSR|NSR.*RLPLUS"):
        check(RLPLUS(), NSR(), rollout=teachers)
    with pytest.raises(ValueError, match=r"RLPLUS reads 'teachers' answers.*WithTeachers"):
        check(RLPLUS())


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"gamma": -0.1}, {"gamma": torch.nan}])
def test_numbers_without_a_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"RLPLUS\.{next(iter(wrong))} is"):
        RLPLUS(**wrong)


def test_groups_without_a_teacher_keep_what_the_estimator_said_to_the_bit():
    said = torch.tensor([[0.3, 0.3], [0.7, 0.7], [0.1, 0.1], [-0.9, -0.9]])
    reward, group = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    theirs = torch.zeros(4, 2, dtype=torch.bool)
    theirs[1] = True
    own, lesson = with_lessons(said, reward, group, torch.ones_like(theirs), theirs)
    assert torch.equal(own[2:], said[2:]) and not lesson[2:].any()
    # Of the one own answer the mean is 0, so that both stand at their rewards.
    assert not own[:2].any() and lesson[:2].tolist() == [[0.0, 0.0], [1.0, 1.0]]
