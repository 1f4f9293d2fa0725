"""AMPO: the released code's numbers, the range of f, and what a failed group learns."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_centered
from mmrl.losses.ngrpo import NGRPO
from mmrl.objectives.ampo import AMPO, comprehension, shaped_probability
from mmrl.objectives.base import shaped_in_turn
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.ampo import AMPORollout
from mmrl.rollouts.ghpo import GHPORollout
from mmrl.rollouts.groups import DynamicSampling
from mmrl.training.compatibility import check_setup
from mmrl.types import Scores
from tests.objectives.test_rl_plus import GOLDEN, NOW, One, check, drawn, part, released

FILE = json.loads((GOLDEN / "ampo.json").read_text())
NEAR = {"rtol": FILE["rtol"], "atol": FILE["atol"]}
CASES = {case["name"]: case for case in FILE["cases"]}
SHAPINGS = {"no_reshape": "plain", "square_root": "root"}
CHOICES = {"mean_exp_log_softmax": "probability", "exp_mean_log_softmax": "likelihood"}


def shaped_as(reshape):
    """AMPO with the released code's name for f."""
    if reshape in SHAPINGS:
        return AMPO(shaping=SHAPINGS[reshape])
    return AMPO(floor=float(reshape.removeprefix("p_div_p_")))


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "loss" in c["outputs"]])
def test_golden_loss(name):
    given, expected = CASES[name]["inputs"], CASES[name]["outputs"]
    grpo = GRPO(clip_low=given["clip"], clip_high=given["clip"], dual_clip=given["clip_c"])
    objective = shaped_as(given["reshape"])
    total, grad, mask = released(objective, grpo, given, given["divide_by_max_len"])
    torch.testing.assert_close(total, torch.tensor(expected["loss"]), **NEAR)
    theirs = torch.tensor(expected["grad_log_prob"]) * mask
    torch.testing.assert_close(grad, theirs, **NEAR)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "kind" in c["inputs"]])
def test_golden_comprehension(name):
    given = CASES[name]["inputs"]
    mask = torch.tensor(given["answer_mask"]).bool()
    logp = torch.where(mask, torch.tensor(given["answer_log_probs"]), torch.nan)
    score = comprehension(logp[None], mask[None], CHOICES[given["kind"]])
    # Theirs went through bfloat16, which keeps eight bits.
    theirs = CASES[name]["outputs"]["score_rounded_to_bfloat16"]
    assert score.item() == pytest.approx(theirs, rel=2.0**-8)


def test_comprehension_of_nothing_is_nothing_and_luck_has_no_score():
    logp, nobody = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    for choice in ("probability", "likelihood"):
        assert comprehension(logp, nobody, choice).tolist() == [0, 0]
        assert comprehension(logp, ~nobody, choice).tolist() == [1, 1]
    with pytest.raises(ValueError, match="'random', which has no score"):
        comprehension(logp, nobody, "random")


def test_f_rises_from_nothing_to_its_bound():
    logp = torch.linspace(-30, 0, 50, dtype=torch.float64)
    for ampo, top in ((AMPO(), 1 / 1.1), (AMPO(shaping="plain"), 1), (AMPO(shaping="root"), 1)):
        f = shaped_probability(logp, ampo)
        assert (f > 0).all() and (f.diff() > 0).all() and f[-1].item() == pytest.approx(top)
    half = torch.tensor(0.1, dtype=torch.float64).log()
    assert shaped_probability(half, AMPO()).item() == pytest.approx(0.5)


def test_a_failed_group_learns_from_its_teacher_alone_and_needs_no_old_probability():
    _, batch = drawn()
    wrong = torch.tensor([1.0, 0, 0, 1, 0, 0, 1], dtype=torch.float64)
    plain = group_centered(wrong, batch.group, batch.mask)[:, None] * batch.mask
    batch = replace(batch, reward=wrong, advantage=plain)
    found = shaped_in_turn([AMPO()], [None], batch, NOW)
    assert not found.advantage[:3].any() and torch.equal(found.advantage[3:], plain[3:])
    logp = -torch.rand(7, 5, dtype=torch.float64)
    seen = replace(found, kept=found.shaped[0].kept)
    term = AMPO().terms({"raw": Scores(logp)}, seen, NOW)["teachers"]
    torch.testing.assert_close(term[0], -logp[0].exp() / (logp[0].exp() + 0.1))
    assert not term[1:].any()
    other = replace(seen, scores={"raw": Scores(logp - 3)})
    again = AMPO().terms({"raw": Scores(logp)}, other, NOW)["teachers"]
    assert torch.equal(again, term)


def guided(**settings):
    return AMPORollout(lambda text: torch.tensor([1]), ampo=AMPO(choice="random"), **settings)


def test_what_excludes_it_is_refused_with_both_names():
    check(AMPO(), rollout=guided())
    check(AMPO(), rollout=guided(inner=DynamicSampling(low=-1)))
    refused = (
        ({"rollout": guided(), "estimator": NGRPO()}, "AMPO.* and NGRPO"),
        (
            {"rollout": guided(inner=DynamicSampling())},
            "AMPORollout and DynamicSampling.*low=-1",
        ),
        ({"rollout": guided(inner=GHPORollout())}, "GHPORollout and AMPORollout.*same groups"),
    )
    for setup, message in refused:
        with pytest.raises(ValueError, match=message):
            check(AMPO(), **setup)
    with pytest.raises(ValueError, match=r"AMPORollout reads whether an answer is right"):
        parts = [AMPO()], {}, guided(), group_centered, GRPO(), object(), One()
        check_setup(*parts, rewards=Rewards(half=part))
    with pytest.raises(
        ValueError, match=r"choice is 'probability'.*has no score.*Comprehension"
    ):
        AMPORollout(lambda text: torch.tensor([1]))


def test_off_nobody_is_asked():
    off = replace(guided(), ampo=AMPO(weight=0.0, choice="random"))
    assert off.brings() == () and off.traits() == () and not off.wants([])
    check(AMPO(weight=0.0), rollout=off, estimator=NGRPO())


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"most": 0}, {"floor": 0.0}])
def test_numbers_without_a_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"AMPO\.{next(iter(wrong))} is"):
        AMPO(**wrong)
