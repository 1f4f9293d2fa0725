"""SEELE: the curve finds where half of the answers are right, and hints are learned but never paid."""

from __future__ import annotations

import random

import pytest
import torch

from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_centered
from mmrl.objectives.dsdr import DSDR
from mmrl.objectives.papo import PAPO
from mmrl.objectives.seele import SEELE, Tried, fitted_curve, next_rate, with_equal_hints
from mmrl.rollouts.dars import DARSRollout
from mmrl.rollouts.ghpo import GHPORollout
from mmrl.rollouts.seele import SEELERollout
from mmrl.training.clashes import refuse_clashes
from mmrl.types import Batch, Now, Role, Scores
from tests.training.test_compatibility import MASKED, check

NOW = Now(1, 0.1)
ROUNDS = SEELERollout(processing=None)  # type: ignore[arg-type]  # no check asks for words


def curve(rate, slope, place):
    return float(torch.sigmoid(torch.tensor(slope * (rate - place))))


def asked(slope, place, rng, rounds=4, answers=8):
    """Rate that the last round suggests for a learner with this curve."""
    tried, rate = [], 0.5
    for _ in range(rounds):
        right = sum(rng.random() < curve(rate, slope, place) for _ in range(answers))
        tried.append(Tried(rate, right / answers, answers))
        rate = next_rate(tried, 0.5, 0.95)
    return rate


def test_after_four_rounds_half_of_a_simulated_learners_answers_are_right():
    rng = random.Random(0)
    learners = [(rng.uniform(4, 14), rng.uniform(0.1, 0.9)) for _ in range(60)]
    fitted = [abs(curve(asked(k, b, rng), k, b) - 0.5) for k, b in learners]
    fixed = [abs(curve(0.5, k, b) - 0.5) for k, b in learners]
    assert sum(fitted) / 60 < 0.15 < sum(fixed) / 60


def test_the_curve_is_the_usual_one_until_something_is_seen_and_rises_with_what_is_wrong():
    assert fitted_curve([]) == pytest.approx((8.0, 0.5))
    assert next_rate([], 0.5, 0.95) == pytest.approx(0.5)
    rates = [next_rate([Tried(0.5, right / 8, 8)], 0.5, 0.95) for right in range(9)]
    assert rates == sorted(rates, reverse=True) and rates[0] > 0.6 and rates[8] < 0.4
    targets = [next_rate([Tried(0.5, 0.5, 8)], target, 0.95) for target in (0.2, 0.5, 0.8)]
    assert targets == sorted(targets) and targets[0] < targets[2]
    never = [Tried(rate, 0.0, 64) for rate in (0.5, 0.8, 0.95)]
    always = [Tried(rate, 1.0, 64) for rate in (0.5, 0.2, 0.0)]
    assert (next_rate(never, 0.5, 0.95), next_rate(always, 0.5, 0.95)) == (0.95, 0.0)


def batch(hints, rewards, group, width=4):
    """Answers of `width` tokens that begin with so many of a hint."""
    lengths = torch.tensor(hints)[:, None]
    roles = torch.where(torch.arange(width) < lengths, int(Role.HINT), int(Role.POLICY))
    mask = torch.ones(len(hints), width, dtype=torch.bool)
    reward, group = torch.tensor(rewards), torch.tensor(group)
    advantage = group_centered(reward, group, mask)[:, None] * mask
    return Batch([], group, roles, mask, reward, advantage, roles.to(torch.uint8),
                 correct=reward > 0.5)  # fmt: skip


def test_answers_are_compared_with_those_of_as_long_a_hint():
    rows = batch([1, 1, 3, 3, 0, 0, 0], [0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], [0] * 4 + [7] * 3)
    assert len(with_equal_hints(rows.group, rows.roles == Role.HINT).unique()) == 3
    found = SEELE().shape(rows.advantage, rows, NOW)
    own = [row[role == 0].unique().tolist() for row, role in
           zip(found.advantage, rows.roles, strict=True)]  # fmt: skip
    assert own[:4] == [[-0.5], [0.5], [0.0], [0.0]]
    assert (found.advantage[rows.roles == Role.HINT] == 0).all()
    assert torch.equal(found.advantage[4:], rows.advantage[4:]), "no hints: as it was"
    # Shares 1/2, 1 and 1/3 against a half.
    assert found.logged["missed"] == pytest.approx((0 + 1 / 2 + 1 / 6) / 3)
    off = SEELE(most=0.0)
    assert off.shape(rows.advantage, rows, NOW).advantage is rows.advantage
    assert off.terms({}, rows, NOW) == {} and off.owns() == ()


def test_only_hint_tokens_are_learned_by_heart():
    rows = batch([1, 3], [0.0, 1.0], [0, 0])
    logp = torch.full((2, 4), torch.nan)
    logp[rows.roles == Role.HINT] = -2.0
    logp.requires_grad_()
    loss = SEELE(weight=0.25).terms({"raw": Scores(logp)}, rows, NOW)["hints"]
    assert loss.sum().item() == 4 * 0.25 * 2
    loss.sum().backward()
    right = torch.where(rows.roles == Role.HINT, -0.25, 0.0)
    assert torch.equal(logp.grad, right), "nothing else has a gradient, whatever stands there"


def test_who_else_decides_about_groups_is_refused():
    for other in (DARSRollout(), GHPORollout()):
        with pytest.raises(ValueError, match="cannot be used together"):
            refuse_clashes([], [ROUNDS, other])
    with pytest.raises(ValueError, match="each answers prompts in stages"):
        SEELERollout(processing=None, inner=DARSRollout())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"hints questions.*assumes independent rows"):
        refuse_clashes([DSDR()], [ROUNDS])


def test_it_needs_its_rounds_and_no_visual_term_and_no_sampler_weights():
    with pytest.raises(ValueError, match="begin with hints; use rollout=SEELERollout"):
        check(SEELE())
    with pytest.raises(ValueError, match=r"PAPO has a visual term.*SEELE trains hint tokens"):
        check(SEELE(), PAPO(), branches=MASKED, rollout=ROUNDS)
    with pytest.raises(ValueError, match="mismatch"):
        check(SEELE(), rollout=ROUNDS, grpo=GRPO(mismatch="truncate"))
