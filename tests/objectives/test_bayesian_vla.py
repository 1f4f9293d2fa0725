"""BayesianVLA: how much an answer needs its question and its picture, and what that pays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.losses.advantages import group_normalized
from mmrl.objectives.bayesian_vla import BayesianVLA, mean_gain, without_question
from mmrl.types import Batch, Now, Prompt, Scores

NOW = Now(1, 0.1)
PAID = BayesianVLA(language=0.2, vision=0.1, most=1.0)


def batch(raw, mute, blind, correct, lengths, rewards=None):
    raw, mute, blind = (torch.tensor(x, dtype=torch.float64) for x in (raw, mute, blind))
    mask = torch.arange(raw.shape[1]) < torch.tensor(lengths)[:, None]
    zeros = torch.zeros_like(raw)
    reward = torch.tensor(rewards or [float(c) for c in correct], dtype=torch.float64)
    found = Batch(
        [], torch.zeros(len(raw)).long(), zeros.long(), mask, reward, zeros, zeros.byte()
    )
    scores = {"raw": Scores(raw), "mute": Scores(mute), "blind": Scores(blind)}
    return replace(found, scores=scores, correct=torch.tensor(correct))


RAW = [[-1.0, -1.0, -1.0], [-1.0, -2.0, float("nan")], [-1.0, -1.0, 0.0]]
MUTE = [[-1.5, -1.5, -1.5], [-9.0, -9.0, float("inf")], [-0.5, -0.5, 0.0]]
BLIND = [[-1.2, -1.0, -1.1], [-1.0, -2.0, float("nan")], [-4.0, -4.0, 0.0]]
SOME = batch(RAW, MUTE, BLIND, [True, True, False], [3, 2, 2])


def test_the_gain_is_the_mean_over_an_answers_own_tokens():
    raw, mute = SOME.scores["raw"].logp, SOME.scores["mute"].logp
    assert mean_gain(raw, mute, SOME.mask).tolist() == pytest.approx([0.5, 7.5, -0.5])
    assert mean_gain(raw, raw, SOME.mask).abs().max() == 0, "the same view"
    assert mean_gain(raw, mute, torch.zeros_like(SOME.mask)).tolist() == [0.0] * 3


def test_right_answers_are_paid_within_bounds_and_wrong_ones_never():
    shaped = PAID.shape(SOME.advantage, SOME, NOW)
    # 0.2 · clip(0.5) + 0.1 · clip(0.1); 0.2 · 1 + 0; a wrong answer gets nothing, whatever it needs.
    bonus = shaped.logged["bonus"][:, 0]
    assert bonus.tolist() == pytest.approx([0.11, 0.2, 0.0])
    right = group_normalized(SOME.reward + bonus, SOME.group, SOME.mask)
    assert torch.allclose(shaped.advantage[:, 0], right)
    assert (shaped.advantage[~SOME.mask] == 0).all()
    assert shaped.logged["without_question"][:, 0].tolist() == [0.0, 0.0, 1.0]
    most = PAID.most * (PAID.language + PAID.vision)
    assert (bonus >= 0).all() and (bonus <= most).all()


def test_equal_views_pay_nothing_and_off_it_is_the_estimators():
    same = batch(RAW, RAW, RAW, [True, True, False], [3, 2, 2])
    plain = group_normalized(same.reward, same.group, same.mask)
    assert torch.allclose(PAID.shape(same.advantage, same, NOW).advantage[:, 0], plain)
    off = replace(PAID, **BayesianVLA.off)
    assert off.score_requests() == () and off.owns() == ()
    assert off.shape(SOME.advantage, SOME, NOW).advantage is SOME.advantage
    watching = replace(off, watch=True)
    found = watching.shape(SOME.advantage, SOME, NOW)
    assert found.advantage is SOME.advantage and "needs_picture" in found.logged
    assert watching.owns() == () and watching.terms({}, SOME, NOW) == {}


def test_the_loss_moves_right_answers_under_the_real_prompt_alone():
    pulled = replace(PAID, language=0.0, vision=0.0, pull_vision=0.5)
    kept = pulled.shape(SOME.advantage, SOME, NOW).kept
    raw = SOME.scores["raw"].logp.clone().requires_grad_()
    blind = SOME.scores["blind"].logp.clone().requires_grad_()
    live = {"raw": Scores(raw), "blind": Scores(blind)}
    (name, term), *more = pulled.terms(live, replace(SOME, kept=kept), NOW).items()
    assert name == "reads_picture" and not more
    assert pulled.reductions[name] == "sequence"
    assert term[0].tolist() == pytest.approx([-0.1, 0.0, -0.05])
    assert (term[~SOME.mask] == 0).all() and (term[2] == 0).all()
    term.sum().backward()
    assert blind.grad is None, "else a policy would forget to answer without pictures"
    expected = torch.where(SOME.mask & SOME.correct[:, None], -0.5, 0.0).double()
    assert torch.equal(raw.grad, expected)


def test_the_question_is_taken_out_of_users_turns_and_nothing_else():
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}, {"type": "image"}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    found = without_question(Prompt("a", messages)).messages
    assert found[0] is messages[0] and found[2] is messages[2]
    assert found[1]["content"] == [{"type": "image"}, {"type": "image"}]
    assert found[3]["content"] == "" and messages[1]["content"] is parts


def test_what_makes_no_sense_is_refused():
    for change, why in (({"most": 0.0}, "positive"), ({"vision": -1.0}, "0 .off."),
                        ({"mute": "blind"}, "another branch")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            replace(PAID, **change)
